"""`python -m autoseg.ensemble predict SPEC.json`: the process in which a prediction job runs.

SPEC: bundles (folders), cases (records), outputs (case id -> file), mode, scratch (folder), results (the JSON file
to write: predictions, errors and expected Dice by case id, members left out), uncertainty (whether maps of it are
wanted), progress (metrics.jsonl, a line a case). Exit code 0 where a case was predicted, 1 where none was, else that
of the error.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from autoseg.ensemble.predict import Predictions, predict_cases
from autoseg.errors import AutosegError, Fault, InputError
from autoseg.records import Case, Event, from_plain
from autoseg.workspace import read_json, write_json

logger = logging.getLogger("autoseg.ensemble")


def main(argv: list[str]) -> int:
    """Run one spec; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    warnings.filterwarnings("ignore", module="monai|torch|nibabel")
    if len(argv) != 2 or argv[0] != "predict":
        logger.error("usage: python -m autoseg.ensemble predict SPEC.json")
        return 2
    try:
        spec = read_json(argv[1])
        missing = {"bundles", "cases", "outputs", "results"} - set(spec)
        if missing:
            raise InputError([Fault(argv[1], key, "is missing") for key in sorted(missing)])
        done = run(spec)
    except AutosegError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0 if done.predictions else 1


def run(spec: dict[str, Any]) -> Predictions:
    """Predict what the spec asks and write its results file."""
    progress = Path(spec["progress"]) if spec.get("progress") else None
    if progress:
        progress.parent.mkdir(parents=True, exist_ok=True)
        progress.unlink(missing_ok=True)  # an earlier try's
    started = time.monotonic()

    def listen(event: Event) -> None:
        if progress and event.kind == "progress":
            seconds = round(time.monotonic() - started, 2)
            line = {"step": event.facts["done"], "num_iterations": event.facts["total"], "seconds": seconds}
            with open(progress, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    done = predict_cases(
        spec["bundles"],
        [from_plain(Case, case) for case in spec["cases"]],
        lambda case: Path(spec["outputs"][case.id]),
        mode=spec.get("mode", "mean"),
        scratch=Path(spec["scratch"]) if spec.get("scratch") else None,
        notify=listen,
        with_uncertainty=bool(spec.get("uncertainty")),
    )
    write_json(spec["results"], done)
    return done


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
