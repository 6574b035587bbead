"""Score predictions against references, case by case."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

from autoseg.errors import Fault, Faults, InputError
from autoseg.evaluation.label_maps import WARN_SHIFT, LabelMap, onto_grid_of
from autoseg.evaluation.matching import Pair, match_folders
from autoseg.evaluation.metrics import ABSENT
from autoseg.evaluation.results import CaseScore, Evaluation, summarize
from autoseg.evaluation.scored import Scored
from autoseg.records import Case, Event

Notify = Callable[[Event], None]
Labels = Mapping[int, str] | Sequence[int]
MOST_VALUES = 512  # more different values than any label map has: an image was given as reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Compared:
    """What came of one pair: its faults, the values of both files (None: not read), the metrics by label where the
    two could be compared, and how far in voxels they lie apart."""

    faults: tuple[Fault, ...] = ()
    predicted: frozenset[int] | None = None
    true: frozenset[int] | None = None
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    shift: float = 0.0


def evaluate_folder(
    predictions: str | Path,
    references: str | Path | Sequence[Case],
    *,
    labels: Labels | None = None,
    tolerance_mm: float = 1.0,
    workers: int = 1,
    notify: Notify | None = None,
    regions: Sequence[Sequence[int]] = (),
) -> Evaluation:
    """`evaluate_pairs` of the files that `match_folders` pairs."""
    pairs = match_folders(predictions, references)
    return evaluate_pairs(pairs, labels, tolerance_mm, workers, notify, regions)


def evaluate_pairs(
    pairs: Sequence[Pair],
    labels: Labels | None = None,
    tolerance_mm: float = 1.0,
    workers: int = 1,
    notify: Notify | None = None,
    regions: Sequence[Sequence[int]] = (),
) -> Evaluation:
    """Score every (case, prediction, reference); one InputError holds the faults of all that cannot be compared.

    `labels`: the values to score, with their names if they have any; without, or empty, the values that the references
    hold, and then a value that stands in predictions alone is a fault. `workers` cases are in memory at a time; they
    run in threads, since decompression, comparisons and neighbour searches release Python's lock.

    `regions`: sets of label values to score instead, and `labels` are their names by number, from 1 on. A prediction
    holds their values, or one mask a region.
    """
    notify = notify or _silent
    faults = Faults()
    names = _names(labels, faults)
    if not math.isfinite(tolerance_mm) or tolerance_mm < 0:
        faults.add("", "tolerance_mm", f"{tolerance_mm} is not a length in mm")
    if not pairs:
        faults.add("", "pairs", "there is no case to evaluate")
    for case, times in Counter(pair[0] for pair in pairs).items():
        if times > 1:
            faults.add("", "pairs", f"case '{case}' is given {times} times")
    faults.raise_if_any()

    scored = Scored(names, tuple(tuple(region) for region in regions))
    compared = _compare_all(pairs, scored, tolerance_mm, workers, notify)
    for item in compared:
        faults.extend(item.faults)
    if not names:
        names = _found_names(pairs, compared, faults)
    faults.raise_if_any()
    warnings = _warnings([pair[0] for pair in pairs], compared, names)
    for warning in warnings:
        logger.warning(warning)
        notify(Event("warning", warning))
    scores = [_score(pair[0], value, item) for pair, item in zip(pairs, compared, strict=True) for value in names]
    return summarize(scores, {str(value): name for value, name in names.items()}, tolerance_mm, warnings)


def _silent(event: Event) -> None:
    pass


def _names(labels: Labels | None, faults: Faults) -> dict[int, str]:
    """Label value -> name, background apart."""
    given = dict(labels) if isinstance(labels, Mapping) else {value: f"class_{value}" for value in labels or ()}
    wrong = [value for value in given if isinstance(value, bool) or not isinstance(value, Integral) or value < 0]
    if wrong:
        faults.add("", "labels", f"{', '.join(map(repr, wrong))} is not a label value (1, 2, ...)")
        return {}
    return {int(value): str(given[value]) for value in sorted(given) if value != 0}


def _compare_all(
    pairs: Sequence[Pair], scored: Scored, tolerance_mm: float, workers: int, notify: Notify
) -> list[_Compared]:
    """What came of each pair, in their order."""
    pool = ThreadPoolExecutor(max(1, min(workers, len(pairs))))
    try:
        futures = [pool.submit(_compare, str(p), str(r), scored, tolerance_mm) for _, p, r in pairs]
        for done, _ in enumerate(as_completed(futures), 1):
            notify(Event("progress", "evaluation", {"stage": "evaluation", "done": done, "total": len(pairs)}))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, what has not begun is not begun


def _compare(prediction_path: str, reference_path: str, scored: Scored, tolerance_mm: float) -> _Compared:
    faults = Faults()
    prediction, predicted = _read(prediction_path, scored, faults)
    reference, true = _read(reference_path, scored, faults)
    if prediction is None or reference is None:
        return _Compared(tuple(faults.items), predicted, true)
    try:
        reference, shift = onto_grid_of(prediction, reference)
    except InputError as error:
        return _Compared(error.faults, predicted, true)
    labels = sorted(scored.names) or sorted({*(predicted or ()), *(true or ())})
    metrics = scored.metrics(prediction.data, reference.data, reference.spacing, tolerance_mm, labels)
    return _Compared((), predicted, true, metrics, shift)


def _read(path: str, scored: Scored, faults: Faults) -> tuple[LabelMap | None, frozenset[int] | None]:
    """(label map, what it holds), or None twice with the fault noted."""
    try:
        found = scored.read(path)
    except InputError as error:
        faults.extend(error.faults)
        return None, None
    values = scored.present(found.data)
    if not scored.names and len(values) > MOST_VALUES:
        faults.add(path, "labels", f"holds {len(values)} different values: is this an image?")
        return None, None
    return found, values


def _found_names(pairs: Sequence[Pair], compared: Sequence[_Compared], faults: Faults) -> dict[int, str]:
    """The labels of the references; a value that none of them holds is a fault of the prediction that does."""
    if any(item.true is None for item in compared):
        return {}  # what that reference holds is not known
    values = sorted({value for item in compared for value in item.true or ()})
    for (_, path, _), item in zip(pairs, compared, strict=True):
        unknown = sorted((item.predicted or frozenset()) - set(values))
        if unknown:
            message = f"holds {_list(unknown)}, which no reference holds ({_list(values) or 'all are empty'})"
            faults.add(path, "labels", f"{message}: give the labels to score, or relabel it")
    if not values and not faults:
        faults.add("", "labels", "no reference holds a label: all are empty")
    return {value: f"class_{value}" for value in values}


def _warnings(cases: Sequence[str], compared: Sequence[_Compared], names: Mapping[int, str]) -> list[str]:
    """One sentence a kind, however many cases it concerns."""
    warnings = []
    predicted = [item.predicted or frozenset() for item in compared]
    true = {value for item in compared for value in item.true or ()}
    strange = [values - set(names) - true for values in predicted]
    if any(strange):
        values = sorted({value for found in strange for value in found})
        where = _cases([case for case, found in zip(cases, strange, strict=True) if found])
        warnings.append(
            f"{where}: predictions hold {_list(values)}, neither a label nor in any reference: taken as background"
        )
    apart = [case for case, item in zip(cases, compared, strict=True) if item.shift > WARN_SHIFT]
    if apart:
        worst = max(item.shift for item in compared)
        warnings.append(f"{_cases(apart)}: affines differ by up to {worst:.2g} of a voxel; taken as one grid")
    found = true.union(*predicted)
    nowhere = [f"{value} ({name})" for value, name in names.items() if value not in found]
    if nowhere:
        warnings.append(f"no file holds label {', '.join(nowhere)}: it has no scores")
    return warnings


def _cases(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more cases" if len(names) > 3 else shown


def _list(values: Sequence[int]) -> str:
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return ", ".join(str(value) for value in values[:10]) + more


def _score(case: str, value: int, item: _Compared) -> CaseScore:
    there = (value in (item.predicted or ()), value in (item.true or ()))
    presence = {(True, True): "both", (False, True): "missed", (True, False): "spurious", (False, False): "absent"}[
        there
    ]
    return CaseScore(case, value, presence, **item.metrics.get(value, ABSENT))
