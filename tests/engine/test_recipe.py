"""Parts of the recipe that stand in for torch's own, against these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from autoseg.engine.recipe import build_average, clipped


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3), torch.nn.BatchNorm3d(3), torch.nn.Conv3d(3, 2, 1))


def steps(model: torch.nn.Module, number: int) -> Iterator[int]:
    """Weights and running means move as in training."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(number):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 5, 5, 5)).square().mean().backward()
        optimizer.step()
        yield step


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_torchs_with_the_same_decay(decay: float) -> None:
    def decaying(old: torch.Tensor, new: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        own = min(decay, (1 + float(n)) / (10 + float(n)))
        return own * old + (1 - own) * new

    model = network(0)
    ours, torchs = build_average(model, {"ema_decay": decay}), AveragedModel(model, avg_fn=decaying)
    for _ in steps(model, 12):
        ours.update_parameters(model)
        torchs.update_parameters(model)
    for mine, its in zip(ours.module.parameters(), torchs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, its)
    assert not torch.allclose(next(ours.module.parameters()), next(model.parameters()), atol=1e-4)
    for mine, its in zip(ours.module.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, its)  # means and variances as they are: torch averages parameters alone, too


def test_the_average_follows_another_model_and_its_state_goes_on() -> None:
    first = network(0)
    ours = build_average(first, {"ema_decay": 0.5})
    ours.update_parameters(first)
    second = network(1)
    ours.update_parameters(second)
    wanted = [a.lerp(b, 1 - 2 / 11) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    for mine, its in zip(ours.module.parameters(), wanted, strict=True):
        torch.testing.assert_close(mine, its)
    again = build_average(network(2), {"ema_decay": 0.5})
    again.load_state_dict(ours.state_dict())
    assert int(again.n_averaged) == 2
    for mine, its in zip(again.module.parameters(), wanted, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("most", [1e-3, 1e6])
def test_gradients_are_clipped_as_torch_does(most: float) -> None:
    ours, torchs = network(0), network(0)
    patch = torch.randn(2, 1, 5, 5, 5)
    for model in (ours, torchs):
        model(patch).square().sum().backward()
    norm = clipped(list(ours.parameters()), most)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(torchs.parameters(), most)))
    for mine, its in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
