"""`python -m autoseg.ensemble predict|select SPEC.json`: the processes in which a prediction or a selection job runs.

predict: bundles (folders), cases (records), outputs (case id -> file), combination (see `Combination`), scratch
(folder), results (the JSON file to write: predictions, errors and expected Dice by case id, members left out),
uncertainty (whether maps of it are wanted), progress (metrics.jsonl, a line a case). Exit code 0 where a case was
predicted, 1 where none was, else that of the error.
select: families (name -> fold -> bundle), cases (id -> fold), labels and regions (what is scored), networks (records
of `Network`, the best first), n_best, seconds (most to predict a case, or null), given and method (members'
weights that are chosen already, or null), deadline (seconds since the epoch, or null), results (the JSON file to write:
a `Selection`, or the reason why there is none).
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.bundles.marks import is_foreign_bundle
from autoseg.engine.lean import start_lean
from autoseg.errors import AutosegError, Fault, InputError, NoResultError
from autoseg.records import Case, Event, from_plain
from autoseg.workspace import read_json, write_json

if TYPE_CHECKING:
    from autoseg.ensemble.predict import Predictions

logger = logging.getLogger("autoseg.ensemble")
NEEDED = {"predict": {"bundles", "cases", "outputs", "results"}}
NEEDED["select"] = {"families", "cases", "labels", "regions", "networks", "n_best", "results"}


def main(argv: list[str]) -> int:
    """Run one spec; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    warnings.filterwarnings("ignore", module="monai|torch|nibabel")
    if len(argv) != 2 or argv[0] not in NEEDED:
        logger.error("usage: python -m autoseg.ensemble predict|select SPEC.json")
        return 2
    try:
        spec = read_json(argv[1])
        missing = NEEDED[argv[0]] - set(spec)
        if missing:
            raise InputError([Fault(argv[1], key, "is missing") for key in sorted(missing)])
        if argv[0] == "select":
            choose(spec)
            return 0
        done = run(spec)
    except AutosegError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0 if done.predictions else 1


def choose(spec: dict[str, Any]) -> None:
    """Choose as the spec asks and write its results file."""
    from autoseg.ensemble.answers import Answers, NoTimeError
    from autoseg.ensemble.methods import Methods, Network
    from autoseg.ensemble.selecting import select
    from autoseg.evaluation import Scored

    families = {
        name: {int(fold): Path(bundle) for fold, bundle in folds.items()} for name, folds in spec["families"].items()
    }
    names = {int(key): str(name) for key, name in spec["labels"].items()}
    scored = Scored(names, tuple(tuple(int(v) for v in values) for values in spec["regions"]))
    deadline, seconds = (math.inf if spec.get(key) is None else float(spec[key]) for key in ("deadline", "seconds"))
    networks = [from_plain(Network, one) for one in spec["networks"]]
    try:
        answers = Answers(families, spec["cases"], scored, deadline)
        if not spec.get("given") and networks[0].family not in answers.families:
            raise NoResultError(f"too few probabilities of {networks[0].family}, the best family, are kept")
        heard = [one for one in networks if one.family in answers.families]
        methods = Methods(answers, heard, int(spec["n_best"]), seconds)
        found: Any = select(answers, methods, spec.get("given"), spec.get("method") or "")
    except NoResultError as error:  # which is an answer, too
        logger.warning("%s", error)
        found = {"reason": str(error), "no_time": isinstance(error, NoTimeError)}
    write_json(spec["results"], found)


def run(spec: dict[str, Any]) -> Predictions:
    """Predict what the spec asks and write its results file."""
    if not any(is_foreign_bundle(Path(bundle)) for bundle in spec["bundles"]):  # whose code may need anything of MONAI
        start_lean()
    from autoseg.engine.combination import Combination
    from autoseg.ensemble.predict import predict_cases

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
        combination=Combination.of(spec.get("combination") or {}),
        scratch=Path(spec["scratch"]) if spec.get("scratch") else None,
        notify=listen,
        with_uncertainty=bool(spec.get("uncertainty")),
    )
    write_json(spec["results"], done)
    return done


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
