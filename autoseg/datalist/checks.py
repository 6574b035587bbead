"""Checks of a datalist's files and labels that need no image opened."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from autoseg.datalist.complaints import Complaints, Entry, kind_of
from autoseg.datalist.formats import folder_fault

logger = logging.getLogger(__name__)


def check_files(entries: Sequence[Entry], root: Path, complaints: Complaints) -> None:
    """Missing files, channel counts, the same image twice, and two cases of one id (one would overwrite the other)."""
    files = [(f"{e.where}.image", p) for e in entries for p in e.case.image]
    files += [(f"{e.where}.label", e.case.label) for e in entries if e.case.label]
    identity = {file: _identity(file) for _, file in files}
    missing = [file for _, file in files if identity[file] is None]
    for where, file in files:
        if identity[file] is None:
            complaints.add("missing files", where, f"no such file: {file}")
        elif os.path.isdir(file) and folder_fault(file):
            complaints.add("folders", where, f"{folder_fault(file)}: {file}")
    if missing and len(missing) == len(files):
        message = f"none of the {len(files)} files was found: is {root} the right folder?"
        beside = complaints.path.parent
        if root != beside and os.path.exists(os.path.join(beside, os.path.relpath(missing[0], root))):
            message += f" They are there below the datalist's own, {beside}"
        complaints.add("folders", "dataroot", message if root.is_dir() else f"no such folder: {root}")
    usual = Counter(len(e.case.image) for e in entries if e.case.image).most_common(1)
    seen: dict[Hashable, Entry] = {}
    by_id: dict[str, Entry] = {}
    for entry in (e for e in entries if e.case.image):
        case, where = entry.case, f"{entry.where}.image"
        if len(case.image) != usual[0][0]:
            message = f"{len(case.image)} files, where most cases have {usual[0][0]}: one file a channel"
            complaints.add("cases of other channel counts", where, message)
        repeated = False
        for file in case.image:
            key = identity[file] or file
            if key in seen:
                repeated = True
                complaints.add("repeated images", where, f"{file} {_also(entry, seen[key])}")
            seen.setdefault(key, entry)
        if case.label and (identity[case.label] or case.label) in {identity[file] or file for file in case.image}:
            complaints.add("labels that are images", f"{entry.where}.label", f"is the image itself: {case.label}")
        other = by_id.setdefault(case.id, entry)
        if other is not entry and not repeated:
            message = f"{case.image[0]} and {other.where} ({other.case.image[0]}) share the case id '{case.id}'"
            complaints.add("repeated case ids", where, f"{message}: file names must differ")


def _identity(file: str) -> Hashable | None:
    """Equal for two paths of one file, by links too; None where there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else file


def _also(entry: Entry, other: Entry) -> str:
    if other is entry:
        return "stands for two channels"
    folds = (entry.case.fold, other.case.fold)
    where = f" in another fold ({folds[0]} and {folds[1]})" if None not in folds and folds[0] != folds[1] else ""
    return f"is also an image of {other.where}{where}"


def read_labels(declared: Any, class_names: Sequence[Any] | None, complaints: Complaints) -> dict[int, str]:
    """Label value -> name, without background, of {"1": "liver"} or nnU-Net's {"liver": 1}; class_names rename them."""
    labels: dict[int, str] = {}
    before = len(complaints.by_kind.get("faulty labels", []))
    if declared is not None and not isinstance(declared, dict):
        example = '{"0": "background", "1": "liver"}'
        complaints.add("faulty labels", "labels", f"is {kind_of(declared)}, not an object such as {example}")
        declared = None
    for key, item in (declared or {}).items():
        number, name = (key, item) if re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", key) else (item, key)
        if isinstance(number, (list, dict)):
            complaints.add("faulty labels", f"labels.{key}", "is a region of several values: regions come later")
        elif isinstance(number, bool) or not re.fullmatch(r"\s*\d+\s*", str(number)):
            complaints.add("faulty labels", f"labels.{key}", f"{number!r} is not a label value (0, 1, 2, ...)")
        elif not isinstance(name, str) or not name.strip():
            complaints.add("faulty labels", f"labels.{key}", f"{name!r} is not a label's name")
        elif int(number) in labels or name in labels.values():
            twice = f"value {int(number)}" if int(number) in labels else f"name '{name}'"
            complaints.add("faulty labels", f"labels.{key}", f"the {twice} is declared twice")
        else:
            labels[int(number)] = name
    faulty = len(complaints.by_kind.get("faulty labels", [])) > before
    background = labels.pop(0, "background")
    if "back" not in background.lower() and declared:
        logger.warning("the label value 0 is the background here, though the datalist calls it '%s'", background)
    if declared is not None and not labels and not faulty:
        complaints.add("faulty labels", "labels", "declares nothing but the background")
        faulty = True
    if not class_names:
        return dict(sorted(labels.items()))
    names = [*class_names[1:]] if str(class_names[0]).lower() == "background" else [*class_names]
    if not names or not all(isinstance(name, str) and name for name in names) or len({*map(str, names)}) < len(names):
        complaints.add("faulty labels", "class_names", "is not a list of different names (regions come later)")
        names = [str(name) for name in names]
    elif declared and not faulty and len(names) != len(labels):
        message = f"{len(names)} names, where the datalist declares {len(labels)} labels: {sorted(labels)}"
        complaints.add("faulty labels", "class_names", message)
    return dict(zip(sorted(labels) or range(1, len(names) + 1), names, strict=False))
