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


def train_foreign(root: str | Path) -> int:
    """Train and score the bundle at `root`; returns the exit code of its train.py. Writes scores.json, validation/."""
    bundle = open_bundle(root)
    assert isinstance(bundle, ForeignBundle)
    started = time.monotonic()
    code = subprocess.run(command(bundle), cwd=bundle.root, check=False).returncode
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


def command(bundle: ForeignBundle) -> list[str]:
    """`train.py run` as MONAI's AutoRunner starts it: the configurations and every list as one quoted word."""
    words: dict[str, Any] = {"config_file": config_files(bundle.root), **bundle.overrides}
    texts = {key: repr(",".join(map(str, v))) if isinstance(v, list) else str(v) for key, v in words.items()}
    script = bundle.root / "scripts" / "train.py"
    return [sys.executable, str(script), "run", *(f"--{key}={text}" for key, text in texts.items())]
