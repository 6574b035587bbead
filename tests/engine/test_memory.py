"""Memory that runs out costs a training time, not its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.engine.bundle import Bundle
from autoseg.engine.memory import out_of_memory
from autoseg.engine.slices import run_network
from autoseg.engine.trainer import Trainer

MakeBundle = Callable[..., Path]
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


def trained(root: Path, most: int, error: Exception, **settings: Any) -> Trainer:
    """Trains where a forward pass of more than `most` patches runs out of memory."""
    trainer = Trainer(Bundle.load(root, settings))

    def refuse(network: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        if network.training and len(given[0]) > most:
            raise error

    trainer.network.register_forward_pre_hook(refuse)
    trainer.run()
    return trainer


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "torch on the CPU"])
def test_a_batch_that_does_not_fit_is_taken_in_parts(make_bundle: MakeBundle, error: Exception) -> None:
    root = make_bundle(num_images_per_batch=4)
    trainer = trained(root, 1, error)
    assert (trainer.progress.step, trainer.progress.parts) == (6, 4)
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    told = [line["warning"] for line in lines if "warning" in line]
    assert told == [
        "memory ran out at step 1: 2 of 4 patches at a time",
        "memory ran out at step 1: 1 of 4 patches at a time",
    ]
    again = Trainer(Bundle.load(root, {"num_iterations": 7}))
    assert again.run().parts == 4, "it is remembered"


def test_parts_have_the_gradient_of_the_whole(make_bundle: MakeBundle) -> None:
    """Of a loss that is a mean over patches; Dice over a batch is not one."""
    gradients = []
    for parts in (1, 3):
        trainer = Trainer(Bundle.load(make_bundle(num_images_per_batch=3, precision="float32", gradient_clip=1e9)))
        trainer.loss = lambda outputs, label: (outputs[0] if isinstance(outputs, list) else outputs).square().mean()
        trainer.progress.parts = parts
        batch = {
            "image": torch.linspace(-1, 1, 3 * 16**3).view(3, 1, 16, 16, 16),
            "label": torch.zeros(3, 1, 16, 16, 16),
        }
        trainer._optimise(batch)
        gradients.append([p.grad.clone() for p in trainer.network.parameters() if p.grad is not None])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-6)


def test_one_patch_that_does_not_fit_is_an_error(make_bundle: MakeBundle) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(make_bundle(), 0, ERRORS[0])


class Narrow(torch.nn.Module):
    """Takes two windows at a time and no more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise ERRORS[0]
        return x.repeat(1, 3, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("axis", [None, 2])
def test_windows_that_do_not_fit_are_answered_by_halves(axis: int | None) -> None:
    windows = torch.rand(7, 1, 4, 4, 1)
    torch.testing.assert_close(run_network(Narrow(), windows, axis), windows.repeat(1, 3, 1, 1, 1))
    with pytest.raises(torch.OutOfMemoryError):
        run_network(lambda x: Narrow()(x.repeat(3, 1, 1, 1, 1)), windows[:1], None)  # type: ignore[arg-type]


def test_another_error_is_none_of_memory(make_bundle: MakeBundle) -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        trained(make_bundle(), 0, RuntimeError("shapes"))
