"""How fast a bundle trains and predicts on this machine: a few steps and one case, of which nothing is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from autoseg.bundles.marks import bundle_settings
from autoseg.engine.budget import seconds_of
from autoseg.engine.bundle import Bundle
from autoseg.engine.memory import used_memory
from autoseg.engine.predictor import Predictor
from autoseg.engine.trainer import Trainer
from autoseg.planning.windows import LEVELS, fewer_windows, passes
from autoseg.records import Case, Speed

SECONDS = 4.0  # of steps
WARM = 2  # steps that are not counted: memory is found, kernels are chosen
MOST_STEPS = 30
SCORING = 0.03  # seconds: writing a case, and its Dice


def measure(root: Path, seconds: float = SECONDS) -> Speed:
    """Train the bundle at `root` for about `seconds`, predict a typical case in all and in the fewest windows.

    Its files stay as they are; the windows that weights of before were scored in do not count.
    """
    planned = bundle_settings(root)
    trainer = Trainer(Bundle.load(root, {key: planned[key] for key in ("overlap", "mirror_axes_inference")}))
    start = time.time() - psutil.Process().create_time()
    steps = trainer.rehearse(seconds, MOST_STEPS)
    memory, bundle, network = used_memory(trainer.device), trainer.bundle, trainer.network.eval()
    case, shape = _typical(trainer)

    def predict(**windows: Any) -> Callable[[], object]:
        asked = Bundle(bundle.root, {**bundle.settings, **windows})
        predictor = Predictor([asked], trainer.device, networks={bundle.root: network})
        return lambda: predictor.predict(case, keep=True)

    took = seconds_of(predict())
    fewer, least = fewer_windows(bundle.settings, LEVELS[-1]), took
    if passes(shape, {**bundle.settings, **fewer}) < passes(shape, bundle.settings):
        least = seconds_of(predict(**fewer), times=1)
    counted = steps[WARM:] or steps
    return Speed(start, statistics.median(counted), took + SCORING, memory, shape, least + SCORING)


def _typical(trainer: Trainer) -> tuple[Case, tuple[int, ...]]:
    """Of the cases that are validated, else of all, the one whose number of windows is nearest to the mean; its shape.

    What one case takes stands for all: the smallest or the largest would be wrong by what it has in windows.
    """
    shapes = {case.id: tuple(case.label.shape) for case in trainer.validation or trainer.training}
    counts = {name: passes(shape, trainer.settings) for name, shape in shapes.items()}
    mean = statistics.fmean(counts.values())
    name = min(counts, key=lambda one: abs(counts[one] - mean))
    return next(case for part in trainer.bundle.cases() for case in part if case.id == name), shapes[name]
