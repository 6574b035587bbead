"""Patches: balanced, padded, a pure function of their number."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, OneOf, RandGaussianNoised, RandShiftIntensityd

from autoseg.engine import cache
from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import CachedCase, ensure_cached, to_indices
from autoseg.engine.patches import PatchDataset, cut, one_state, patch_loader

MakeBundle = Callable[..., Path]


def cached(bundle: Bundle) -> list[CachedCase]:
    return ensure_cached(bundle, bundle.cases()[0])


def test_patches_do_not_depend_on_workers_or_on_where_one_starts(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    cases = cached(bundle)
    dataset = PatchDataset(cases, bundle.settings, bundle.patch_transforms())
    alone = [dataset[i]["image"].clone() for i in range(6)]
    loader = iter(patch_loader(dataset, 2, 0, 0))
    later = iter(patch_loader(dataset, 2, 1, 2))
    first, second, third = next(loader), next(loader), next(later)
    assert torch.equal(first["image"][1], alone[1])
    assert torch.equal(second["image"][0], alone[2])
    assert torch.equal(third["image"][1], alone[3])


def test_every_case_comes_once_an_epoch(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    dataset = PatchDataset(cached(bundle), bundle.settings, Compose([]))
    seen: list[str] = []
    original = PatchDataset._start

    def spy(self: PatchDataset, case: CachedCase, random: np.random.Generator) -> list[int]:
        seen.append(case.id)
        return original(self, case, random)

    PatchDataset._start = spy  # type: ignore[method-assign]
    try:
        for index in range(6):
            dataset[index]
    finally:
        PatchDataset._start = original  # type: ignore[method-assign]
    assert sorted(seen[:3]) == sorted(set(seen))
    assert sorted(seen[3:]) == sorted(set(seen))


def test_foreground_share_is_kept(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(roi_size=[8, 8, 8], foreground_share=1.0, affine_margin=1.0, affine_prob=0.0))
    always = PatchDataset(cached(bundle), bundle.settings, bundle.patch_transforms())
    share = np.mean([float((always[i]["label"] > 0).any()) for i in range(40)])
    assert share > 0.95


def test_cut_pads_with_zeros() -> None:
    volume = np.arange(1, 9, dtype=np.float32).reshape(1, 2, 2, 2)
    patch = cut(volume, [-1, 0, 1], [4, 2, 2])
    assert patch.shape == (1, 4, 2, 2)
    assert patch[0, 0].sum() == 0
    assert patch[0, 1, 0, 0] == volume[0, 0, 0, 1]
    assert patch[0, :, :, 1].sum() == 0


def test_label_values_become_indices_and_gaps_vanish() -> None:
    values = np.array([0, 1, 3, 7, 2], np.int16)
    assert to_indices(values, [0, 1, 3, 7]).tolist() == [0, 1, 2, 3, 0]


def test_the_cache_is_shared_by_folds_and_notices_a_changed_file(make_bundle: MakeBundle) -> None:
    one, other = Bundle.load(make_bundle(fold=0)), Bundle.load(make_bundle(fold=1))
    assert one.preprocessing_key() == other.preprocessing_key()
    ct = Bundle.load(make_bundle(name="ct_0", normalize_mode="ct", intensity_bounds=[[0.0, 1.0, 0.5, 0.2]]))
    assert ct.preprocessing_key() != one.preprocessing_key()
    case = one.cases()[0][0]
    found = ensure_cached(one, [case])[0]
    before = (found.folder / "case.json").stat().st_mtime_ns
    ensure_cached(one, [case])
    assert (found.folder / "case.json").stat().st_mtime_ns == before
    label = Path(str(case.label))
    label.write_bytes(label.read_bytes())  # same content, newer: made again
    ensure_cached(one, [case])
    assert (found.folder / "case.json").stat().st_mtime_ns != before


def test_what_another_job_has_made_meanwhile_is_left_alone(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings that begin together preprocess the same cases; what one replaces the other may be reading."""
    bundle = Bundle.load(make_bundle())
    case = bundle.cases()[0][0]
    folder = bundle.path("cache_dir") / bundle.preprocessing_key()
    made: list[int] = []
    original = cache.to_indices

    def slow(*given: Any) -> np.ndarray:
        """While this job is at it, the other one ends."""
        if not made:
            made.append(0)
            cache.preprocess_case(bundle, folder, case)
            made.append((folder / case.id / "label.npy").stat().st_ino)
        return original(*given)

    monkeypatch.setattr(cache, "to_indices", slow)
    cache.preprocess_case(bundle, folder, case)
    assert (folder / case.id / "label.npy").stat().st_ino == made[1]
    monkeypatch.setattr(cache, "to_indices", None)
    cache.preprocess_case(bundle, folder, case)  # nor is it made again
    assert [path.name for path in folder.iterdir()] == [case.id]


def test_a_bundle_that_has_preprocessed_can_be_sent_to_workers(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    ensure_cached(bundle, bundle.cases()[0][:1])
    assert pickle.loads(pickle.dumps(bundle)).settings == bundle.settings


def case_of(folder: Path, image: np.ndarray, label: np.ndarray) -> CachedCase:
    """A preprocessed case of image [C, X, Y, Z] and label indices [X, Y, Z]."""
    folder.mkdir()
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "label.npy", label.astype(np.uint8))
    where = np.argwhere(label)
    np.save(folder / "places.npy", np.concatenate([label[label > 0][:, None], where], 1).astype(np.int32))
    return CachedCase(folder.name, folder)


def sided(folder: Path) -> CachedCase:
    """Index 1 in the left half, 2 in the right one; the image says how far to the right a voxel lies."""
    label = np.zeros((32, 20, 18))
    label[4:14, 6:15, 5:14], label[18:28, 6:15, 5:14] = 1, 2
    image = np.broadcast_to((np.arange(32) - 15.5)[:, None, None], label.shape)[None]
    return case_of(folder, image, label)


@pytest.mark.parametrize("mirrored", [[], [0, 1, 2]])
@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("margin", [1.0, 1.1, 1.2, 1.35])
def test_patches_reach_the_border_and_lie_within(
    make_bundle: MakeBundle, tmp_path: Path, margin: float, share: float, mirrored: list[int]
) -> None:
    """Along axes longer than the patch by much, by little, and shorter; what is cut for the rotation is larger."""
    shape, roi = (40, 18, 10), (16, 16, 16)
    where = np.stack(np.meshgrid(*(np.arange(1, n + 1) for n in shape), indexing="ij"))
    case = case_of(tmp_path / "case", where, np.ones(shape))
    bundle = Bundle.load(
        make_bundle(
            roi_size=list(roi), affine_margin=margin, affine_prob=0.0, foreground_share=share, mirror_axes=mirrored
        )
    )
    crop = Compose(bundle.patch_transforms().transforms[:1])
    dataset = PatchDataset([case], bundle.settings, crop)
    seen: list[set[float]] = [set(), set(), set()]
    for number in range(60):
        image = torch.as_tensor(dataset[number]["image"])
        assert image.shape == (3, *roi)
        inside = image[2] > 0
        for axis in range(3):
            seen[axis] |= set(image[axis][inside].unique().tolist())
        assert (inside.sum((0, 1)) > 0).tolist() == [3 <= k < 13 for k in range(16)]  # centred where it is larger
        assert int(inside.sum()) == 16 * 16 * 10
    assert [(min(found), max(found)) for found in seen] == [(1, n) for n in shape]


FLAT: dict[str, Any] = {"spatial_dims": 2, "affine_margin": 1.0}
STILL: dict[str, Any] = {"affine_prob": 0.0, "affine_margin": 1.0, "mirror_axes": [0, 1, 2], "label_values": [0, 4, 7]}


@pytest.mark.parametrize("size", [[32, 20, 18], [16, 12, 12], [16, 12, 1], [16, 1, 12], [1, 12, 12]])
def test_left_and_right_are_called_so_in_the_mirror(make_bundle: MakeBundle, tmp_path: Path, size: list[int]) -> None:
    flat = {**FLAT, "slice_axis": size.index(1)} if 1 in size else {}
    bundle = Bundle.load(make_bundle(roi_size=size, mirror_pairs=[[4, 7]], **{**STILL, **flat}))
    dataset = PatchDataset([sided(tmp_path / "case")], bundle.settings, Compose([]))
    mirrored = seen = 0
    for number in range(40):
        image, label = (dataset[number][key][0].numpy() for key in ("image", "label"))
        assert image.shape == tuple(n for n in size if n > 1 or not flat)
        to_the_right = image
        if size[0] > 1:
            slope = np.sign(image[1].flat[0] - image[0].flat[0])
            to_the_right, mirrored = slope * image, mirrored + (slope < 0)
        assert (label[to_the_right < 0] != 2).all() and (label[to_the_right > 0] != 1).all()
        seen += (label > 0).any()
    assert seen > 10
    assert 8 < mirrored < 32 or size[0] == 1


def test_labels_stay_where_left_and_right_are_not_mirrored(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = Bundle.load(make_bundle(roi_size=[32, 20, 18], **{**STILL, "mirror_axes": [1, 2]}, mirror_pairs=[[4, 7]]))
    dataset = PatchDataset([sided(tmp_path / "case")], bundle.settings, Compose([]))
    for number in range(10):
        assert (dataset[number]["label"][0, 18:] != 1).all()


QUIET = dict.fromkeys(
    ("noise_prob", "blur_prob", "brightness_prob", "contrast_prob", "gamma_prob", "low_resolution_prob"), 0.0
)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_rotation_stays_within_the_planes(make_bundle: MakeBundle, tmp_path: Path, axis: int, flat: bool) -> None:
    """An image that says in which plane a voxel lies still does after rotation about that axis alone."""
    grid = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij"))
    middle = (np.abs(grid - 15.5) < 4).all(0)  # patches about it need no padding when they are rotated
    case = case_of(tmp_path / "case", grid[[axis, (axis + 1) % 3]], middle)
    size = [1 if flat and a == axis else 10 for a in range(3)]
    changes = {**QUIET, "affine_prob": 1.0, "affine_scaling": 0.0, "affine_margin": 1.7, "mirror_axes": []}
    changes |= {"input_channels": 2, "roi_size": size, "spatial_dims": 2 if flat else 3, "foreground_share": 1.0}
    changes["slice_axis"] = axis if flat else None

    def patches(about: list[int]) -> list[np.ndarray]:
        """[C, planes, ...] each."""
        bundle = Bundle.load(make_bundle(rotation_axes=about, **changes))
        dataset = PatchDataset([case], bundle.settings, bundle.patch_transforms())
        found = [dataset[number]["image"].numpy() for number in range(6)]
        assert {patch.shape for patch in found} == {(2, *(n for n in size if n > 1))}
        return [patch[:, None] if flat else np.moveaxis(patch, 1 + axis, 1) for patch in found]

    within = patches([0] if flat else [axis])
    assert max(np.ptp(patch[0], axis=(1, 2)).max() for patch in within) < 1e-2
    assert all(max(np.ptp(patch[1], axis=a).max() for patch in within) > 0.3 for a in (1, 2)), "nothing is rotated"
    if not flat:
        assert max(np.ptp(patch[0], axis=(1, 2)).max() for patch in patches([0, 1, 2])) > 0.3


def test_a_lower_resolution_leaves_the_image_where_its_label_is(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(**{**QUIET, "low_resolution_prob": 1.0, "augmentation": 1.0}))
    lower = bundle.patch_transforms().transforms[-1]
    one_state(Compose([lower]), np.random.RandomState(0))
    ramp = torch.arange(32.0).view(1, 32, 1, 1).expand(1, 32, 16, 16)
    moved = [float((lower({"image": ramp.clone()})["image"] - ramp)[0, 4:-4].mean()) for _ in range(40)]
    assert abs(np.mean(moved)) < 0.15 and np.std(moved) > 0


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0, 100.0])
def test_augmentation_multiplies_every_probability_but_that_of_mirroring(
    make_bundle: MakeBundle, strength: float
) -> None:
    bundle = Bundle.load(make_bundle(augmentation=strength))
    random = [t for t in bundle.patch_transforms().transforms if hasattr(t, "prob")]
    names = ["affine", "noise", "blur", "brightness", "brightness", "contrast", "gamma", "low_resolution"]
    expected = [min(1.0, strength * bundle.settings[f"{name}_prob"]) for name in names]
    assert [t.prob for t in random] == expected


def test_all_transforms_draw_from_one_state_nested_ones_too() -> None:
    inner, outer = RandGaussianNoised("image", prob=1.0), RandShiftIntensityd("image", prob=1.0, offsets=0.5)
    transforms = Compose([outer, OneOf([Compose([inner])])])
    state = one_state(transforms)
    found = []
    for seed in (5, 6, 5):
        state.seed(seed)
        found.append(transforms({"image": torch.zeros(1, 4, 4, 4)})["image"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
