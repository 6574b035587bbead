"""Patches: balanced, padded, a pure function of their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose

from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import CachedCase, ensure_cached, to_indices
from autoseg.engine.patches import PatchDataset, cut, patch_loader

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
