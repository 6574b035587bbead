"""The generated data set of `autoseg demo` and of the tests: volumes that look a little like MRI, with known labels.

Every case holds an ellipsoid organ with smaller nodules grown onto it, of varying place, size, rotation and
intensity. Loose blobs as bright as the nodules, a bias field and noise keep a threshold from solving it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.errors import Fault, InputError
from autoseg.workspace import write_json

TRAINING, TESTING, SHAPE = 12, 4, (48, 48, 40)
# Patches smaller than a case keep a step short: under a tenth of a second on one core.
DEMO: dict[str, Any] = {
    "algos": ["segresnet"],
    "num_fold": 4,
    "settings": {"num_iterations": 600, "roi_size": [32, 32, 32]},
}
QUICK: dict[str, Any] = {
    "algos": ["segresnet"],
    "num_fold": 2,
    "settings": {"num_iterations": 200, "roi_size": [32, 32, 32]},
}
ORGAN, NODULE = 0.62, 0.95  # intensities before bias and noise; the surrounding tissue lies at about 0.3
Volume = NDArray[np.float32]


def make_demo_data(
    folder: str | Path,
    training: int = TRAINING,
    testing: int = TESTING,
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
    channels: int = 1,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    labels: Sequence[int] = (1, 2),
) -> Path:
    """Write `<folder>/datalist.json` with its images and labels; returns its path. Downloads nothing.

    `shape` is in voxels, at least 16 along each axis; `spacing` in mm. `labels` are the values in the label files:
    the organ's first, then one a nodule (at most four). With several `channels` an image is a list of files, one a
    channel. Testing cases have labels too. The same arguments give the same voxels; a folder that already holds
    them is left as it is, so that a second run finds its data unchanged. Raises InputError on impossible arguments.
    """
    folder = Path(folder)
    facts = {"training": training, "testing": testing, "shape": list(shape), "seed": seed, "channels": channels}
    facts |= {"spacing": list(spacing), "labels": list(labels)}
    _refuse_impossible(facts)
    datalist = folder / "datalist.json"
    if datalist.is_file() and json.loads(datalist.read_text("utf-8")).get("description") == _describe(facts):
        return datalist
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for number in range(training + testing):
        section = "training" if number < training else "testing"
        name = f"{section}_{number if number < training else number - training:02d}"
        image, label = simulate_case(np.random.default_rng([seed, number]), shape, channels, labels)
        sections[section].append(_write_case(folder, name, image, label, spacing))
    names = ["organ", *(f"nodule {i}" if len(labels) > 2 else "nodule" for i in range(1, len(labels)))]
    declared = {"0": "background", **{str(value): name for value, name in zip(labels, names, strict=True)}}
    # written last and at once: where it stands, the images stand too
    write_json(datalist, {"name": "autoseg demo", "description": _describe(facts), "labels": declared, **sections})
    return datalist


def simulate_case(
    random: np.random.Generator, shape: Sequence[int], channels: int, labels: Sequence[int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One case: image [channels, x, y, z] and label map [x, y, z]."""
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"), axis=-1)
    size = float(min(shape))
    label = np.zeros(shape, np.uint8)
    centre = np.array(shape) / 2 + random.uniform(-0.07, 0.07, 3) * size
    axes = size * random.uniform([0.26, 0.18, 0.18], [0.32, 0.24, 0.24])
    rotation = _rotation(random.uniform(-0.6, 0.6, 3))
    label[_ellipsoid(grid, centre, axes, rotation)] = labels[0]
    ends = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]
    for value, end in zip(labels[1:], ends, strict=False):
        place = centre + rotation @ (np.array(end) * axes * random.uniform(0.75, 0.9))
        label[_ellipsoid(grid, place, size * random.uniform(0.11, 0.15, 3), rotation)] = value
    blobs = np.zeros(shape, bool)
    for _ in range(4):
        blobs |= _ellipsoid(grid, random.uniform(0, 1, 3) * shape, size * random.uniform(0.05, 0.1, 3), rotation)
    image = [_channel(random, label, blobs & (label == 0), labels, number) for number in range(channels)]
    return np.stack(image), label


def _channel(
    random: np.random.Generator, label: NDArray[np.uint8], blobs: NDArray[np.bool_], labels: Sequence[int], number: int
) -> NDArray[np.int16]:
    """Tissue, structures, blurred edges, bias field and noise, in a scale of its own for each case."""
    coarse = [max(2, n // 8) for n in label.shape]
    texture = _stretch(random.normal(0.3, 0.08, coarse), label.shape)
    contrast = 1.0 if number == 0 else 0.6  # later channels show the same, less clearly
    signal = texture + contrast * np.where(label == labels[0], ORGAN - 0.3, 0).astype(np.float32)
    signal[np.isin(label, list(labels[1:])) | blobs] = 0.3 + contrast * (NODULE - 0.3)
    bias = _stretch(random.uniform(0.8, 1.2, (3, 3, 3)), label.shape)
    signal = ndimage.gaussian_filter(signal, 0.6) * bias + random.normal(0, 0.06, label.shape).astype(np.float32)
    scaled: NDArray[np.int16] = np.clip(signal * random.uniform(500, 1500), 0, 32000).astype(np.int16)
    return scaled


def _write_case(
    folder: Path, name: str, image: NDArray[np.int16], label: NDArray[np.uint8], spacing: Sequence[float]
) -> dict[str, Any]:
    """Write the files of a case; returns its datalist entry."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(label.shape) * spacing / 2
    endings = [f"_{c:04d}" for c in range(len(image))] if len(image) > 1 else [""]
    files = [f"images/{name}{ending}.nii.gz" for ending in endings]
    for file, channel in zip(files, image, strict=True):
        _save(channel, affine, folder / file)
    _save(label, affine, folder / f"labels/{name}.nii.gz")
    return {"image": files if len(files) > 1 else files[0], "label": f"labels/{name}.nii.gz"}


def _save(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


def _ellipsoid(
    grid: Volume, centre: NDArray[np.float64], axes: NDArray[np.float64], rotation: NDArray[np.float64]
) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ((((grid - centre) @ rotation) / axes) ** 2).sum(-1) <= 1.0
    return inside


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] of angles about the three axes, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


def _stretch(coarse: NDArray[np.float64], shape: Sequence[int]) -> Volume:
    """A coarse field as a smooth one of `shape`."""
    zoom = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    smooth: Volume = ndimage.zoom(coarse, zoom, order=1, grid_mode=True, mode="nearest").astype(np.float32)
    return smooth


def _describe(facts: dict[str, Any]) -> str:
    return f"generated: {json.dumps(facts)}"


def _refuse_impossible(facts: dict[str, Any]) -> None:
    faults = []
    if len(facts["shape"]) != 3 or min(facts["shape"]) < 16:
        faults.append(Fault("", "shape", f"{facts['shape']}: three sizes of at least 16 voxels are needed"))
    if facts["training"] < 1 or facts["testing"] < 0:
        faults.append(Fault("", "training", "at least one training case is needed"))
    values = facts["labels"]
    if not 1 <= len(values) <= 5 or len(set(values)) != len(values) or not all(0 < v < 256 for v in values):
        faults.append(Fault("", "labels", f"{values}: one to five different values from 1 to 255 are needed"))
    if faults:
        raise InputError(faults)
