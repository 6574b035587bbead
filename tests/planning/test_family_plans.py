"""What each family that comes with autoseg plans: for small and large volumes, on machines of every size."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
from monai.networks.nets.segresnet_ds import scales_for_resolution
from samples import Triple, statistics

from autoseg.bundles import available_templates, load_algo, template_settings
from autoseg.planning import FamilyTraits, Machine, Plan, Statistics
from autoseg.planning.patch import GROWTH, halved_patch, median_size

FAMILIES = available_templates()
FLAT = "segresnet2d"
CPU = Machine("cpu", 6 * 2**30, 1)
MACHINES = [CPU, Machine("cpu", 2 * 2**30, 2), *(Machine("cuda", gib * 2**30, 8) for gib in (6, 24, 80))]


def plan(name: str, stats: Statistics, machine: Machine = CPU) -> Plan:
    return load_algo(name, FAMILIES[name]).plan(stats, machine, ["zscore"] * stats.channels)


def strides(name: str, found: Plan) -> list[int]:
    """What the network needs a patch to be a multiple of, said by its own settings."""
    settings, seen = found.settings, [int(n > 1) for n in found.settings["roi_size"]]
    if name == "swinunetr":
        return [32, 32, 32]
    if name == "dints":
        return [2 ** settings["num_depths"]] * 3
    if name == "unetr":
        return [16, 16, 16]
    if name == "mednext":
        return [2 ** len(settings["blocks"])] * 3
    if name == "unet":
        return [math.prod(level[axis] for level in settings["strides"]) for axis in range(3)]
    levels = len(settings["blocks_down"])
    if name == FLAT:
        return [2 ** (levels - 1) if axis else 1 for axis in seen]
    scales = scales_for_resolution(settings["resolution"] or [1.0] * 3, levels - 1)
    return [math.prod(int(scale[axis]) for scale in scales) for axis in range(3)]


SHAPES: dict[str, tuple[Triple, Triple]] = {
    "isotropic": ((180, 160, 150), (1, 1, 1)),
    "tiny": ((12, 10, 9), (1, 1, 1)),
    "a voxel thick": ((64, 64, 1), (1, 1, 4)),
    "thousands of slices": ((512, 512, 3000), (0.8, 0.8, 0.5)),
    "anisotropic": ((400, 400, 20), (0.5, 0.5, 5)),
    "coarse along the first axis": ((18, 320, 300), (6, 0.6, 0.6)),
    "three spacings": ((100, 200, 40), (2, 1, 5)),
    "micrometres": ((900, 900, 900), (2e-3, 2e-3, 2e-3)),
}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.kind}{m.memory >> 30}")
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_patches_fit_network_memory_and_data(name: str, kind: str, machine: Machine) -> None:
    stats = statistics(*SHAPES[kind])
    found = plan(name, stats, machine)
    size, needed = found.settings["roi_size"], strides(name, found)
    assert all(n % stride == 0 for n, stride in zip(size, needed, strict=True)), (size, needed)
    assert found.settings["roi_multiple"] == (None if name == "unetr" else needed)  # whose positions are learned
    smaller = dict(found.settings)
    while (half := halved_patch(smaller)) is not None:  # where memory runs out
        assert math.prod(needed) < math.prod(half) < math.prod(smaller["roi_size"])
        assert all(n % stride == 0 for n, stride in zip(half, needed, strict=True))
        smaller["roi_size"] = half
    halved = found.settings["roi_multiple"] and max(needed) > 1
    assert not halved or math.prod(smaller["roi_size"]) < 4 * math.prod(needed)
    median = median_size(stats, found.settings["resample_to_spacing"])
    larger = [n > max(GROWTH * m, stride) for n, m, stride in zip(size, median, needed, strict=True)]
    if sum(larger):  # the deepest level of the others is one voxel, which cannot be normalised
        assert math.prod(size) == 2 * math.prod(needed)
    assert math.prod(size) > math.prod(needed) or max(needed) == 1
    traits = traits_of(name, machine)
    bytes_per_voxel = traits.bytes_per_voxel_and_filter * traits.filters(machine) * (1 if machine.kind == "cuda" else 2)
    assert found.settings["num_images_per_batch"] * math.prod(size) * bytes_per_voxel <= machine.memory
    assert set(found.settings) <= set(template_settings(FAMILIES[name]))
    assert set(found.settings) == set(found.reasons) and all(found.reasons.values())
    if name == FLAT:
        shape, spacing = SHAPES[kind]
        across = max(range(3), key=lambda axis: (spacing[axis], -shape[axis]))
        assert found.settings["slice_axis"] == across and size[across] == 1


def traits_of(name: str, machine: Machine) -> FamilyTraits:
    module = sys.modules[f"{name}.scripts.algo"]
    made: Callable[[Machine], FamilyTraits] = getattr(module, "traits", lambda machine: module.TRAITS)
    return made(machine)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cpu_gets_less_than_a_gpu(name: str) -> None:
    small, large = (plan(name, statistics((512, 500, 300)), m).settings for m in (CPU, MACHINES[-1]))
    assert math.prod(small["roi_size"]) < math.prod(large["roi_size"])
    assert small["num_epochs"] <= 1000 and large["num_epochs"] == 800
    assert (small["precision"], large["precision"]) == ("bfloat16", "float16")
    assert traits_of(name, CPU).filters(CPU) < traits_of(name, MACHINES[-1]).filters(MACHINES[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_rotation_stays_within_planes_that_lie_far_apart(name: str) -> None:
    for kind, about in (("isotropic", [0, 1, 2]), ("anisotropic", [2]), ("coarse along the first axis", [0])):
        # a network of slices has one angle, the first
        expected = [0] if name == FLAT else about
        assert plan(name, statistics(*SHAPES[kind])).settings["rotation_axes"] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_overlap_of_windows_is_less_where_there_are_many_on_a_cpu(name: str) -> None:
    many = statistics(*SHAPES["thousands of slices"])
    assert plan(name, many).settings["overlap"] == 0.25
    assert plan(name, many, MACHINES[-1]).settings["overlap"] == 0.5
    assert plan(name, statistics(*SHAPES["tiny"])).settings["overlap"] == 0.5


def skips(stats: Statistics, machine: Machine = CPU) -> dict[str, str]:
    return {name: reason for name in FAMILIES if (reason := plan(name, stats, machine).skip)}


def test_slices_are_left_out_where_volumes_are_near_isotropic() -> None:
    assert set(skips(statistics())) == {FLAT}
    assert "1.5 times the finest" in skips(statistics(spacing=(1, 1, 1.5)))[FLAT]
    assert skips(statistics((400, 400, 20), (0.5, 0.5, 5))) == {}


def test_images_of_two_dimensions_are_for_slices_alone() -> None:
    pictures = statistics((512, 400, 1), (1, 1, 1), image_dims=2)
    assert skips(pictures) == dict.fromkeys(FAMILIES.keys() - {FLAT}, "the images are 2D")
    size = plan(FLAT, pictures).settings["roi_size"]
    assert size[2] == 1 and min(size[:2]) >= 32


def test_a_u_net_stays_flat_along_a_coarse_axis_until_the_others_have_caught_up() -> None:
    """nnU-Net's rule; a patch that can hardly be halved still gets the three levels that the network has at least."""
    settings = plan("unet", statistics((400, 400, 60), (0.5, 0.5, 2.0)), MACHINES[-1]).settings
    strides, kernels, levels = settings["strides"], settings["kernel_size"], len(settings["filters"])
    assert len(strides) == len(kernels) == levels and strides[0] == [1, 1, 1]
    flat = [level for level, stride in enumerate(strides) if stride == [2, 2, 1]]
    assert flat == [1, 2] and strides[3] == [2, 2, 2]
    assert [kernel[2] for kernel in kernels[:3]] == [1, 1, 3] and kernels[0][:2] == [3, 3]
    assert settings["filters"][:3] == [32, 64, 128] and max(settings["filters"]) <= 320
    assert 1 <= settings["supervised"] < levels - 1
    assert (settings["optimizer"], settings["lr_schedule"]) == ("sgd", "polynomial")
    tiny = plan("unet", statistics((9, 9, 9))).settings
    assert len(tiny["strides"]) == 3 and tiny["strides"][-1] == [1, 1, 1] and "optimizer" not in tiny


@pytest.mark.parametrize("name", ["unet", "unetr", "mednext"])
def test_some_families_are_there_for_those_who_ask(name: str) -> None:
    for found in (plan(name, statistics(), machine) for machine in MACHINES):
        assert str(found.on_request).startswith("only by name") and not found.spare


def test_swin_unetr_wants_a_gpu_and_volumes_of_half_a_patch() -> None:
    assert "CPU" in str(plan("swinunetr", statistics()).spare)
    assert plan("swinunetr", statistics(), MACHINES[-1]).spare is None
    thin = statistics((200, 200, 15))
    assert skips(thin, MACHINES[-1])["swinunetr"].startswith("15 voxels along an axis")
    assert "swinunetr" not in skips(statistics((200, 200, 16)), MACHINES[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_and_files_are_those_of_the_data(name: str) -> None:
    settings = plan(name, statistics(channels=4, image_files=4)).settings
    assert (settings["input_channels"], settings["image_files"], settings["image_dims"]) == (4, 4, 3)
