"""Folds: check the ones given, make them where there are none."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoseg.datalist.complaints import SHOWN, Complaints, Entry, some
from autoseg.errors import Fault, InputError
from autoseg.records import Case, Datalist

logger = logging.getLogger(__name__)

DEFAULT_FOLDS = 5


def check_folds(
    entries: Sequence[Entry], written: Any, wanted: int | None, train_on_all: bool, complaints: Complaints
) -> int:
    """The number of folds to train, 0 where they are still to be made; `written` is the file's own num_fold."""
    training = [e.case for e in entries if e.section == "training"]
    validation = [e.case for e in entries if e.section == "validation"]
    given = sorted({case.fold for case in training if case.fold is not None})
    _check_patients(entries, complaints, folds_used=not validation and not train_on_all)
    if wanted is not None and wanted < 1:
        complaints.add("faulty numbers", "num_fold", f"{wanted} is not a number of folds")
    if written is not None and (not isinstance(written, int) or isinstance(written, bool) or written < 1):
        complaints.add("faulty numbers", "num_fold", f"{written!r} is not a number of folds")
        written = None
    if train_on_all:
        return 1
    if validation:
        return wanted or written or 1
    if not given:
        if written is not None and wanted is None:
            complaints.add("faulty folds", "num_fold", "without folds in the entries it belongs to the configuration")
        reason = too_few(by_patient(training), wanted)
        if reason and all(case.image for case in training) and training and "faulty folds" not in complaints.by_kind:
            complaints.add("faulty folds", "num_fold", reason)
        return 0
    if "faulty folds" not in complaints.by_kind:
        without = [e.where for e in entries if e.section == "training" and e.case.fold is None]
        if without and "unknown keys" not in complaints.by_kind:  # of which one may be a misspelt `fold`
            shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            message = f"{len(without)} of {len(training)} cases have no fold, the others have: {shown}"
            complaints.add("faulty folds", "training", message)
        if given != list(range(len(given))):
            gaps = sorted(set(range(min(given[-1], len(given) + SHOWN))) - set(given))
            message = f"the folds {some(given)} leave out {some(gaps)}: they are numbered 0, 1, 2, ..."
            complaints.add("faulty folds", "training", message)
        elif given == [0]:
            message = "all cases are in fold 0: leave `fold` out, or give a validation list, or train on all"
            complaints.add("faulty folds", "training", message)
        if wanted is not None and wanted > len(given):
            complaints.add("faulty folds", "num_fold", f"{wanted} folds are asked for, the datalist has {len(given)}")
    return wanted or min(written or len(given), len(given))


def _check_patients(entries: Sequence[Entry], complaints: Complaints, folds_used: bool) -> None:
    """A patient whose cases are both trained on and validated or tested on makes the scores too good."""
    parts: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for entry in entries:
        if entry.case.patient:
            parts[entry.case.patient][entry.section] |= {-1 if entry.case.fold is None else entry.case.fold}
    for patient, sections in parts.items():
        folds = sorted(sections["training"] - {-1})
        if folds_used and len(folds) > 1:
            message = f"patient '{patient}' is in the folds {some(folds)}: validation would see trained patients"
            complaints.add("patients in several folds", "training", message)
        if sections["training"] and sections["validation"]:
            complaints.add("patients in several lists", "validation", f"patient '{patient}' is in training, too")
        if sections["training"] and sections["testing"]:
            logger.warning("patient '%s' is in training and testing: its test scores are too good", patient)


def by_patient(cases: Iterable[Case]) -> dict[tuple[str, str], list[Case]]:
    """Cases by patient; a case of unknown patient is one of its own."""
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        groups["patient" if case.patient else "case", case.patient or case.id].append(case)
    return groups


def too_few(groups: Mapping[Any, Sequence[Case]], num_fold: int | None) -> str:
    """Why these patients cannot be split, or the empty string. Without a number asked for, two suffice."""
    needed = num_fold if num_fold and num_fold > 1 else 2
    if len(groups) >= needed:
        return ""
    hint = "" if needed > 2 else "; train on all of them, or give a validation list"
    return f"{needed} folds need as many patients, there {'is' if len(groups) == 1 else 'are'} {len(groups)}{hint}"


def make_folds(
    datalist: Datalist, counts: Mapping[str, Mapping[int, int]], num_fold: int | None = None, seed: int = 0
) -> Datalist:
    """Give every training case a fold where none are given: deterministic, by patient, balanced by label content.

    `counts` holds each case's number of voxels by label value. Patients are dealt, those with most content first,
    each to the fold that lacks most: of the folds with fewest cases, the one with least of the labels it brings. The
    order of the cases does not matter, `seed` only to patients of equal content. Without `num_fold` there are five
    folds, or as many as patients; with 1 the cases are split so, and fold 0 alone is trained (`num_fold` 1).
    """
    if datalist.num_fold:
        return datalist
    groups = by_patient(datalist.training)
    reason = too_few(groups, num_fold)
    if reason:
        raise InputError([Fault(datalist.path, "num_fold", reason)])
    split = num_fold if num_fold and num_fold > 1 else min(DEFAULT_FOLDS, len(groups))
    values = sorted({value for count in counts.values() for value in count if value})
    content = {
        name: np.array([len(cases), *(sum(counts.get(c.id, {}).get(v, 0) for c in cases) for v in values)], float)
        for name, cases in groups.items()
    }
    total = np.maximum(sum(content.values(), np.zeros(len(values) + 1)), 1.0)
    names = [sorted(groups)[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    names.sort(key=lambda name: -float((content[name] / total).sum()))
    filled = np.zeros((split, len(values) + 1))
    fold_of: dict[str, int] = {}
    for name in names:
        loads = filled[:, 1:] / total[1:] @ (content[name][1:] / total[1:])
        fold = min(range(split), key=lambda f: (filled[f, 0], float(loads[f]), f))
        filled[fold] += content[name]
        fold_of |= {case.id: fold for case in groups[name]}
    training = tuple(replace(case, fold=fold_of[case.id]) for case in datalist.training)
    return replace(datalist, training=training, num_fold=num_fold or split)
