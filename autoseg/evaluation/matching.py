"""Which prediction belongs to which reference: by case id, every one that stands alone named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.datalist import case_id
from autoseg.datalist.formats import IMAGE_ENDINGS
from autoseg.errors import Faults, nearest
from autoseg.records import Case
from autoseg.workspace import UNCERTAINTY

ENSEMBLE = "_ensemble"
SHOWN = 20  # faults of one kind that are listed one by one

Pair = tuple[str, str, str]  # case id, prediction, reference


def match_folders(predictions: str | Path, references: str | Path | Sequence[Case]) -> list[Pair]:
    """(case, prediction, reference) of every case, by case id; one InputError names all that have no partner.

    Files are searched in sub-folders too, but for those of maps of doubt. A prediction is named <case>.nii.gz or
    <case>_ensemble.nii.gz. References are a folder, or cases: of those the ones with a label count, and predictions of
    the others are left aside.
    """
    faults = Faults()
    predicted = _files(predictions, "predictions", faults)
    unlabelled: set[str] = set()
    if isinstance(references, (str, Path)):
        place = str(references)
        true = _files(references, "references", faults)
    else:
        place = "the datalist"
        true = {case.id: case.label for case in references if case.label}
        unlabelled = {case.id for case in references if not case.label}
        if not true:
            faults.add("", "references", "no case has a label: there is nothing to compare with")
    faults.raise_if_any()
    found = _by_case(predicted, set(true) | unlabelled, faults)
    alone = [case for case in found if case not in true and case not in unlabelled]
    missing = [case for case in true if case not in found]
    for case in alone[:SHOWN]:
        hint = nearest(case, missing, cutoff=0.8)
        faults.add(found[case], "references", f"no reference for case '{case}' in {place}{hint}")
    for case in missing[:SHOWN]:
        faults.add(true[case], "predictions", f"no prediction for case '{case}' in {predictions}")
    for field, rest in (("references", alone[SHOWN:]), ("predictions", missing[SHOWN:])):
        if rest:
            faults.add("", field, f"and {len(rest)} more cases without a partner")
    if len(missing) == len(true):
        faults.add(predictions, "", "no case in common: files are paired by name, <case>.nii.gz with <case>.nii.gz")
    faults.raise_if_any()
    return [(case, path, true[case]) for case, path in sorted(found.items()) if case in true]


def _files(folder: str | Path, field: str, faults: Faults) -> dict[str, str]:
    """Label files of a folder by case id; two of one id are a fault."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        faults.add(folder, field, "is a file, not a folder" if root.exists() else "no such folder")
        return {}
    found: dict[str, str] = {}
    for file in sorted(root.rglob("*")):
        if file.name.startswith(".") or not file.name.lower().endswith(IMAGE_ENDINGS) or file.is_dir():
            continue
        if file.parent.name == UNCERTAINTY and file.parent != root:
            continue
        case = case_id(file.name)
        if case in found:
            faults.add(file, field, f"case '{case}' is also that of {found[case]}; which one is meant?")
        found.setdefault(case, str(file))
    if not found:
        faults.add(folder, field, f"holds no label file ({', '.join(IMAGE_ENDINGS)})")
    return found


def _by_case(predicted: dict[str, str], known: set[str], faults: Faults) -> dict[str, str]:
    """Predictions by case id, the ending `_ensemble` taken off where no case is really called so."""
    found: dict[str, str] = {}
    for name, path in predicted.items():
        case = name if name in known else name.removesuffix(ENSEMBLE)
        if case in found:
            faults.add(path, "predictions", f"case '{case}' is also that of {found[case]}; which one is meant?")
        found.setdefault(case, path)
    return found
