"""Planning is pure: statistics in, hyper-parameters with reasons out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from autoseg.errors import InputError
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family, plan_patch
from autoseg.planning.patch import Patch, halved_patch, plan_batch, planar, resample_needed, target_spacing
from autoseg.planning.plan import left_right_pairs, plan_mirroring
from autoseg.planning.statistics import Intensity, read_statistics

RULE = PatchRule(levels=5)
TRAITS = FamilyTraits(RULE, 16, 32, 60.0, 2e-3, 5e-4)
CPU = Machine("cpu", 12 * 2**30, 1)
GPU = Machine("cuda", 24 * 2**30, 8)


def statistics(**changes: object) -> Statistics:
    base = Statistics(
        n_cases=100,
        channels=1,
        spacing_median=(1.0, 1.0, 1.0),
        spacing_low=(1.0, 1.0, 1.0),
        spacing_tenth=(1.0, 1.0, 1.0),
        spacing_high=(1.0, 1.0, 1.0),
        shape_median=(200.0, 200.0, 150.0),
        cropped_shape_median=(180.0, 160.0, 150.0),
        intensity=(Intensity(60.0, 20.0, -50.0, 200.0, 55.0, 15.0),),
        label_values=(0, 1, 2),
        voxels={},
        cases_with_label={},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_patch_is_a_multiple_of_the_stride_and_every_setting_has_a_reason(machine: Machine) -> None:
    plan = plan_family(statistics(), machine, ["zscore"], TRAITS)
    assert plan.patch is not None
    for size, halvings in zip(plan.patch.size, plan.patch.halvings, strict=True):
        assert size % 2**halvings == 0
        assert size // 2**halvings >= 4
    assert set(plan.settings) == set(plan.reasons)
    assert all(plan.reasons.values())


def test_a_cpu_gets_a_small_network_and_a_gpu_a_large_one() -> None:
    small, large = (plan_family(statistics(), m, ["zscore"], TRAITS).settings for m in (CPU, GPU))
    assert TRAITS.filters(CPU) < TRAITS.filters(GPU)
    assert small["roi_size"] < large["roi_size"]
    assert small["num_epochs"] * 50 < 2000 < large["num_epochs"] * 50


def test_patch_shrinks_with_memory() -> None:
    spacing = [1.0, 1.0, 1.0]
    machines = [Machine("cuda", gib * 2**30, 1) for gib in (8, 80)]
    sizes = [plan_patch(statistics(), spacing, machine, RULE, 60.0 * 32)[0].size for machine in machines]
    voxels = [a * b * c for a, b, c in sizes]
    assert voxels[0] < voxels[1]


def test_anisotropic_axis_uses_its_tenth_percentile_and_is_halved_less() -> None:
    stats = statistics(
        spacing_median=(0.5, 0.5, 5.0), spacing_tenth=(0.5, 0.5, 3.0), cropped_shape_median=(300, 300, 20)
    )
    spacing, reason = target_spacing(stats)
    assert spacing == [0.5, 0.5, 3.0]
    assert "10th" in reason
    plan = plan_family(stats, GPU, ["zscore"], TRAITS)
    assert plan.patch is not None
    assert plan.patch.halvings[2] < plan.patch.halvings[0]


def test_sub_millimetre_spacing_does_not_round_to_zero() -> None:
    spacing, _ = target_spacing(statistics(spacing_median=(1.2e-4, 1.2e-4, 1.2e-4)))
    assert spacing == [1.2e-4] * 3


def test_resampling_only_where_spacings_differ() -> None:
    assert not resample_needed(statistics())[0]
    assert resample_needed(statistics(spacing_high=(1.0, 1.0, 2.0)))[0]


def test_ct_is_clipped_by_the_pooled_foreground_and_mri_is_not() -> None:
    assert plan_family(statistics(), CPU, ["ct"], TRAITS).settings["intensity_bounds"] == [[-50.0, 200.0, 60.0, 20.0]]
    assert plan_family(statistics(), CPU, ["zscore"], TRAITS).settings["intensity_bounds"] is None


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ({1: "Left_Kidney", 2: "Right_Kidney"}, [[1, 2]]),
        ({1: "parotid L", 2: "parotid R", 3: "brainstem"}, [[1, 2]]),
        ({3: "KidneyRight", 4: "KidneyLeft"}, [[4, 3]]),
        ({1: "riñón izquierdo", 2: "riñón derecho"}, [[1, 2]]),
        ({1: "Anterior", 2: "Posterior"}, []),
        ({1: "leftover", 2: "rightover"}, []),
    ],
)
def test_left_and_right_are_found_by_name(names: dict[int, str], pairs: list[list[int]]) -> None:
    assert left_right_pairs(names) == pairs


Across = list[list[list[int]]]
NOWHERE: Across = [[], [], []]


def mirroring(
    names: dict[int, str], pairs: Any, machine: Machine = GPU, alike: Across = NOWHERE, **regions: list[int]
) -> Plan:
    plan = Plan({"label_values": [0, *names]})
    plan_mirroring(plan, names, pairs, machine, regions, alike)
    return plan


def test_left_and_right_change_places_where_they_are_mirrored() -> None:
    found = mirroring({1: "left", 2: "right", 3: "brain"}, None)
    assert found.settings == {"label_values": [0, 1, 2, 3], "mirror_axes": [0, 1, 2], "mirror_pairs": [[1, 2]]}
    assert found.reasons["mirror_pairs"] == "left and right: left/right"


def test_a_short_schedule_mirrors_along_left_right_alone() -> None:
    assert mirroring({1: "a"}, None, CPU).settings["mirror_axes"] == [0]
    assert mirroring({1: "left", 2: "right"}, None, CPU).settings["mirror_axes"] == [0]


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_side_without_counterpart_forbids_the_axis(machine: Machine) -> None:
    found = mirroring({1: "left lung", 2: "heart"}, None, machine)
    assert found.settings["mirror_axes"] == ([1, 2] if machine == GPU else [])
    assert "left lung has no counterpart" in found.reasons["mirror_axes"]


def test_a_key_overrides_the_names() -> None:
    assert mirroring({1: "a", 2: "b"}, [[1, 2]]).settings["mirror_pairs"] == [[1, 2]]
    free = mirroring({1: "left", 2: "right"}, []).settings
    assert (free["mirror_axes"], free["mirror_pairs"]) == ([0, 1, 2], [])
    with pytest.raises(InputError, match=r"mirror_pairs.*\[7\], which are no labels; those are \[1, 2\]"):
        mirroring({1: "a", 2: "b"}, [[1, 7]])


def test_regions_that_name_a_side_are_not_mirrored_into_one_another() -> None:
    unnamed = {1: "class_1", 2: "class_2", 3: "class_3", 4: "class_4"}
    kidneys: dict[str, list[int]] = {"left kidney": [1, 2], "right kidney": [3, 4], "tumour": [2, 4]}
    found = mirroring(unnamed, None, **kidneys)
    assert found.settings["mirror_axes"] == [1, 2]
    assert "left kidney, right kidney" in found.reasons["mirror_axes"]
    named = {1: "kidney l", 2: "tumour l", 3: "kidney r", 4: "tumour r"}
    assert mirroring(named, None, **kidneys).settings["mirror_axes"] == [0, 1, 2]
    one_sided = {"kidney left": [1, 2], "tumour": [2, 4]}
    assert mirroring(named, None, **one_sided).settings["mirror_axes"] == [1, 2]
    assert mirroring(named, [[1, 3], [2, 4]], **one_sided).settings["mirror_axes"] == [0, 1, 2]


def test_labels_that_look_alike_on_opposite_sides_change_places() -> None:
    nodules = {1: "organ", 2: "nodule 1", 3: "nodule 2", 4: "left eye", 5: "right eye"}
    found = mirroring(nodules, None, alike=[[[2, 3], [4, 5]], [], []])
    assert (found.settings["mirror_axes"], found.settings["mirror_pairs"]) == ([0, 1, 2], [[4, 5], [2, 3]])
    reason = "left and right: left eye/right eye; nodule 1/nodule 2 look alike on opposite sides"
    assert found.reasons["mirror_pairs"] == reason
    assert mirroring(nodules, None, alike=[[[2, 5], [1, 9]], [], []]).settings["mirror_pairs"] == [[4, 5]]
    for pairs in ([], [[1, 2]]):
        own = mirroring(nodules, pairs, alike=[[[2, 3]], [], []])
        assert own.settings["mirror_pairs"] == pairs and "nodule 2" not in own.reasons["mirror_pairs"]


def test_a_name_that_tells_a_side_counts_more_than_the_places() -> None:
    found = mirroring({1: "left lung", 2: "heart"}, None, alike=[[[1, 2]], [], []])
    assert (found.settings["mirror_axes"], found.settings["mirror_pairs"]) == ([1, 2], [])
    unnamed = {1: "class_1", 2: "class_2", 3: "class_3", 4: "class_4"}
    kidneys: dict[str, list[int]] = {"left kidney": [1, 2], "right kidney": [3, 4]}
    assert mirroring(unnamed, None, alike=[[[1, 3], [2, 4]], [], []], **kidneys).settings["mirror_axes"] == [0, 1, 2]
    assert mirroring(unnamed, None, alike=[[[1, 4]], [], []], **kidneys).settings["mirror_axes"] == [1, 2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("class_1", "class_2", True),
        ("vertebraL1", "vertebraL5", True),
        ("1", "2", True),
        ("Lobe A", "lobe-b", True),
        ("aorta", "vena cava", False),
        ("anterior", "posterior", False),
        ("upper tooth 1", "lower tooth 1", False),
    ],
)
def test_names_of_their_own_say_that_labels_are_told_by_more_than_their_side(one: str, other: str, same: bool) -> None:
    found = mirroring({1: one, 2: other}, None, alike=[[[1, 2]], [[1, 2]], []]).settings
    assert found["mirror_pairs"] == ([[1, 2]] if same else [])
    assert found["mirror_axes"] == ([0, 2] if same else [0, 1, 2])


def test_nothing_is_mirrored_along_other_axes_where_labels_change_places() -> None:
    names = {1: "lobe 1", 2: "lobe 2"}
    found = mirroring(names, None, alike=[[], [[1, 2]], []])
    assert (found.settings["mirror_axes"], found.settings["mirror_pairs"]) == ([0, 2], [])
    why = "a long schedule; not along front-back: lobe 1/lobe 2 look alike on opposite sides"
    assert found.reasons["mirror_axes"] == why
    assert mirroring(names, [], alike=[[], [], [[1, 2]]]).settings["mirror_axes"] == [0, 1]
    short = mirroring(names, None, CPU, alike=[[], [[1, 2]], []])
    assert (short.settings["mirror_axes"], short.reasons["mirror_axes"]) == ([0], "a short schedule")
    planes = Plan({"label_values": [0, 1, 2], "slice_axis": 2})
    plan_mirroring(planes, names, None, GPU, None, [[], [[1, 2]], [[1, 2]]])
    assert planes.settings["mirror_axes"] == [0] and "up-down" not in planes.reasons["mirror_axes"]


def test_small_patches_come_many_at_a_time() -> None:
    rule = PatchRule(levels=3, voxels_cpu=64**3, smallest_batch=2, largest_batch=8)
    batches = [plan_batch(Patch((n, n, n), 3, (2, 2, 2)), CPU, rule, 1000.0)[0] for n in (64, 40, 16)]
    assert batches == [2, 8, 8]
    little = Machine("cpu", int(16**3 * 1000 * 4 / 0.7), 1)
    assert plan_batch(Patch((16, 16, 16), 3, (2, 2, 2)), little, rule, 1000.0)[0] in (3, 4)


def test_monai_plain_statistics_are_enough() -> None:
    spread = {"median": [1.0, 1.0, 2.0], "percentile_00_5": [1.0, 1.0, 1.0]}
    spread |= {"percentile_10_0": [1.0, 1.0, 1.5], "percentile_99_5": [1.0, 1.0, 3.0]}
    intensity = {"mean": 10.0, "stdev": 2.0, "percentile_00_5": 5.0, "percentile_99_5": 15.0}
    image = {"shape": {"median": [100.0, 90.0, 40.0]}, "cropped_shape": {"median": [90.0, 80.0, 40.0]}}
    image |= {"spacing": spread, "channels": {"max": 2}}
    summary = {"image_stats": image, "image_foreground_stats": {"intensity": intensity}, "n_cases": 7}
    stats = read_statistics({"stats_summary": {**summary, "label_stats": {"labels": [0, 1, 3]}}})
    assert (stats.n_cases, stats.channels, stats.label_values) == (7, 2, (0, 1, 3))
    assert stats.alike_across == ((), (), ())
    assert plan_family(stats, CPU, ["ct", "ct"], TRAITS).settings["roi_size"]


def test_a_patch_of_a_network_of_slices_is_one_along_its_axis() -> None:
    for given in ([32, 48], [1, 32, 48], [32, 1, 48], [32, 48, 1], [9, 32, 48]):
        assert planar(given, 0) == [1, 32, 48]
    assert planar([32, 48, 7], 2) == [32, 48, 1]
    assert planar([32, 1, 48], None) == [32, 1, 48]


def test_few_cases_that_are_seen_often_are_bent_more() -> None:
    few, many = (plan_family(statistics(n_cases=n), CPU, ["ct"], TRAITS).settings for n in (16, 160))
    assert few["affine_prob"] == 0.5 and "affine_prob" not in many
    assert "affine_prob" not in plan_family(statistics(n_cases=16), GPU, ["ct"], TRAITS).settings


def test_ct_and_pet_together() -> None:
    channels = (Intensity(60.0, 20.0, -50.0, 200.0, 55.0, 15.0), Intensity(3.0, 2.0, 0.0, 12.0, 3.0, 1.5))
    settings = plan_family(statistics(channels=2, intensity=channels), CPU, ["ct", "zscore"], TRAITS).settings
    assert settings["normalize_mode"] == "ct" and settings["intensity_bounds"] == [[-50.0, 200.0, 60.0, 20.0], None]


def test_ct_of_bone_and_soft_tissue_is_scaled_by_a_typical_label() -> None:
    narrow = plan_family(statistics(), CPU, ["ct"], TRAITS).settings
    assert not narrow["intensity_asinh"] and narrow["intensity_bounds"] == [[-50.0, 200.0, 60.0, 20.0]]
    bone = statistics(intensity=(Intensity(243.0, 425.0, -112.0, 1555.0, 7.0, 40.0),))
    wide = plan_family(bone, CPU, ["ct"], TRAITS).settings
    assert wide["intensity_asinh"] and wide["intensity_bounds"] == [[-112.0, 1555.0, 7.0, 40.0]]


@pytest.mark.parametrize(
    ("size", "multiple", "spacing", "half"),
    [
        ([96, 96, 96], [32, 32, 32], [1.0, 1.0, 1.0], [32, 96, 96]),
        ([96, 96, 64], [16, 16, 16], [1.0, 1.5, 1.0], [96, 48, 64]),
        ([96, 96, 64], [16, 16, 4], [1.0, 1.0, 3.0], [96, 96, 32]),
        ([48, 32, 32], [32, 32, 32], [1.0, 1.0, 1.0], None),
        ([64, 32, 32], [32, 32, 32], [1.0, 1.0, 1.0], None),
        ([64, 64, 32], [32, 32, 32], [1.0, 1.0, 1.0], [32, 64, 32]),
        ([192, 160, 1], [32, 32, 1], [0.5, 0.5, 5.0], [96, 160, 1]),
        ([64, 32, 1], [32, 32, 1], [0.5, 0.5, 5.0], None),
        ([40, 40, 40], [16, 16, 16], [1.0, 1.0, 1.0], [16, 40, 40]),
        ([96, 96, 96], None, [1.0, 1.0, 1.0], None),
    ],
)
def test_a_patch_is_halved_along_its_longest_axis_in_mm(
    size: list[int], multiple: list[int] | None, spacing: list[float], half: list[int] | None
) -> None:
    settings = {"roi_size": size, "roi_multiple": multiple, "resample_to_spacing": spacing}
    assert halved_patch(settings) == half
