"""Checks of a datalist's files and labels that need no image opened."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

from autoseg.datalist.complaints import Complaints, Entry
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
