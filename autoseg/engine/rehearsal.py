"""How fast a bundle trains and predicts on this machine: a few steps and one case, of which nothing is kept."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psutil

from autoseg.engine.budget import seconds_of
from autoseg.engine.bundle import Bundle
from autoseg.engine.memory import used_memory
from autoseg.engine.predictor import Predictor
from autoseg.engine.trainer import Trainer
from autoseg.records import Speed

SECONDS = 4.0  # of steps
WARM = 2  # steps that are not counted: memory is found, kernels are chosen
MOST_STEPS = 30
SCORING = 0.03  # seconds: writing a case, and its Dice


def measure(root: Path, seconds: float = SECONDS) -> Speed:
    """Train the bundle at `root` for about `seconds` and predict one case. Its files stay as they are."""
    trainer = Trainer(Bundle.load(root))
    start = time.time() - psutil.Process().create_time()
    steps = trainer.rehearse(seconds, MOST_STEPS)
    memory, bundle = used_memory(trainer.device), trainer.bundle
    training, validation = bundle.cases()
    predictor = Predictor([bundle], trainer.device, networks={bundle.root: trainer.network.eval()})
    case = (validation or training)[0]
    took = seconds_of(lambda: predictor.predict(case, keep=True))
    counted, shape = steps[WARM:] or steps, tuple(bundle.preprocess(case).shape[1:])
    return Speed(start, statistics.median(counted), took + SCORING, memory, shape)
