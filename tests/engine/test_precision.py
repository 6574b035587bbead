"""Arithmetic by name, and where bfloat16 is not to be trusted."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from autoseg.bundles.inference import DTYPE
from autoseg.engine import precision as of_engine
from autoseg.engine.precision import autocast_for, compute_dtype, training_precision

CPU = torch.device("cpu")


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with instructions for bfloat16; others compute the same, slowly."""
    monkeypatch.setattr(of_engine, "has_bfloat16", lambda: True)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_cpu_without_instructions_for_bfloat16_computes_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_engine, "has_bfloat16", lambda: False)
    assert compute_dtype(name, CPU) is torch.float32
    assert compute_dtype(name, torch.device("cuda")) is of_engine.DTYPES[name]


@pytest.mark.parametrize("capable", [True, False])
def test_a_bundle_for_monai_computes_in_the_same(capable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """inference.yaml says it in words of its own, for it needs no autoseg."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    assert compute_dtype("float16", CPU) is (torch.bfloat16 if capable else torch.float32)
    for name in of_engine.DTYPES:
        for device in (CPU, torch.device("cuda")):
            words = DTYPE[1:].replace("@precision", repr(name)).replace("@device", "device")
            assert eval(words, {"torch": torch, "device": device}) is compute_dtype(name, device)


def test_what_onednn_cannot_take_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    image, net = torch.ones(1, 2, 6, 6, 6), torch.nn.Conv3d(2, 3, 2, padding="same")
    with torch.no_grad():
        expected = net(image)
        with autocast_for("float32", CPU), autocast_for("float32", CPU):
            assert torch.equal(net(image), expected)
            assert torch.nn.Conv3d(2, 3, 3)(MetaTensor(image)).shape == (1, 3, 4, 4, 4)
            assert torch.nn.Conv3d(2, 3, 3)(image[0]).shape == (3, 4, 4, 4)
            assert torch.nn.Conv3d(2, 3, 3)(image).shape == (1, 3, 4, 4, 4)
            monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
            assert torch.nn.Conv3d(2, 3, 3)(image).layout is torch.strided


@pytest.mark.usefixtures("capable")
def test_names_and_devices() -> None:
    assert compute_dtype("float16", CPU) is compute_dtype("bfloat16", CPU) is torch.bfloat16
    assert compute_dtype("float16", torch.device("cuda")) is torch.float16
    assert compute_dtype("bfloat16", torch.device("mps")) is torch.float32
    with autocast_for("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("shape", [(8, 12, 16), (2, 4, 4), (1, 3, 5), (32, 48, 32)])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"bias": False, "groups": 4}, {"padding_mode": "reflect"}])
def test_onednn_s_convolutions_are_torch_s(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """In value and in every gradient; of one patch and of two."""
    if "padding_mode" in options and 1 in shape:
        pytest.skip("a reflection needs two voxels")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(4, 8, 3, padding=1, **options),
        torch.nn.ConvTranspose3d(8, 8, 2, stride=2),
        torch.nn.Conv3d(8, 2, 1),
    )
    for patches in (1, 2):
        found = []
        for context in (contextlib.nullcontext(), autocast_for("float32", CPU)):
            image = torch.linspace(-1, 1, patches * 4 * math.prod(shape)).view(patches, 4, *shape).requires_grad_()
            net.zero_grad()
            with context:
                output = net(image)
            output.square().sum().backward()
            gradients = [parameter.grad for parameter in (image, *net.parameters())]
            found.append([output.detach(), *(g.clone() for g in gradients if g is not None)])
        assert len(found[0]) == len(found[1]) == 2 + len(list(net.parameters()))
        for one, other in zip(*found, strict=True):
            assert float((one - other).norm()) <= 1e-4 * float(one.norm())
            assert one.stride() == other.stride()


def test_small_convolutions_go_to_onednn() -> None:
    by_loop = []
    with autocast_for("float32", CPU):
        for patches, kernel in ((1, 3), (2, 3), (1, 1)):
            with torch.autograd.profiler.profile() as profile, torch.no_grad():
                torch.nn.Conv3d(8, 8, kernel)(torch.zeros(patches, 8, 12, 12, 12))
            by_loop.append("aten::slow_conv3d_forward" in {event.name for event in profile.function_events})
    assert by_loop == [False, False, True]


def network(kernel: int = 3, stride: int = 2) -> torch.nn.Module:
    first = torch.nn.Conv3d(1, 4, 3, stride=stride, padding=1)
    return torch.nn.Sequential(first, torch.nn.Conv3d(4, 4, kernel, padding=kernel // 2))


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize(
    ("kernel", "shape", "precision"),
    [
        (3, (1, 4, 8, 8), "float32"),  # two voxels along the first axis, after the stride
        (3, (1, 8, 4, 4), "bfloat16"),  # along the others they do no harm
        (3, (1, 2, 8, 8), "bfloat16"),  # nor does one
        (1, (1, 4, 8, 8), "bfloat16"),
        (5, (1, 8, 8, 8), "float32"),
    ],
)
def test_short_axes_are_trained_in_float32_on_a_cpu(kernel: int, shape: tuple[int, ...], precision: str) -> None:
    net = network(kernel).train()
    assert training_precision("bfloat16", CPU, net, shape) == precision
    assert training_precision("float32", CPU, net, shape) == "float32"
    assert training_precision("float16", torch.device("cuda"), net, shape) == "float16"
    assert net.training and not any(module._forward_hooks for module in net.modules())


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 8, 8), (12, 4, 6)])
def test_gradients_are_those_of_float32_up_to_rounding(shape: tuple[int, ...]) -> None:
    """In the precision that is chosen; memory is soiled first, for that is what wrong gradients are made of."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 64, 3, stride=2, padding=1), torch.nn.Conv3d(64, 64, 3, padding=1))
    image = torch.randn(2, 1, *shape)
    gradients = {}
    for precision in ("float32", training_precision("bfloat16", CPU, net, (1, *shape))):
        for _ in range(10):
            soiled = [torch.full((size,), float("nan")) for size in (1000, 40000, 110592, 300000)]
            del soiled
            net.zero_grad()
            with autocast_for(precision, CPU):
                output = net(image)
            output.float().square().sum().backward()
            gradient = net[1].weight.grad
            assert isinstance(gradient, torch.Tensor)
            expected = gradients.setdefault("float32", gradient.clone())
            assert float((gradient - expected).norm() / expected.norm()) < 0.05
