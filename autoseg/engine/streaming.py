"""A sliding window whose memory does not grow with the volume: several networks in lockstep, planes out as they end.

Rows of windows move along one axis of the network's grid, the stream axis; a plane is finished when no later row
touches it. Only one patch depth of sums is held, however many networks are averaged; finished planes go to a
`PlaneStore` at two bytes a value.
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import compute_importance_map

from autoseg.engine.classes import Classes
from autoseg.engine.precision import Autocast, autocast_for
from autoseg.engine.slices import run_network, slice_axis
from autoseg.planning.plan import mirrorings

IN_MEMORY = 512 * 2**20  # bytes up to which a store stays in memory
STEPS, HALF = 65535, 32768  # values a 16-bit integer takes over 0..1, and where its sign changes
SIGMA = 0.125  # of the Gaussian weights, in patch lengths, as in MONAI and nnU-Net


class PlaneStore:
    """Planes of a [K, X, Y, Z] volume of probabilities by their index along `axis` (0 to 2), in any order.

    Two bytes a value, in even steps: where classes are near a tie, float16 has steps 16 times as coarse.
    In memory while small, else in an unnamed temporary file of the folder `scratch` that vanishes with the process.
    The file is read and written, not memory-mapped: a mapping's pages would count as this process's memory.
    """

    def __init__(self, shape: Sequence[int], classes: int, scratch: Path | None = None, axis: int = 0):
        self.axis, self.count = axis, int(shape[axis])
        self.plane = (classes, *(int(n) for a, n in enumerate(shape) if a != axis))
        self._bytes = 2 * math.prod(self.plane)
        self._file: IO[bytes] | None = None
        self._array: npt.NDArray[np.int16] | None = None
        if self._bytes * self.count > IN_MEMORY:
            if scratch is not None:
                scratch.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=scratch, buffering=0)  # noqa: SIM115 - closed by `close`
        else:
            self._array = np.empty((self.count, *self.plane), np.int16)

    def write(self, first: int, planes: torch.Tensor) -> None:
        """Store planes of values in 0..1, [K, ...] in the volume's axis order, the first at index `first`."""
        for number, plane in enumerate(planes.movedim(1 + self.axis, 0), first):
            steps = plane.mul(STEPS).sub_(HALF).round_().to(torch.int16).cpu().contiguous().numpy()
            if self._array is not None:
                self._array[number] = steps
            elif self._file is not None:
                self._file.seek(number * self._bytes)
                rest = _octets(steps)
                while rest:  # an unbuffered write may stop early
                    rest = rest[self._file.write(rest) :]

    def read(self, first: int, last: int) -> torch.Tensor:
        """Planes first..last-1 as float32 [K, ...] in the volume's axis order."""
        out = torch.empty((self.plane[0], last - first, *self.plane[1:]), dtype=torch.float32)
        buffer = np.empty(self.plane, np.int16)
        for number in range(first, last):
            if self._array is not None:
                buffer = self._array[number]
            elif self._file is not None:
                self._file.seek(number * self._bytes)
                rest = _octets(buffer)
                while rest:
                    count = self._file.readinto(rest)  # type: ignore[attr-defined]
                    if not count:
                        raise EOFError(f"plane {number} was not stored")
                    rest = rest[count:]
            out[:, number - first] = torch.from_numpy(buffer)
        return out.add_(HALF).div_(STEPS).movedim(1, 1 + self.axis)

    def close(self) -> None:
        """Free the memory or the disk."""
        self._array = None
        if self._file is not None:
            self._file.close()


def _octets(array: npt.NDArray[np.int16]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis, the last one flush with the end (MONAI's dense slices)."""
    step = max(1, int(patch * (1 - overlap)))
    count = max(1, math.ceil((size - patch) / step) + 1)
    return [min(i * step, max(0, size - patch)) for i in range(count)]


@torch.inference_mode()
def stream_probabilities(
    networks: Sequence[torch.nn.Module],
    image: torch.Tensor,
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
    scratch: Path | None = None,
    axis: int = 0,
) -> PlaneStore:
    """Mean probabilities of the networks over Gaussian-weighted windows of `image` [C, X, Y, Z].

    Settings used: roi_size, overlap, sw_batch_size, spatial_dims, label_values, regions, mirror_axes_inference (axes
    along which windows are also predicted mirrored, singly and together), mirror_pairs. A volume smaller than the
    patch is padded with zeros and cut back.
    `axis` is the stream axis: memory is one patch depth of [classes, ...] sums along it. A network that gives
    values that are not finite raises FloatingPointError.
    """
    classes = Classes.of(settings)
    answer = _Answer(networks, settings, classes, autocast)
    store = PlaneStore(image.shape[1:], classes.outputs, scratch, axis)
    image = image.movedim(1 + axis, 1)  # a view: from here on, and in the sums, the stream axis is the first
    order = (axis, *(a for a in range(3) if a != axis))
    patch = [int(settings["roi_size"][a]) for a in order]
    shape = [int(n) for n in image.shape[1:]]
    image, before = _padded(image, patch)
    full = [int(n) for n in image.shape[1:]]
    starts = [window_starts(n, p, float(settings["overlap"])) for n, p in zip(full, patch, strict=True)]
    sums = _Sums(classes.outputs, patch, full, device)
    columns = list(itertools.product(starts[1], starts[2]))
    batch = int(settings["sw_batch_size"])
    try:
        for start, following in itertools.pairwise([*starts[0], full[0]]):
            for group in (columns[i : i + batch] for i in range(0, len(columns), batch)):
                windows = torch.stack([_window(image, (start, *corner), patch) for corner in group]).to(device)
                windows = windows.movedim(2, 2 + axis).contiguous()
                means = answer(windows).movedim(2 + axis, 2)
                for corner, mean in zip(group, means, strict=True):
                    sums.add(mean, *corner)
            for index, plane in enumerate(sums.finish(following - start), start - before[0]):
                if 0 <= index < shape[0]:
                    plane = plane.narrow(1, before[1], shape[1]).narrow(2, before[2], shape[2])
                    store.write(index, plane.unsqueeze(1 + axis))
    except BaseException:
        store.close()
        raise
    return store


class _Sums:
    """Weighted sums of window probabilities, [K, patch depth, Y, Z] in stream order, and of the weights.

    They live on the GPU where they take no more than half of what is free there, else in main memory.
    """

    def __init__(self, classes: int, patch: Sequence[int], full: Sequence[int], device: torch.device):
        shape = (patch[0], *full[1:])
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        home = device if 4 * (classes + 1) * math.prod(shape) < free / 2 else torch.device("cpu")
        self.patch = patch
        self.total = torch.zeros((classes, *shape), device=home)
        self.norm = torch.zeros(shape, device=home)
        self.weight = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=SIGMA, device=home)

    def add(self, probabilities: torch.Tensor, y: int, z: int) -> None:
        """Add a window of [K, *patch] at row positions y, z."""
        rows, columns = slice(y, y + self.patch[1]), slice(z, z + self.patch[2])
        self.total[:, :, rows, columns].addcmul_(probabilities.to(self.total.device), self.weight)
        self.norm[:, rows, columns] += self.weight

    def finish(self, count: int) -> Iterator[torch.Tensor]:
        """The first `count` planes, [K, Y, Z] each, as means; then the sums move on by as many."""
        for number in range(count):
            yield self.total[:, number] / self.norm[number]
        for number in range(self.norm.shape[0]):
            for sums in (self.total.movedim(1, 0), self.norm):
                if number + count < self.norm.shape[0]:
                    sums[number] = sums[number + count]
                else:
                    sums[number].zero_()


def _padded(image: torch.Tensor, patch: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """(the image [C, X, Y, Z] grown with zeros to the patch at least, how much came before along each axis)."""
    pad = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = [p // 2 for p in pad]
    amounts = [n for b, p in zip(reversed(before), reversed(pad), strict=True) for n in (b, p - b)]
    return (torch.nn.functional.pad(image, amounts) if any(pad) else image), before


def _window(image: torch.Tensor, corner: Sequence[int], patch: Sequence[int]) -> torch.Tensor:
    for dim, (start, length) in enumerate(zip(corner, patch, strict=True), 1):
        image = image.narrow(dim, start, length)
    return image


class _Answer:
    """Mean over networks and mirrorings of the probabilities of windows, float32 [B, K, ...]."""

    def __init__(
        self, networks: Sequence[torch.nn.Module], settings: Mapping[str, Any], classes: Classes, autocast: Autocast
    ):
        if not networks:
            raise ValueError("no network was given")
        self.networks, self.classes, self.autocast = networks, classes, autocast
        self.slice_axis = slice_axis(settings)
        axes = [int(a) for a in settings.get("mirror_axes_inference") or [] if a != self.slice_axis]
        self.flips = [tuple(2 + a for a in some) for some in mirrorings(axes)]  # dimensions of [B, C, X, Y, Z]
        sides = any(2 in dims for dims in self.flips) and settings.get("mirror_pairs")
        self.mirrored = classes.mirrored(settings["mirror_pairs"]) if sides else None

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor | None = None
        for number, network in enumerate(self.networks, 1):
            for dims in self.flips:
                mirrored = windows.flip(dims) if dims else windows
                probabilities = self._probabilities(network, mirrored, self.autocast)
                if not math.isfinite(float(probabilities.sum())):  # half precision may have overflowed on this window
                    whole = functools.partial(autocast_for, "float32", mirrored.device)
                    probabilities = self._probabilities(network, mirrored, whole)
                if not math.isfinite(float(probabilities.sum())):
                    message = f"network {number} of {len(self.networks)} gives values that are not finite"
                    raise FloatingPointError(message)
                probabilities = probabilities.flip(dims) if dims else probabilities
                if 2 in dims and self.mirrored:  # what was seen on the left belongs to the right
                    probabilities = probabilities[:, self.mirrored]
                mean = probabilities if mean is None else mean.add_(probabilities)
        assert mean is not None
        return mean.div_(len(self.networks) * len(self.flips))

    def _probabilities(self, network: torch.nn.Module, windows: torch.Tensor, autocast: Autocast) -> torch.Tensor:
        with autocast():
            logits = run_network(network, windows, self.slice_axis)
        return self.classes.activate(logits.float())
