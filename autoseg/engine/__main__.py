"""`python -m autoseg.engine preprocess BUNDLE METRICS`: fill the cache of preprocessed cases for a bundle's data.

`python -m autoseg.engine measure BUNDLE OUTPUT`: how fast it trains and predicts here (a Speed), as JSON.
`python -m autoseg.engine search BUNDLE [SECONDS]`: find its architecture (architecture.json).
`python -m autoseg.engine train_foreign BUNDLE [--deadline SECONDS]`: train and score one of a template written for
MONAI's Auto3DSeg.
`python -m autoseg.engine torchrun PROCESSES SCRIPT ...`: a bundle's script in several processes, see `ranks.launch`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

from autoseg.engine.lean import start_lean
from autoseg.workspace import write_json


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    verb, root, *output = argv
    if verb == "torchrun":
        from autoseg.engine.ranks import launch

        return launch(root, output)
    if verb == "train_foreign":  # its code may need anything of MONAI
        from autoseg.engine.foreign_training import train_foreign

        return train_foreign(root, float(output[1]) if output[:1] == ["--deadline"] else None)
    start_lean()
    if verb == "measure":
        from autoseg.engine.rehearsal import measure

        write_json(output[0], measure(Path(root)))
        return 0
    if verb == "search":
        from autoseg.engine.entry import find_architecture

        find_architecture(Path(root), {"search_seconds": float(output[0])} if output else {})
        return 0
    preprocess(root, Path(output[0]))
    return 0


def preprocess(root: str, metrics: Path) -> None:
    """Preprocess every labelled case, one process a core; progress goes to `metrics`, a metrics.jsonl."""
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.cache import ensure_cached

    bundle = Bundle.load(root)
    datalist = bundle.datalist()
    cases = [case for case in (*datalist.training, *datalist.validation) if case.label]
    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        line = {"step": done, "num_iterations": total, "seconds": round(time.monotonic() - started, 2)}
        with open(metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    ensure_cached(bundle, cases, int(os.environ.get("OMP_NUM_THREADS", "1")), progress)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
