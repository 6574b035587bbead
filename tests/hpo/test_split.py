"""Which cases a sweep sees, and which no trial sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from autoseg.errors import InputError
from autoseg.hpo.split import search_split
from autoseg.records import Case, Datalist


def case(name: str, fold: int | None = None, patient: str | None = None, label: bool = True) -> Case:
    return Case(name, (f"/data/{name}.nii.gz",), f"/data/{name}_seg.nii.gz" if label else None, fold, patient)


def datalist(training: Sequence[Case], validation: Sequence[Case] = (), num_fold: int = 0) -> Datalist:
    testing = (case("unseen"),)
    return Datalist("/d.json", "/data", tuple(training), tuple(validation), testing, {1: "organ"}, num_fold)


def folded(number: int, folds: int, num_fold: int | None = None) -> Datalist:
    cases = [case(f"c{place:02d}", place % folds) for place in range(number)]
    return datalist(cases, num_fold=folds if num_fold is None else num_fold)


def bare(number: int) -> Datalist:
    return datalist([case(f"c{place:02d}") for place in range(number)])


def checked(given: Datalist, held_out: float | None = None, seed: int = 0) -> Datalist:
    """The split, of which what must hold of every split has been asserted."""
    found = search_split(given, held_out, seed)
    seen, unseen = {c.id for c in found.training}, {c.id for c in found.testing}
    assert seen and unseen and not seen & unseen and found.validation == ()
    assert "unseen" not in seen | unseen, "the run's own testing cases are nobody's before its end"
    assert sorted({c.fold for c in found.training if c.fold is not None}) == list(range(found.num_fold))
    assert found.num_fold >= 2 and all(c.fold is not None for c in found.training)
    assert all(c.fold is None and c.label for c in found.testing)
    parts: dict[str, set[int | None]] = {}
    for one in (*found.training, *found.testing):
        if one.patient:
            parts.setdefault(one.patient, set()).add(one.fold)
    assert all(len(part) == 1 for part in parts.values()), "a patient is in two parts"
    for fold in range(found.num_fold):
        training, validation = found.split(fold)
        assert training and validation and not {c.id for c in training} & {c.id for c in validation}
    assert search_split(given, held_out, seed) == found
    return found


@pytest.mark.parametrize("num_fold", [5, 1, 2])
def test_the_last_of_the_folds_given_is_held_out(num_fold: int) -> None:
    """However many of them the run trains."""
    given = folded(20, 5, num_fold)
    found = checked(given)
    assert {c.id for c in found.testing} == {c.id for c in given.training if c.fold == 4}
    assert found.training == tuple(c for c in given.training if c.fold != 4) and found.num_fold == 4


@pytest.mark.parametrize("given", [bare(10), folded(10, 2), replace(bare(10), num_fold=1)], ids=["none", "two", "all"])
def test_with_fewer_than_three_folds_the_sweep_has_its_own(given: Datalist) -> None:
    found = checked(given)
    assert found.num_fold == 4 and len(found.testing) == 2 and len(found.training) == 8
    assert {c.id for c in (*found.training, *found.testing)} == {c.id for c in given.training}


def test_a_validation_list_is_what_is_held_out() -> None:
    validation = [case("v0"), case("v1"), case("v2", label=False)]
    found = checked(datalist([case(f"c{place}") for place in range(10)], validation, num_fold=1))
    assert {c.id for c in found.testing} == {"v0", "v1"} and len(found.training) == 10 and found.num_fold == 5


def test_a_validation_list_without_labels_holds_nothing_out() -> None:
    found = checked(datalist([case(f"c{place}") for place in range(10)], [case("v", label=False)], num_fold=1))
    assert all(c.id.startswith("c") for c in found.testing) and len(found.testing) == 2


@pytest.mark.parametrize(("share", "number"), [(0.2, 4), (0.01, 1), (0.5, 10), (0.99, 18)])
def test_a_share_of_the_patients_is_held_out(share: float, number: int) -> None:
    found = checked(folded(20, 5), share)
    assert len(found.testing) == number and len(found.training) == 20 - number
    assert {c.id for c in found.testing} != {c.id for c in checked(folded(20, 5), share, seed=1).testing}


def test_a_share_leaves_the_folds_as_they_are_but_for_their_numbers() -> None:
    given = datalist([case("a", 0), *(case(f"b{i}", 1) for i in range(9)), *(case(f"c{i}", 2) for i in range(9))])
    found = checked(given, 0.3, seed=next(seed for seed in range(99) if "a" in held(given, seed)))
    assert {c.id[0]: c.fold for c in found.training} == {"b": 0, "c": 1}


def held(given: Datalist, seed: int) -> set[str]:
    return {c.id for c in search_split(given, 0.3, seed).testing}


@pytest.mark.parametrize("held_out", [None, 0.25])
@pytest.mark.parametrize("folds", [None, 2, 4])
@pytest.mark.parametrize("seed", [0, 7])
def test_patients_stay_whole(held_out: float | None, folds: int | None, seed: int) -> None:
    cases = [
        case(f"c{p}{n}", None if folds is None else p % folds, f"p{p}") for p in range(12) for n in range(1 + p % 3)
    ]
    checked(datalist(cases, num_fold=folds or 0), held_out, seed)


@pytest.mark.parametrize("held_out", [None, 0.1, 0.9])
def test_three_patients_are_the_fewest(held_out: float | None) -> None:
    cases = [case(f"c{n}", patient=f"p{n % 3}") for n in range(9)]
    found = checked(datalist(cases), held_out)
    assert found.num_fold == 2 and len(found.testing) == 3
    for few in (cases[:2], [replace(c, patient=f"p{place % 2}") for place, c in enumerate(cases)], []):
        with pytest.raises(InputError, match=r"needs 3 patients with labels at least, there are [02]"):
            search_split(datalist(few), held_out, 0)


def test_the_order_of_the_cases_changes_nothing() -> None:
    given = bare(17)
    turned = replace(given, training=given.training[::-1])
    for held_out in (None, 0.3):
        one, other = checked(given, held_out), checked(turned, held_out)
        assert {c.id: c.fold for c in one.training} == {c.id: c.fold for c in other.training}
        assert {c.id for c in one.testing} == {c.id for c in other.testing}
