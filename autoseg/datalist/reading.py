"""A datalist from its JSON, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg.datalist.checks import check_files
from autoseg.datalist.complaints import Complaints, Entry, kind_of
from autoseg.datalist.folds import check_folds
from autoseg.datalist.formats import case_id
from autoseg.datalist.labels import read_labels
from autoseg.errors import Fault, InputError, nearest
from autoseg.records import Case, Datalist
from autoseg.workspace import read_json

SECTIONS = ("training", "validation", "testing")
ENTRY_KEYS = ("image", "label", "fold", "patient")
# A misspelt optional key would go unnoticed, other keys are anybody's metadata: so how near is misspelt? "patient_id"
# and "flod" are, "patient_age" and "field" are not.
CUTOFFS = {"image": 0.7, "label": 0.7, "fold": 0.7, "patient": 0.8}


def load_datalist(
    path: str | Path,
    dataroot: str | Path | None = None,
    *,
    class_names: Sequence[Any] | None = None,
    sigmoid: bool | None = None,
    train_on_all: bool | None = None,
    patient_pattern: str | None = None,
    num_fold: int | None = None,
    plain: Any = None,
) -> Datalist:
    """Read a datalist and check all that needs no image opened; raises one InputError with every fault.

    Paths are relative to `dataroot`, by default the datalist's folder. `class_names` name the declared label values
    in ascending order, or 1, 2, ... where none are declared; or they are regions, {name, index}, as the datalist's own
    labels {name: [values]} are. `sigmoid` makes a region of every label. `patient_pattern` is a regular expression,
    searched in the name of the first channel's file, whose first group (or whole match) is the patient; an entry's
    `patient` wins.
    `num_fold` is the number of folds to train: of folds given, the first ones; `Datalist.num_fold` is 0 where
    `make_folds` has still to split. `train_on_all` drops all folds, to train one network on every case.
    None leaves `train_on_all` and `num_fold` to what `plain_datalist` wrote. `plain` is what the file is going to hold:
    given that, the file itself is not read.
    """
    path = Path(path).expanduser().absolute()
    root = Path(dataroot).expanduser().absolute() if dataroot else path.parent
    plain = read_json(path) if plain is None else plain
    if not isinstance(plain, dict):
        raise InputError([Fault(str(path), "", "is not a JSON object with a list 'training'")])
    complaints = Complaints(path)
    plain = _named_sections(plain, complaints)
    reader = _Reader(root, patient_pattern, complaints)
    entries = [entry for section in SECTIONS for entry in reader.section(plain, section)]
    labels, regions = read_labels(plain.get("labels"), class_names, complaints)
    if sigmoid is False and regions:
        complaints.add("faulty regions", "sigmoid", "false, though there are regions: each is decided by itself")
    check_files(entries, root, complaints)
    if train_on_all is None:
        train_on_all = plain.get("train_on_all") is True
    folds = check_folds(entries, plain.get("num_fold"), num_fold, train_on_all, complaints)
    complaints.raise_if_any()
    sections = {name: tuple(e.case for e in entries if e.section == name) for name in SECTIONS}
    if train_on_all:
        sections["training"] = tuple(replace(case, fold=None) for case in sections["training"])
    datalist = Datalist(
        path=str(path),
        dataroot=str(root),
        training=sections["training"],
        validation=sections["validation"],
        testing=sections["testing"],
        labels=labels,
        num_fold=folds,
        regions=regions,
    )
    return with_regions(datalist) if sigmoid else datalist


def with_regions(datalist: Datalist) -> Datalist:
    """The datalist with a region of each label, where it has none."""
    regions = datalist.regions or {name: (value,) for value, name in datalist.labels.items()}
    return replace(datalist, regions=regions)


def _named_sections(plain: dict[str, Any], complaints: Complaints) -> dict[str, Any]:
    """The datalist with Decathlon's `test` named `testing`; a misspelt section or `labels` is a fault."""
    if "test" in plain and "testing" not in plain:
        plain = {**plain, "testing": plain["test"]}
    elif "test" in plain:
        complaints.add("sections", "test", "is given beside 'testing': which one?")
    misspelt = set()
    for key, value in plain.items():
        hint = _section_hint(key, value, plain)
        if hint:
            misspelt.add(hint)
            complaints.add("sections", key, f"unknown section{hint}")
    if not plain.get("training") and " (did you mean 'training'?)" not in misspelt:
        state = "is empty" if "training" in plain else "missing"
        complaints.add("sections", "training", f"{state}: there is nothing to train on")
    return plain


def _section_hint(key: str, value: Any, plain: Mapping[str, Any]) -> str:
    """The section that an unknown key misspells, if its value looks like one; other keys are metadata."""
    if key in (*SECTIONS, "test", "labels"):
        return ""
    if isinstance(value, dict):
        return nearest(key, ["labels"], 0.7) if "labels" not in plain else ""
    if not isinstance(value, list):
        return ""
    holds_cases = any(isinstance(item, dict) for item in value)
    for section in SECTIONS:
        short = section.startswith(key.lower()) and len(key) > 2
        hint = nearest(section if short else key, [section], 0.7)
        if hint and (holds_cases or section not in plain):
            return hint
    return ""


@lru_cache
def _key_hints(key: str) -> dict[str, str]:
    """By the keys of an entry that an unknown one may misspell: the hint."""
    hints = {known: nearest(key, [known], CUTOFFS[known]) for known in ENTRY_KEYS}
    return {known: hint for known, hint in hints.items() if hint}


class _Reader:
    """Entries of a datalist to cases, complaining of what they lack."""

    def __init__(self, root: Path, pattern: str | None, complaints: Complaints):
        self.root, self.complain = root, complaints.add
        self.pattern: re.Pattern[str] | None = None
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            self.complain("patterns", "patient_pattern", f"'{pattern}' is not a regular expression: {error}")

    def section(self, plain: Mapping[str, Any], name: str) -> list[Entry]:
        entries = plain.get(name, [])
        if not isinstance(entries, list):
            self.complain("sections", name, f"is {kind_of(entries)}, not a list of entries")
            return []
        return [self._entry(entry, f"{name}[{i}]", name) for i, entry in enumerate(entries)]

    def _entry(self, plain: Any, where: str, section: str) -> Entry:
        if isinstance(plain, str) and section == "testing":
            plain = {"image": plain}  # as in the Decathlon's dataset.json
        if not isinstance(plain, dict):
            self.complain("faulty entries", where, f"is {kind_of(plain)}, not an object with image and label")
            return Entry(where, section, Case("", ()))
        misspelt = self._misspelt(plain, where)
        image, label, fold = plain.get("image"), plain.get("label"), plain.get("fold")
        paths = [image] if isinstance(image, str) else image
        if image is None:
            if "image" not in misspelt:
                self.complain("faulty entries", f"{where}.image", "missing")
            paths = []
        elif not isinstance(paths, list) or not paths or not all(isinstance(p, str) and p for p in paths):
            self.complain("faulty entries", f"{where}.image", "is not a path, nor a list of paths (one a channel)")
            paths = []
        if label is None and section != "testing" and "label" not in misspelt:
            self.complain("faulty entries", f"{where}.label", "missing: every training and validation case needs one")
        elif label is not None and not (isinstance(label, str) and label):
            self.complain("faulty entries", f"{where}.label", f"is {kind_of(label)}, not one path")
            label = None
        if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
            self.complain("faulty folds", f"{where}.fold", f"{fold!r} is not a fold number (0, 1, 2, ...)")
            fold = None
        files = tuple(self._absolute(p) for p in paths)
        patient = self._patient(plain.get("patient"), files, where, section)
        case = Case(case_id(files[0]) if files else "", files, self._absolute(label) if label else None, fold, patient)
        return Entry(where, section, case)

    def _misspelt(self, plain: Mapping[str, Any], where: str) -> set[str]:
        """Known keys that an unknown one stands for."""
        found = set()
        for key in plain:
            hints = {} if key in ENTRY_KEYS else _key_hints(key)
            for known in hints.keys() - plain.keys():
                found.add(known)
                self.complain("unknown keys", f"{where}.{key}", f"unknown key{hints[known]}")
        return found

    def _patient(self, given: Any, files: Sequence[str], where: str, section: str) -> str | None:
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
                self.complain("faulty entries", f"{where}.patient", f"is {kind_of(given)}, not a name or number")
            return str(given)
        if self.pattern is None or not files:
            return None
        name = Path(files[0]).name
        found = self.pattern.search(name)
        patient = found.group(1 if self.pattern.groups else 0) if found else None
        if not patient and section != "testing":
            message = f"patient_pattern '{self.pattern.pattern}' finds no patient in {name}"
            self.complain("cases of unknown patients", where, message)
        return patient or None

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.root, os.path.expanduser(path)))


def plain_datalist(datalist: Datalist) -> dict[str, Any]:
    """Auto3DSeg's JSON of a datalist, which `load_datalist` reads back; paths below dataroot relative to it."""

    def entry(case: Case) -> dict[str, Any]:
        image = [_below(p, datalist.dataroot) for p in case.image]
        plain: dict[str, Any] = {"image": image[0] if len(image) == 1 else image}
        plain |= {"label": _below(case.label, datalist.dataroot)} if case.label else {}
        plain |= {"fold": case.fold} if case.fold is not None else {}
        return plain | ({"patient": case.patient} if case.patient else {})

    plain: dict[str, Any] = {}
    if datalist.labels:
        plain["labels"] = {"0": "background", **{str(value): name for value, name in datalist.labels.items()}}
        plain["labels"] |= {name: list(values) for name, values in datalist.regions.items()}
    if datalist.validation or any(case.fold is not None for case in datalist.training):
        plain |= {"num_fold": datalist.num_fold} if datalist.num_fold else {}
    elif datalist.num_fold:
        plain["train_on_all"] = True
    sections = {name: [entry(case) for case in getattr(datalist, name)] for name in SECTIONS}
    if not datalist.validation:
        del sections["validation"]
    return plain | sections


def _below(path: str, root: str) -> str:
    relative = os.path.relpath(path, root)
    return path if relative.startswith("..") else Path(relative).as_posix()
