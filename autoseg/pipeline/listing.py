"""The verb datalist: a data set as others lay it out -> a checked datalist JSON, with folds."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.analysis.label_map import read_label
from autoseg.config import load_config
from autoseg.datalist import load_datalist, make_folds, plain_datalist
from autoseg.datalist.complaints import Complaints
from autoseg.datalist.sources import Found, Wanted, find_cases
from autoseg.devices import detect_devices
from autoseg.errors import Fault, Faults, InputError
from autoseg.pipeline.session import Notify, silent
from autoseg.records import SCHEMA_VERSION, Datalist, Event
from autoseg.workspace import read_json, write_json

Counts = dict[int, int]  # voxels by label value


@dataclass(frozen=True)
class Listing:
    """A datalist that was written, as it was read back. `folds` are made or taken over, 0 beside a validation list."""

    path: Path
    kind: str
    datalist: Datalist
    channels: tuple[str, ...]
    folds: int
    unchanged: bool


def write_datalist(
    source: str,
    output: str | Path = "datalist.json",
    notify: Notify | None = None,
    *,
    wanted: Wanted | None = None,
    modality: str | None = None,
    patient_pattern: str | None = None,
    num_fold: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Listing:
    """Find the cases of `source` (see `find_cases`), read their label maps, make folds and write `output`.

    Paths below the output's folder are written relative to it, others absolute. Raises InputError with every fault,
    also where another file is in the output's place and `overwrite` is false; nothing is written then.
    """
    tell = notify or silent
    path = Path(os.path.expanduser(output)).absolute()
    found = find_cases(source, wanted)
    _refuse_output(path, found)
    for warning in found.warnings:
        tell(Event("warning", warning))
    head = _declared(found, modality)
    bare = Datalist(str(path), str(path.parent), found.training, found.validation, found.testing)
    if patient_pattern and any(case.patient for case in found.training):
        message = f"the {found.kind} says who the patients are: leave it out"
        raise InputError([Fault(str(found.source), "--patient_pattern", message)])
    try:
        datalist = load_datalist(
            path, patient_pattern=patient_pattern, num_fold=num_fold, plain=head | plain_datalist(bare)
        )
    except InputError as error:  # the file is not there yet: the faults are the source's
        raise InputError(Fault(str(found.source), fault.field, fault.message) for fault in error.faults) from None
    cases = (*datalist.training, *datalist.validation, *datalist.testing)
    tell(Event("stage", f"{found.kind}: {len(cases)} cases, reading their label maps"))
    counts = _read_labels({case.id: case.label for case in cases if case.label}, tell)
    if not found.labels:
        values = sorted({value for count in counts.values() for value in count if value > 0})
        head["labels"] = {"0": "background", **{str(value): f"class_{value}" for value in values}}
    _check_values(found, datalist, counts)
    plain = plain_datalist(make_folds(datalist, counts, num_fold, seed)) | head  # as declared, region or label
    plain = {"schema_version": SCHEMA_VERSION, **head, **plain}
    unchanged = _write(path, plain, overwrite)
    datalist = _read_back(path)
    for fault in _later_faults(path):
        tell(Event("warning", f"autoseg run needs --modality: {fault.message}"))
    folds = len({case.fold for case in datalist.training} - {None})
    return Listing(path, found.kind, datalist, found.channels, folds, unchanged)


def _refuse_output(path: Path, found: Found) -> None:
    """An output that cannot be written, or that is the source itself."""
    if path.is_dir():
        raise InputError([Fault(str(path), "--output", "is a folder: the name of a JSON file is wanted")])
    if path.exists() and found.source.is_file() and path.samefile(found.source):
        raise InputError([Fault(str(path), "--output", "is what the cases are read from: give another name")])


def _declared(found: Found, modality: str | None) -> dict[str, Any]:
    """What the datalist says beside its cases."""
    said = {"modality": modality or found.modality, "labels": found.labels}
    names = {str(number): name for number, name in enumerate(found.channels)}
    return {key: value for key, value in {**said, "channel_names": names}.items() if value}


def _read_labels(files: Mapping[str, str], tell: Notify) -> dict[str, Counts]:
    """Voxels by label value of every case; files are unpacked by several threads. Raises InputError with all faults."""

    def read(file: str) -> tuple[Counts, Sequence[Fault]]:
        faults = Faults()
        label = read_label(file, faults)
        return ({} if label is None else label.counts), faults.items

    counts: dict[str, Counts] = {}
    faults = Faults()
    pool = ThreadPoolExecutor(max_workers=detect_devices().cores)
    try:
        for case, (values, wrong) in zip(files, pool.map(read, files.values()), strict=True):
            counts[case] = values
            faults.extend(wrong)
            facts = {"stage": "label maps", "done": len(counts), "total": len(files)}
            tell(Event("progress", f"label maps: {len(counts)} of {len(files)}", facts))
    finally:
        pool.shutdown(cancel_futures=True)
    faults.raise_if_any()
    return counts


def _check_values(found: Found, datalist: Datalist, counts: Mapping[str, Counts]) -> None:
    """Values that are negative or not among those declared, and maps that are all empty."""
    complaints = Complaints(found.source)
    declared = {0, *datalist.labels, *(value for values in datalist.regions.values() for value in values)}
    for case in (*datalist.training, *datalist.validation, *datalist.testing):
        values = counts.get(case.id, {})
        odd = [value for value in values if value < 0 or (found.labels and value not in declared)]
        if odd:
            values_shown = ", ".join(f"{value} ({values[value]} voxels)" for value in odd[:8])
            message = f"{case.label} holds values that are not declared: {values_shown}"
            complaints.add("label maps with other values", "labels", message)
    if not any(value > 0 for case in datalist.training for value in counts.get(case.id, ())):
        complaints.add("labels", "labels", "no voxel of any training case is labelled")
    complaints.raise_if_any()


def _write(path: Path, plain: Mapping[str, Any], overwrite: bool) -> bool:
    """Write the JSON, or refuse to replace what is there; returns whether it was there already as it is now."""
    if path.exists():
        try:
            if read_json(path) == plain:
                return True
        except InputError:  # no JSON: another file in any case
            pass
        if not overwrite:
            message = "another file is there: give another name, or replace it by --overwrite"
            raise InputError([Fault(str(path), "--output", message)])
    try:
        write_json(path, plain)
    except OSError as error:
        raise InputError([Fault(str(path), "--output", f"cannot be written: {error.strerror}")]) from error
    return False


def _read_back(path: Path) -> Datalist:
    """The datalist as a run will see it; what it warns of was said before it was written."""
    speaker = logging.getLogger("autoseg.datalist")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        return load_datalist(path)
    finally:
        speaker.setLevel(level)


def _later_faults(path: Path) -> Sequence[Fault]:
    """What a run would find wrong with the modality; it can be given there, too."""
    try:
        load_config(datalist=str(path))
    except InputError as error:
        return [fault for fault in error.faults if fault.field == "modality"]
    return []
