"""Arithmetic by name, and where bfloat16 is not to be trusted."""

from __future__ import annotations

import pytest
import torch

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


def test_a_bundle_for_monai_computes_in_the_same() -> None:
    """inference.yaml says it in words of its own, for it needs no autoseg."""
    for name in of_engine.DTYPES:
        for device in (CPU, torch.device("cuda")):
            words = DTYPE[1:].replace("@precision", repr(name)).replace("@device", "device")
            assert eval(words, {"torch": torch, "device": device}) is compute_dtype(name, device)


@pytest.mark.usefixtures("capable")
def test_names_and_devices() -> None:
    assert compute_dtype("float16", CPU) is compute_dtype("bfloat16", CPU) is torch.bfloat16
    assert compute_dtype("float16", torch.device("cuda")) is torch.float16
    assert compute_dtype("bfloat16", torch.device("mps")) is torch.float32
    with autocast_for("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")


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
