"""Preprocessed cases on disk, memory-mapped: done once a case and preprocessing, shared by folds and families.

`<cache_dir>/<preprocessing key>/<case id>/`: image.npy float16 [C, X, Y, Z], label.npy uint8 [X, Y, Z] (label
indices), places.npy int32 [N, 4] (label index, x, y, z: at most PLACES voxels a label), case.json, written last.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoseg.engine.bundle import Bundle
from autoseg.errors import InputError
from autoseg.records import Case
from autoseg.workspace import file_stamp, path_bytes, read_keys, write_json

PLACES = 5000
LARGEST_FLOAT16 = 65504.0
SMALL = 16 * 2**20  # bytes of files up to which starting workers takes longer than it saves
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case; arrays are opened read-only and memory-mapped, so that RAM holds only what is touched."""

    id: str
    folder: Path

    @functools.cached_property
    def image(self) -> npt.NDArray[np.float16]:
        return np.load(self.folder / "image.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @functools.cached_property
    def label(self) -> npt.NDArray[np.uint8]:
        return np.load(self.folder / "label.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @functools.cached_property
    def places(self) -> dict[int, npt.NDArray[np.int32]]:
        """Voxel coordinates [n, 3] by label index."""
        rows = np.load(self.folder / "places.npy")
        return {int(index): rows[rows[:, 0] == index, 1:] for index in np.unique(rows[:, 0])}


def source_stamp(case: Case) -> str:
    """Changes when a file of the case does: path, size and time of change."""
    stamps = [file_stamp(path) for path in (*case.image, case.label) if path]
    return hashlib.blake2b(json.dumps(stamps).encode(), digest_size=8).hexdigest()


def ensure_cached(
    bundle: Bundle, cases: Sequence[Case], workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[CachedCase]:
    """Preprocess the cases that are not yet on disk, `workers` at a time; returns all, in the order given."""
    folder = bundle.path("cache_dir") / bundle.preprocessing_key()
    missing = [case for case in cases if not is_fresh(folder / case.id, case)]
    if missing:
        logger.info("preprocessing %d of %d cases into %s", len(missing), len(cases), folder)
    work = functools.partial(preprocess_case, bundle, folder)
    done = 0
    if workers <= 1 or _bytes(missing) < SMALL:
        for case in missing:
            work(case)
            done += 1
            if progress:
                progress(done, len(missing))
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["autoseg.engine.worker"])
        with concurrent.futures.ProcessPoolExecutor(workers, context, _work_with, (work,)) as pool:
            for future in concurrent.futures.as_completed([pool.submit(_worked, case) for case in missing]):
                future.result()
                done += 1
                if progress:
                    progress(done, len(missing))
    return [CachedCase(case.id, folder / case.id) for case in cases]


_work: Callable[[Case], None]


def _work_with(work: Callable[[Case], None]) -> None:
    """What a worker does with its cases; it so keeps the bundle, and the transforms that it made."""
    global _work
    _work = work


def _worked(case: Case) -> None:
    _work(case)


def _bytes(cases: Sequence[Case]) -> int:
    return sum(path_bytes(path) for case in cases for path in (*case.image, case.label or os.devnull))


def is_fresh(folder: Path, case: Case) -> bool:
    """Whether `folder` holds the case preprocessed from its files as they are now, and whole."""
    try:
        known = read_keys(folder / "case.json", "source") == [source_stamp(case)]
        cached = CachedCase(case.id, folder)
        return known and cached.image.shape[1:] == cached.label.shape and cached.places is not None
    except (InputError, OSError, ValueError, EOFError, IndexError):  # NumPy's words for a file that is cut off
        return False


def preprocess_case(bundle: Bundle, folder: Path, case: Case) -> None:
    """Preprocess one case into `folder`/<id>: written beside and renamed, so that no reader sees half of it.

    What another job has made meanwhile is left alone: it may be reading it already.
    """
    target, settings = folder / case.id, bundle.settings
    if is_fresh(target, case):
        return
    data = bundle.preprocessed(case, with_label=True)
    image = np.clip(data["image"].numpy(), -LARGEST_FLOAT16, LARGEST_FLOAT16).astype(np.float16)
    label = to_indices(data["label"].numpy()[0], settings["label_values"])
    temporary = folder / f".{case.id}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "image.npy", image)
        np.save(temporary / "label.npy", label)
        np.save(temporary / "places.npy", _places(label, len(settings["label_values"])))
        write_json(temporary / "case.json", {"case": case.id, "source": source_stamp(case)})
        if not is_fresh(target, case):
            shutil.rmtree(target, ignore_errors=True)
            try:
                os.replace(temporary, target)
            except OSError:
                if not is_fresh(target, case):  # another job was faster: its result is as good
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_indices(label: npt.NDArray[Any], values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Label values as indices into `values` (gaps in the values vanish); an undeclared value is background."""
    indices = np.zeros(label.shape, np.uint8)
    rounded = np.rint(label).astype(np.int64)
    for index, value in enumerate(values):
        if index:
            indices[rounded == value] = index
    return indices


def _places(label: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int32]:
    """At most PLACES voxels of every foreground label, evenly spread over the voxels in memory order."""
    rows = []
    for index in range(1, classes):
        flat = np.flatnonzero(label == index)
        if flat.size:
            chosen = flat[np.linspace(0, flat.size - 1, min(PLACES, flat.size)).astype(np.int64)]
            where = np.stack(np.unravel_index(chosen, label.shape), 1)
            rows.append(np.concatenate([np.full((len(where), 1), index), where], 1))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)
