"""Predict cases with an ensemble of trained bundles, one case after the other; one that fails stops no other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import load_checkpoint
from autoseg.engine.classes import Classes
from autoseg.engine.combination import Combination
from autoseg.engine.foreign import ForeignBundle, open_bundle
from autoseg.engine.predictor import Predictor
from autoseg.errors import Fault, InputError, NoResultError, one_line
from autoseg.records import Case, Event
from autoseg.workspace import uncertainty_path

MODES = ("mean", "vote")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What came of it: files by case id, by case id what went wrong with the others, which members took no part.

    `expected`: by case id and label the Dice that the probabilities expect.
    """

    predictions: dict[str, Path] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    expected: dict[str, dict[int, float | None]] = field(default_factory=dict)


def predict_cases(
    bundle_dirs: Sequence[str | Path],
    cases: Sequence[Case],
    output_path: Callable[[Case], Path],
    *,
    combination: Combination | None = None,
    device: torch.device | None = None,
    scratch: Path | None = None,
    notify: Callable[[Event], None] = lambda event: None,
    with_uncertainty: bool = False,
) -> Predictions:
    """Write one label map a case to `output_path(case)`, in the geometry of its image, with the datalist's values.

    By the mean of the members' probabilities, or as `combination` says (a vote's ties go to the mean). A member whose
    weights are missing, unreadable or not finite is left out with a "warning" event; NoResultError where that leaves
    none. So is, of single cases, a foreign member that fails on them where others do not. A case that cannot be
    predicted is warned of and stands in `errors`. "progress" events count cases. Memory is bounded by one case; what is
    larger lies in files of `scratch` that vanish with the process. `with_uncertainty`: a map of percent of doubt beside
    each, see `uncertainty_path`.
    """
    combination = combination or Combination()
    if combination.mode not in MODES:
        raise InputError([Fault("", "ensemble_mode", f"'{combination.mode}' is neither mean nor vote")])
    done = Predictions()

    def leave_out(event: Event) -> None:
        done.left_out.append(event.message)
        notify(event)

    bundles = usable_bundles(bundle_dirs, leave_out)
    predictor = Predictor(bundles, device or torch_device(), combination, scratch, leave_out)
    for number, case in enumerate(cases, 1):
        path = Path(output_path(case))
        try:
            doubtful = uncertainty_path(path) if with_uncertainty else None
            done.expected[case.id] = predictor.write(case, path, doubtful).expected
        except Exception as error:  # whatever is wrong with one case, the others can be predicted
            logger.exception("%s could not be predicted", case.id)
            done.errors[case.id] = one_line(error)
            notify(Event("warning", f"{case.id} could not be predicted: {done.errors[case.id]}", {"case": case.id}))
        else:
            done.predictions[case.id] = path
            logger.info("%s: %s", case.id, path)
        facts = {"stage": "prediction", "done": number, "total": len(cases)}
        notify(Event("progress", f"{number} of {len(cases)} cases", facts))
    return done


def usable_bundles(bundle_dirs: Sequence[str | Path], notify: Callable[[Event], None]) -> list[Bundle]:
    """The bundles that can take part, those that cannot named in "warning" events; NoResultError where none can.

    InputError where two of them disagree on the label values: their probabilities cannot be averaged.
    """
    bundles = []
    for folder in bundle_dirs:
        try:
            bundle = open_bundle(folder)
            reason = member_fault(bundle)
        except InputError as error:
            reason = str(error)
        if reason:
            logger.warning("%s is left out: %s", Path(folder).name, reason)
            notify(Event("warning", f"{Path(folder).name} is left out of the ensemble: {reason}"))
        else:
            bundles.append(bundle)
    if not bundles:
        raise NoResultError("no member of the ensemble has usable weights")
    first = Classes.of(bundles[0].settings)
    faults = [
        Fault(
            str(b.root), "label_values, regions", f"{Classes.of(b.settings)} where {bundles[0].root.name} has {first}"
        )
        for b in bundles[1:]
        if Classes.of(b.settings) != first
    ]
    if faults:
        raise InputError(faults)
    return bundles


def member_fault(bundle: Bundle) -> str:
    """What keeps a bundle out of an ensemble; the empty string where nothing does. Raises what `made_inferer` does."""
    if not isinstance(bundle, ForeignBundle):
        return weights_fault(bundle.weights)
    bundle.made_inferer()
    return ""


def weights_fault(path: Path) -> str:
    """What is wrong with a file of weights; the empty string where they can be used."""
    if not path.is_file():
        return f"no weights ({path.name} is missing)"
    try:
        state = load_checkpoint(path)
    except Exception as error:  # torch raises a dozen types for a damaged file
        return f"its weights cannot be read: {one_line(error)}"
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not math.isfinite(float(value.sum())):
            return f"its weights are not finite ({name})"
    return ""
