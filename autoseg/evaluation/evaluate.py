"""Score predictions against references, case by case."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from autoseg.errors import Fault, Faults, InputError
from autoseg.evaluation.label_maps import WARN_SHIFT, onto_grid_of, read_label_map
from autoseg.evaluation.matching import Pair, match_folders
from autoseg.evaluation.metrics import METRICS, evaluate_case, label_values
from autoseg.evaluation.results import CaseScore, Evaluation, summarize
from autoseg.records import Case, Event

Notify = Callable[[Event], None]
Labels = Mapping[int, str] | Sequence[int]
MOST_VALUES = 512  # more different values than any label map has: an image was given as reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Compared:
    """What came of one pair: the metrics by label, the values of both files, and how far in voxels they lie apart."""

    metrics: dict[int, dict[str, float]]
    predicted: frozenset[int]
    true: frozenset[int]
    shift: float


def evaluate_folder(
    predictions: str | Path,
    references: str | Path | Sequence[Case],
    *,
    labels: Labels | None = None,
    tolerance_mm: float = 1.0,
    workers: int = 1,
    notify: Notify | None = None,
) -> Evaluation:
    """`evaluate_pairs` of the files that `match_folders` pairs."""
    pairs = match_folders(predictions, references)
    return evaluate_pairs(pairs, labels=labels, tolerance_mm=tolerance_mm, workers=workers, notify=notify)


def evaluate_pairs(
    pairs: Sequence[Pair],
    labels: Labels | None = None,
    tolerance_mm: float = 1.0,
    workers: int = 1,
    notify: Notify | None = None,
) -> Evaluation:
    """Score every (case, prediction, reference); one InputError holds the faults of all that cannot be compared.

    `labels`: the values to score, with their names if they have any; without, or empty, the values that the references
    hold, and then a value that stands in predictions alone is a fault. `workers` cases are in memory at a time; they
    run in threads, since decompression, comparisons and neighbour searches release Python's lock.
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

    compared = _compare_all(pairs, sorted(names), tolerance_mm, workers, notify, faults)
    in_references = {value for item in compared.values() for value in item.true}
    if not names:
        names = {value: f"class_{value}" for value in sorted(in_references)}
        for _, path, _ in pairs:
            _refuse_unknown(path, compared, names, faults)
        if not names and not faults:
            faults.add("", "labels", "no reference holds a label: all are empty")
        faults.raise_if_any()
    warnings = _warnings(pairs, compared, names, in_references)
    for warning in warnings:
        logger.warning(warning)
        notify(Event("warning", warning))
    scores = [_score(case, value, compared[str(path)]) for case, path, _ in pairs for value in names]
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
    pairs: Sequence[Pair], values: Sequence[int], tolerance_mm: float, workers: int, notify: Notify, faults: Faults
) -> dict[str, _Compared]:
    """By prediction, what came of each pair; raises once all were tried if any cannot be compared."""
    compared: dict[str, _Compared] = {}
    failed: dict[str, InputError] = {}
    pool = ThreadPoolExecutor(max(1, min(workers, len(pairs))))
    try:
        futures = {pool.submit(_compare, str(p), str(r), values, tolerance_mm): str(p) for _, p, r in pairs}
        for done, future in enumerate(as_completed(futures), 1):
            try:
                compared[futures[future]] = future.result()
            except InputError as error:
                failed[futures[future]] = error
            notify(Event("progress", "evaluation", {"stage": "evaluation", "done": done, "total": len(pairs)}))
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, what has not begun is not begun
    for _, path, _ in pairs:
        if str(path) in failed:
            faults.extend(failed[str(path)].faults)
    faults.raise_if_any()
    return compared


def _compare(prediction_path: str, reference_path: str, values: Sequence[int], tolerance_mm: float) -> _Compared:
    maps = []
    faults = Faults()
    for path in (prediction_path, reference_path):
        try:
            maps.append(read_label_map(path))
        except InputError as error:
            faults.extend(error.faults)
    faults.raise_if_any()
    prediction, reference = maps
    reference, shift = onto_grid_of(prediction, reference)
    predicted, true = label_values(prediction.data), label_values(reference.data)
    for path, found in ((prediction_path, predicted), (reference_path, true)):
        if not values and len(found) > MOST_VALUES:
            raise InputError([Fault(path, "labels", f"holds {len(found)} different values: is this an image?")])
    scored = list(values) or sorted({*predicted, *true})
    metrics = evaluate_case(prediction.data, reference.data, reference.spacing, scored, tolerance_mm)
    by_value = {value: metrics[str(value)] for value in scored}
    return _Compared(by_value, frozenset(predicted), frozenset(true), shift)


def _refuse_unknown(path: str, compared: Mapping[str, _Compared], names: Mapping[int, str], faults: Faults) -> None:
    unknown = sorted(compared[str(path)].predicted - set(names))
    if unknown:
        message = f"holds {_list(unknown)}, which no reference holds ({_list(sorted(names)) or 'all are empty'})"
        faults.add(path, "labels", f"{message}: give the labels to score, or relabel it")


def _warnings(
    pairs: Sequence[Pair], compared: Mapping[str, _Compared], names: Mapping[int, str], in_references: set[int]
) -> list[str]:
    """One sentence a kind, however many cases it concerns."""
    warnings = []
    strange: dict[str, frozenset[int]] = {}
    for case, path, _ in pairs:
        unknown = compared[str(path)].predicted - set(names) - in_references
        if unknown:
            strange[case] = unknown
    if strange:
        values = sorted({value for found in strange.values() for value in found})
        warnings.append(
            f"{_cases(strange)}: predictions hold {_list(values)}, which is neither a label nor in any reference; "
            "it is taken as background"
        )
    apart = [case for case, path, _ in pairs if compared[str(path)].shift > WARN_SHIFT]
    if apart:
        worst = max(compared[str(path)].shift for _, path, _ in pairs)
        warnings.append(f"{_cases(apart)}: affines differ by up to {worst:.2g} of a voxel; taken as one grid")
    found = {value for item in compared.values() for value in item.predicted | item.true}
    nowhere = [f"{value} ({name})" for value, name in names.items() if value not in found]
    if nowhere:
        warnings.append(f"no file holds label {', '.join(nowhere)}: it has no scores")
    return warnings


def _cases(names: Sequence[str] | Mapping[str, frozenset[int]]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown} and {len(names) - 3} more cases" if len(names) > 3 else shown


def _list(values: Sequence[int]) -> str:
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return ", ".join(str(value) for value in values[:10]) + more


def _score(case: str, value: int, item: _Compared) -> CaseScore:
    there = (value in item.predicted, value in item.true)
    presence = {(True, True): "both", (False, True): "missed", (True, False): "spurious", (False, False): "absent"}[
        there
    ]
    return CaseScore(case, value, presence, **item.metrics.get(value, dict.fromkeys(METRICS, math.nan)))
