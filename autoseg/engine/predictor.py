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
from autoseg.engine.classes import Classes
from autoseg.engine.foreign import ForeignBundle
from autoseg.engine.geometry import AxisMap, file_grid, longest_axis
from autoseg.engine.precision import autocast_for
from autoseg.engine.streaming import PlaneStore, stream_probabilities
from autoseg.records import Case

CHUNK_BYTES = 128 * 2**20  # of probabilities on the way back to the image's grid, held a few times over
WEIGHT_BYTES = 2 * 2**30  # of weights held at once: what is more takes turns


class Predictor:
    """Bundles with the same labels, combined by the mean of their probabilities or by vote.

    Bundles that agree in preprocessing and windows share both: their networks run in lockstep, as many as
    `WEIGHT_BYTES` hold. A vote keeps them apart and is decided, where tied, by the mean.
    """

    def __init__(
        self, bundles: Sequence[Bundle], device: torch.device, mode: str = "mean", scratch: Path | None = None
    ):
        self.device, self.mode, self.scratch = device, mode, scratch
        self.classes = Classes.of(bundles[0].settings)
        groups: dict[Any, list[Bundle]] = {}
        for bundle in bundles:
            windows = ("roi_size", "overlap", "spatial_dims", "mirror_axes_inference", "mirror_pairs")
            key = (bundle.preprocessing_key(), str([bundle.settings[name] for name in windows]))
            groups.setdefault((key, bundle.root) if mode == "vote" else key, []).append(bundle)
        self.groups = [part for members in groups.values() for part in _parts(members)]
        self._keep = len(_parts(list(bundles))) == 1
        self._loaded: dict[int, list[torch.nn.Module]] = {}

    def write(self, case: Case, path: Path) -> npt.NDArray[Any]:
        """Predict a case and write what `labels` gives in the geometry of its (first) image; returns that array."""
        labels, affine = self.labels(case)
        write_label_map(path, labels, case, affine)
        return labels

    def labels(self, case: Case) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
        """(label values [X, Y, Z] on the image's own grid, its affine).

        Of regions that no label map can hold: masks [X, Y, Z, R], one a region.
        """
        channels = (self.classes.outputs,) if self.classes.in_channels else ()
        with self._stores(case) as (stores, maps, affine):
            axis = maps[0].chunk_axis
            out = np.empty((*maps[0].original_shape, *channels), self.classes.dtype)
            for start, stop in self._chunks(maps):
                decided = self.classes.decide(self._combined(stores, maps, start, stop))
                out[(slice(None),) * axis + (slice(start, stop),)] = decided
        return out, affine

    def probabilities(self, case: Case) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """(probabilities [K, X, Y, Z] float32 on the image's own grid, its affine): memory grows with the classes."""
        with self._stores(case) as (stores, maps, affine):
            axis = maps[0].chunk_axis
            out = np.empty((self.classes.outputs, *maps[0].original_shape), np.float32)
            for start, stop in self._chunks(maps):
                out[(slice(None),) * (axis + 1) + (slice(start, stop),)] = self._combined(stores, maps, start, stop)
        return out, affine

    def _networks(self, group: int) -> list[torch.nn.Module]:
        """A group's networks on the device; the last group's make way where not all fit together."""
        if group not in self._loaded:
            if not self._keep:
                self._loaded.clear()
            self._loaded[group] = [b.trained_network().to(self.device) for b in self.groups[group]]
        return self._loaded[group]

    @contextlib.contextmanager
    def _stores(self, case: Case) -> Iterator[tuple[list[PlaneStore], list[AxisMap], npt.NDArray[np.float64]]]:
        """Streamed probabilities of every group, with their way back to the image's grid."""
        stores: list[PlaneStore] = []
        maps = []
        image: MetaTensor | None = None
        key = ""
        try:
            for number, members in enumerate(self.groups):
                if isinstance(members[0], ForeignBundle):
                    store, grid, affine = members[0].stored(case, self.scratch)
                    maps.append(grid)
                    stores.append(store)
                    continue
                if image is None or members[0].preprocessing_key() != key:
                    image = None  # the old one goes before the new one comes
                    image, key = members[0].preprocess(case), members[0].preprocessing_key()
                affine, shape = file_grid(image)
                chunk_axis = longest_axis(affine, shape)
                grid = AxisMap.between(image.affine.numpy(), image.shape[1:], affine, shape, chunk_axis)
                settings = members[0].settings
                autocast = functools.partial(autocast_for, settings["precision"], self.device)
                store = stream_probabilities(
                    self._networks(number),
                    image.as_tensor(),
                    settings,
                    self.device,
                    autocast,
                    self.scratch,
                    grid.stream_axis,
                )
                maps.append(grid)
                stores.append(store)
            del image
            yield stores, maps, affine
        finally:
            for store in stores:
                store.close()

    def _chunks(self, maps: Sequence[AxisMap]) -> list[tuple[int, int]]:
        length = maps[0].original_shape[maps[0].chunk_axis]
        step = min(grid.chunk_length(4 * self.classes.outputs, CHUNK_BYTES) for grid in maps)
        return [(a, min(length, a + step)) for a in range(0, length, step)]

    def _combined(self, stores: list[PlaneStore], maps: list[AxisMap], start: int, stop: int) -> torch.Tensor:
        """What decides a chunk: mean probabilities [K, ...]; for a vote, shares of it, the mean deciding ties."""
        mean: torch.Tensor | None = None
        votes: torch.Tensor | None = None
        for store, grid, members in zip(stores, maps, self.groups, strict=True):
            first, last = grid.planes(start, stop)
            block = grid.resample(store.read(first, last), first, start, stop, self.classes.outside)
            if self.mode == "vote":
                vote = self.classes.votes(block)
                votes = vote if votes is None else votes.add_(vote)
            mean = block.mul_(len(members)) if mean is None else mean.add_(block, alpha=len(members))
        assert mean is not None
        mean.div_(sum(len(members) for members in self.groups))
        return mean if votes is None else votes.add_(mean, alpha=0.5).div_(len(self.groups) + 0.5)


def _parts(members: Sequence[Bundle]) -> list[list[Bundle]]:
    """Bundles in runs whose weights take `WEIGHT_BYTES` together at most."""
    parts: list[list[Bundle]] = []
    taken = 0
    for bundle in members:
        size = bundle.weights.stat().st_size if bundle.weights.is_file() else 0
        if not parts or taken + size > WEIGHT_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(bundle)
        taken += size
    return parts


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
