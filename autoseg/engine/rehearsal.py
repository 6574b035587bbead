"""How fast a bundle trains and predicts on this machine: a few steps and one case, of which nothing is kept."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psutil

from autoseg.engine.budget import scoring_seconds
from autoseg.engine.bundle import Bundle
from autoseg.engine.memory import used_memory
from autoseg.engine.trainer import Trainer
from autoseg.engine.validation import validate_cached
from autoseg.records import Speed

SECONDS = 4.0  # of steps
WARM = 2  # steps that are not counted: memory is found, kernels are chosen
MOST_STEPS = 30


def measure(root: Path, seconds: float = SECONDS) -> Speed:
    """Train the bundle at `root` for about `seconds` and validate one case. Its files stay as they are."""
    trainer = Trainer(Bundle.load(root))
    start = time.time() - psutil.Process().create_time()
    steps = trainer.rehearse(seconds, MOST_STEPS)
    network, cases, took = trainer.network.eval(), (trainer.validation or trainer.training)[:1], 0.0
    for _ in range(2):  # the first time is slow
        before = time.monotonic()
        validate_cached(network, cases, trainer.settings, trainer.device, trainer.autocast)
        took = time.monotonic() - before
    case = scoring_seconds(trainer.settings, took, [case.label.shape for case in cases])
    counted = steps[WARM:] or steps
    return Speed(start, statistics.median(counted), case, used_memory(trainer.device))
