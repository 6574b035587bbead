"""The job of a foreign bundle: its own train.py as a process, then its validation fold scored as ours are."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from monai.auto3dseg import algo_from_json

from autoseg.engine.entry import score_validation
from autoseg.engine.foreign import ForeignBundle, config_files, open_bundle
from autoseg.workspace import write_json

logger = logging.getLogger(__name__)


SCORING = 0.15  # of the time, for the validation fold
LEAST_SCORING, GRACE = 5.0, 10.0  # seconds: at least for that; between SIGTERM and SIGKILL
SIGN_SECONDS = 20.0  # between two signs of life for one that says nothing, and is ended in time anyway


def train_foreign(root: str | Path, deadline: float | None = None) -> int:
    """Train and score the bundle at `root`; returns the exit code of its train.py. Writes scores.json, validation/.

    By `deadline` (seconds since the epoch) all must be over: a training that goes on for too long is ended, and what
    it has saved by then is scored. One that is started again finds its folder as it left it.
    """
    bundle = open_bundle(root)
    assert isinstance(bundle, ForeignBundle)
    started = time.monotonic()
    code = _run(command(bundle), bundle.root, deadline)
    if code:
        return code if code > 0 else 128 - code
    seconds = round(time.monotonic() - started, 1)
    try:
        score_validation(bundle, {"seconds": seconds})
    except Exception:  # its inference may be broken where its training is not
        logger.exception("the validation fold could not be predicted; its own score counts")
        algo, _ = algo_from_json(str(bundle.root / "algo_object.json"))
        found = {"mean_dice": float(algo.get_score()), "dice": {}, "cases": [], "seconds": seconds, "predicts": False}
        write_json(bundle.root / "scores.json", found)
    return 0


def _run(argv: list[str], folder: Path, deadline: float | None) -> int:
    """The exit code of a process; 0 where its time was over, and it was ended."""
    with subprocess.Popen(argv, cwd=folder) as process:
        if deadline is None:
            return process.wait()
        left = deadline - time.time()
        end = time.monotonic() + max(0.0, left - max(LEAST_SCORING, SCORING * left))
        while (rest := end - time.monotonic()) > 0:
            try:
                return process.wait(min(SIGN_SECONDS, rest))
            except subprocess.TimeoutExpired:
                logger.info("it trains, and has %.0f s left", max(0.0, end - time.monotonic()))
        logger.warning("its time is over: the training is ended, and what it has saved counts")
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    return 0


def command(bundle: ForeignBundle) -> list[str]:
    """`train.py run` as MONAI's AutoRunner starts it: the configurations and every list as one quoted word."""
    words: dict[str, Any] = {"config_file": config_files(bundle.root), **bundle.overrides}
    texts = {key: repr(",".join(map(str, v))) if isinstance(v, list) else str(v) for key, v in words.items()}
    script = bundle.root / "scripts" / "train.py"
    return [sys.executable, str(script), "run", *(f"--{key}={text}" for key, text in texts.items())]
