"""Which cases a sweep sees, and which it is judged by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autoseg.datalist import make_folds
from autoseg.datalist.folds import by_patient
from autoseg.errors import Fault, InputError
from autoseg.records import Case, Datalist

FEWEST = 3  # patients: two folds to search by, one to judge by


def search_split(datalist: Datalist, held_out: float | None, seed: int) -> Datalist:
    """A datalist whose `training` cases, with folds, are what trials see; `testing` those that no trial sees.

    Held out is the last fold of three or more, or the validation list where there is one, or, with `held_out`, that
    share of the patients. Where the run has too few folds, the sweep has folds of its own. InputError where there are
    too few patients.
    """
    training, unseen = list(datalist.training), [case for case in datalist.validation if case.label]
    groups = by_patient(training)
    if len(groups) < FEWEST:
        message = f"a sweep needs {FEWEST} patients with labels at least, there are {len(groups)}"
        raise InputError([Fault(datalist.path, "training", message)])
    if held_out is not None:
        names = [sorted(groups)[i] for i in np.random.default_rng(seed).permutation(len(groups))]
        count = min(max(1, round(held_out * len(names))), len(names) - 2)
        unseen = [case for name in names[:count] for case in groups[name]]
    folds = {case.fold for case in training}
    if held_out is None and not unseen and (len(folds) < 3 or None in folds):
        training, folds = _with_folds(datalist, training, seed)
    if held_out is None and not unseen:
        last = max(fold for fold in folds if fold is not None)
        unseen = [case for case in training if case.fold == last]
    ids = {case.id for case in unseen}
    seen = [case for case in training if case.id not in ids]
    folds = {case.fold for case in seen}
    if len(folds) < 2 or None in folds:
        seen, folds = _with_folds(datalist, seen, seed)
    number = {fold: place for place, fold in enumerate(sorted(fold for fold in folds if fold is not None))}
    return replace(
        datalist,
        training=tuple(replace(case, fold=number[case.fold]) for case in seen if case.fold is not None),
        validation=(),
        testing=tuple(replace(case, fold=None) for case in unseen),
        num_fold=len(number),
    )


def _with_folds(datalist: Datalist, cases: list[Case], seed: int) -> tuple[list[Case], set[int | None]]:
    bare = replace(
        datalist, training=tuple(replace(case, fold=None) for case in cases), validation=(), num_fold=0, testing=()
    )
    made = make_folds(bare, {}, None, seed).training
    return list(made), {case.fold for case in made}
