"""Which kind of data set is it?"""

from __future__ import annotations

import os
from pathlib import Path

from autoseg.datalist.sources.bids import find_bids
from autoseg.datalist.sources.decathlon import find_decathlon
from autoseg.datalist.sources.found import Found, Wanted
from autoseg.datalist.sources.nnunet import find_nnunet, is_nnunet
from autoseg.datalist.sources.pattern import find_by_pattern
from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.workspace import read_json

KINDS = "a folder with a dataset.json (Decathlon, nnU-Net), a BIDS tree, or a pattern such as 'images/{case}.nii.gz'"


def find_cases(source: str, wanted: Wanted | None = None) -> Found:
    """The cases of a folder (Decathlon, nnU-Net raw, BIDS) or of a pattern of file names.

    Raises one InputError with every fault: no such data set, files that are missing, and flags that do not belong.
    """
    wanted = wanted or Wanted()
    path = Path(os.path.expanduser(source)).absolute()
    if any(mark in source for mark in "{*") and not path.exists():
        return find_by_pattern(source, wanted)
    folder = path.parent if path.name == "dataset.json" else path
    _refuse_no_folder(source, folder)
    listed = folder / "dataset.json"
    subjects = any(sub.is_dir() for sub in folder.glob("sub-*"))
    if not listed.exists() and not subjects:
        raise InputError([Fault(str(folder), "SOURCE", f"is no data set: {_hint(folder)}wanted is {KINDS}")])
    if listed.exists() and subjects:
        message = "holds both a dataset.json and subjects (sub-*) of a BIDS tree: give a pattern of file names"
        raise InputError([Fault(str(folder), "SOURCE", message)])
    faults = Faults()
    for flag, given in (("--labels", wanted.labels), ("--channels", wanted.channels), ("--testing", wanted.testing)):
        if given and (listed.exists() or flag == "--testing"):
            where = "beside a pattern of file names" + ("" if flag == "--testing" else " or a BIDS tree")
            faults.add(folder, flag, f"says nothing of this folder: it belongs {where}")
    faults.raise_if_any()
    if subjects:
        return find_bids(folder, wanted)
    plain = read_json(listed)
    if not isinstance(plain, dict):
        raise InputError([Fault(str(listed), "", "is not a JSON object")])
    return find_nnunet(folder, plain) if is_nnunet(folder, plain) else find_decathlon(folder, plain)


def _refuse_no_folder(source: str, folder: Path) -> None:
    if not source.strip():
        raise InputError([Fault("", "SOURCE", f"is empty: {KINDS} is wanted")])
    if not folder.exists():
        beside = [path.name for path in folder.parent.glob("*")]
        raise InputError([Fault(source, "SOURCE", f"no such folder{nearest(folder.name, beside)}")])
    if not folder.is_dir():
        raise InputError([Fault(source, "SOURCE", f"is a file: wanted is {KINDS}")])


def _hint(folder: Path) -> str:
    """What stands there instead of a data set."""
    inner = sorted(path.parent.name for path in folder.glob("*/dataset.json"))
    if inner:
        return f"did you mean {', '.join(inner[:3])} in it? "
    if (folder / "datalist.json").exists():
        return "it has a datalist already, datalist.json; "
    if (folder / "imagesTr").exists():
        return "imagesTr is there, dataset.json is not; "
    return "it is empty; " if not any(folder.iterdir()) else ""
