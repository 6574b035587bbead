"""Training patches: foreground-balanced places, cut from memory-mapped cases, augmented, by a counter.

Patch i of a training is a pure function of (seed, i): workers, their number and interruptions change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Compose, Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from autoseg.engine.cache import CachedCase
from autoseg.engine.slices import slice_axis

LONG = 2**31 - 1  # "until the budget is spent"


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Item i: {image [C, *roi_size] float32, label [1, *roi_size] float32 of label indices}, planes [C, ...] for 2D.

    Each pass over the cases (an epoch) is a fresh permutation. With probability `foreground_share` the patch is
    centred near a voxel of a label drawn evenly among those present, otherwise anywhere. Along each of `mirror_axes` it
    is mirrored with probability `mirror_prob`; along left-right (axis 0) the two labels of each of `mirror_pairs` then
    change places, so that what is seen on the right is called so.
    """

    def __init__(self, cases: Sequence[CachedCase], settings: dict[str, Any], transforms: Compose):
        self.cases, self.transforms = list(cases), transforms
        self.random = one_state(transforms)
        self.seed = int(settings["seed"])
        self.share = float(settings["foreground_share"])
        self.slice_axis = slice_axis(settings)
        margin = float(settings["affine_margin"])
        self.roi = [int(s) for s in settings["roi_size"]]
        # what is cut, to be mirrored and rotated; its middle is the patch, with as much on either side
        around = [0 if axis == self.slice_axis else math.ceil(s * (margin - 1) / 2) for axis, s in enumerate(self.roi)]
        self.size = [s + 2 * more for s, more in zip(self.roi, around, strict=True)]
        # a plane has no mirror image across itself: its left and right stay
        self.mirror_axes = [int(axis) for axis in settings["mirror_axes"] if axis != self.slice_axis]
        self.mirror_prob = float(settings["mirror_prob"])
        values = [int(v) for v in settings["label_values"]]
        self.sides = np.arange(len(values), dtype=np.uint8)
        for a, b in settings["mirror_pairs"] or ():
            self.sides[values.index(a)], self.sides[values.index(b)] = values.index(b), values.index(a)

    def __len__(self) -> int:
        return LONG

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.cases))
        random = np.random.default_rng([self.seed, 1, index])
        case = self.cases[order[place]]
        start = self._start(case, random)
        image, label = cut(case.image, start, self.size), cut(case.label[None], start, self.size)
        mirrored = [axis for axis in self.mirror_axes if random.random() < self.mirror_prob]
        if mirrored:
            image, label = (np.flip(part, tuple(1 + axis for axis in mirrored)) for part in (image, label))
        if 0 in mirrored:
            label = self.sides[label]
        if self.slice_axis is not None:
            image, label = image.squeeze(1 + self.slice_axis), label.squeeze(1 + self.slice_axis)
        data = {
            "image": torch.from_numpy(image.astype(np.float32)),
            "label": torch.from_numpy(label.astype(np.float32)),
        }
        self.random.seed(int(random.integers(2**31)))
        augmented: dict[str, torch.Tensor] = self.transforms(data)
        return augmented

    def _start(self, case: CachedCase, random: np.random.Generator) -> list[int]:
        """First corner of what is cut for a patch that lies within the volume, or around it where it is larger.

        What is cut may reach beyond: `cut` pads. Were it to lie within, a patch would never hold the volume's border.
        """
        shape = case.label.shape
        centre: Sequence[float]
        if case.places and random.random() < self.share:
            places = case.places[int(random.choice(sorted(case.places)))]
            jitter = [(random.random() - 0.5) * s * 0.5 for s in self.roi]
            centre = [float(p) + j for p, j in zip(places[random.integers(len(places))], jitter, strict=True)]
        else:
            centre = [random.random() * n - 0.5 for n in shape]
        start = []
        for middle, roi, size, n in zip(centre, self.roi, self.size, shape, strict=True):
            first = -((roi - n) // 2) if n <= roi else int(min(max(round(middle - (roi - 1) / 2), 0), n - roi))
            start.append(first - (size - roi) // 2)
        return start


def one_state(transforms: Compose, state: np.random.RandomState | None = None) -> np.random.RandomState:
    """The random state that all of the transforms draw from.

    `Compose.set_random_state` makes one anew for each of them, which takes a third of the augmentation's time.
    """
    state = np.random.RandomState(0) if state is None else state
    for transform in transforms.transforms:
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=state)
        if isinstance(transform, Compose):  # it has given its own parts states of their own
            one_state(transform, state)
    return state


def cut(volume: npt.NDArray[Any], start: Sequence[int], size: Sequence[int]) -> npt.NDArray[Any]:
    """A block of `size` voxels of [C, X, Y, Z] from corner `start`, zeros where it lies outside."""
    out = np.zeros((volume.shape[0], *size), volume.dtype)
    source, target = [], []
    for first, length, n in zip(start, size, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, n)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    inside, found = (slice(None), *target), (slice(None), *source)
    out[inside] = volume[found]
    return out


class CountingSampler(Sampler[int]):
    """Indices of the batches from `step` on, for as long as they are asked for.

    Of `world` processes, each takes `batch` of a step's batch * world indices, one after the other by `rank`.
    """

    def __init__(self, batch: int, step: int = 0, rank: int = 0, world: int = 1):
        super().__init__()
        self.batch, self.step, self.rank, self.world = batch, step, rank, world

    def __iter__(self) -> Iterator[int]:
        for step in range(self.step, LONG // (self.batch * self.world)):
            first = (step * self.world + self.rank) * self.batch
            yield from range(first, first + self.batch)

    def __len__(self) -> int:
        return LONG // self.world - self.step * self.batch


def patch_loader(
    dataset: PatchDataset, batch: int, step: int, workers: int, rank: int = 0, world: int = 1
) -> DataLoader[dict[str, torch.Tensor]]:
    """Batches from optimiser step `step` on, this process's part of them (see `CountingSampler`).

    Without workers patches are made between the steps, on the same cores.
    """
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=CountingSampler(batch, step, rank, world),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )
