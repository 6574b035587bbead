"""Predict a case by one or many trained bundles: memory bounded by the case, whatever the number of models."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError

from autoseg.engine.bundle import Bundle
from autoseg.engine.geometry import AxisMap
from autoseg.engine.precision import autocast_for
from autoseg.engine.streaming import PlaneStore, stream_probabilities
from autoseg.records import Case

CHUNK_BYTES = 128 * 2**20


class Predictor:
    """Bundles with the same labels, combined by the mean of their probabilities or by vote.

    Bundles that agree in preprocessing and windows share both: their networks run in lockstep. A vote keeps
    them apart and is decided, where tied, by the mean.
    """

    def __init__(
        self, bundles: Sequence[Bundle], device: torch.device, mode: str = "mean", scratch: Path | None = None
    ):
        self.device, self.mode, self.scratch = device, mode, scratch
        self.values = [int(v) for v in bundles[0].settings["label_values"]]
        groups: dict[Any, list[Bundle]] = {}
        for bundle in bundles:
            key = (bundle.preprocessing_key(), tuple(bundle.settings["roi_size"]), bundle.settings["overlap"])
            groups.setdefault((key, bundle.root) if mode == "vote" else key, []).append(bundle)
        self.groups = [(members, [b.trained_network().to(device) for b in members]) for members in groups.values()]

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest unsigned integer that holds the label values."""
        return np.uint8 if max(self.values) < 256 else np.uint16 if max(self.values) < 65536 else np.uint32

    def write(self, case: Case, path: Path) -> npt.NDArray[Any]:
        """Predict a case and write its label map in the geometry of its (first) image; returns the map [X, Y, Z]."""
        labels, affine = self.labels(case)
        write_label_map(path, labels, case, affine)
        return labels

    def labels(self, case: Case) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
        """(label values [X, Y, Z] on the image's own grid, its affine)."""
        values = np.asarray(self.values, self.dtype)
        with self._stores(case) as (stores, maps, affine):
            axis = maps[0].chunk_axis
            out = np.empty(maps[0].original_shape, self.dtype)
            for start, stop in self._chunks(maps[0]):
                indices = self._combined(stores, maps, start, stop).argmax(0).numpy()
                out[(slice(None),) * axis + (slice(start, stop),)] = values[indices]
        return out, affine

    def probabilities(self, case: Case) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """(probabilities [K, X, Y, Z] float32 on the image's own grid, its affine): memory grows with the classes."""
        with self._stores(case) as (stores, maps, affine):
            axis = maps[0].chunk_axis
            out = np.empty((len(self.values), *maps[0].original_shape), np.float32)
            for start, stop in self._chunks(maps[0]):
                out[(slice(None),) * (axis + 1) + (slice(start, stop),)] = self._combined(stores, maps, start, stop)
        return out, affine

    @contextlib.contextmanager
    def _stores(self, case: Case) -> Iterator[tuple[list[PlaneStore], list[AxisMap], npt.NDArray[np.float64]]]:
        """Streamed probabilities of every group, with their way back to the image's grid."""
        stores: list[PlaneStore] = []
        maps = []
        image: MetaTensor | None = None
        key = ""
        try:
            for members, networks in self.groups:
                if image is None or members[0].preprocessing_key() != key:
                    image, key = members[0].preprocess(case), members[0].preprocessing_key()
                affine = np.asarray(image.meta["original_affine"], float)
                shape = [int(n) for n in np.asarray(image.meta["spatial_shape"])[:3]]
                maps.append(AxisMap.between(image.affine.numpy(), image.shape[1:], affine, shape))
                settings = members[0].settings
                autocast = functools.partial(autocast_for, settings["precision"], self.device)
                tensor = image.as_tensor()
                stores.append(
                    stream_probabilities(
                        networks, tensor, len(self.values), settings, self.device, autocast, self.scratch
                    )
                )
            del image
            yield stores, maps, affine
        finally:
            for store in stores:
                store.close()

    def _chunks(self, grid: AxisMap) -> list[tuple[int, int]]:
        shape = grid.original_shape
        length = shape[grid.chunk_axis]
        plane = 4 * len(self.values) * int(np.prod(shape)) // length
        step = max(1, CHUNK_BYTES // max(1, plane))
        return [(a, min(length, a + step)) for a in range(0, length, step)]

    def _combined(self, stores: list[PlaneStore], maps: list[AxisMap], start: int, stop: int) -> torch.Tensor:
        """What decides a chunk: mean probabilities [K, ...]; for a vote, counts plus half the mean for ties."""
        mean: torch.Tensor | None = None
        votes: torch.Tensor | None = None
        for store, grid, (members, _) in zip(stores, maps, self.groups, strict=True):
            first, last = grid.planes(start, stop)
            block = grid.resample(store.read(first, last), first, start, stop)
            if self.mode == "vote":
                chosen = torch.nn.functional.one_hot(block.argmax(0), len(self.values)).movedim(-1, 0)
                votes = chosen if votes is None else votes + chosen
            block = block * len(members)
            mean = block if mean is None else mean + block
        assert mean is not None
        mean = mean / sum(len(members) for members, _ in self.groups)
        return mean if votes is None else votes + 0.5 * mean


def write_label_map(path: Path, labels: npt.NDArray[Any], case: Case, affine: npt.NDArray[np.float64]) -> None:
    """Write a NIfTI with the geometry (affine, q- and s-form, units) of the case's first image; whole or not at all."""
    header = None
    try:
        source = nib.load(case.image[0])
        if isinstance(source, nib.Nifti1Image):
            header, affine = source.header.copy(), source.affine
    except (OSError, ImageFileError):
        pass  # another format: its affine is what MONAI's reader gave
    image = nib.Nifti1Image(labels, affine, header)
    image.header.set_data_dtype(labels.dtype)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
