"""A training whose loss goes astray goes back to its last checkpoint, and gives up only after three times."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.engine.astray import MOST_RETURNS, SETTLED, AstrayError, LossWatch
from autoseg.engine.bundle import Bundle
from autoseg.engine.trainer import Hook, Trainer

MakeBundle = Callable[..., Path]


class Faulty(Trainer):
    """Gives `loss` for the steps of these numbers, each once, or every time."""

    def __init__(self, root: Path, at: set[int], loss: float = math.nan, always: bool = False, hooks: Any = ()):
        super().__init__(Bundle.load(root), hooks)
        self.at, self.false_loss, self.always, self.rates = set(at), loss, always, []

    def _step(self) -> float:
        loss = super()._step()
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        number = self.progress.step + 1
        if number not in self.at:
            return loss
        if not self.always:
            self.at.discard(number)
        return self.false_loss


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("at", "back_to"), [(2, 0), (5, 4)])
def test_it_goes_back_with_half_the_rate_and_ends_whole(make_bundle: MakeBundle, at: int, back_to: int) -> None:
    root = make_bundle(num_iterations=8, num_epochs_per_validation=2, lr_schedule="constant", num_warmup_epochs=0)
    settings = {"num_iterations": None, "num_epochs": 4}  # two steps an epoch: validated at 4 and 8
    trainer = Faulty(root, {at})
    trainer.settings |= settings
    progress = trainer.run()
    assert (progress.step, progress.returns) == (8, 1)
    (told,) = [line for line in lines(root) if "warning" in line]
    assert told["step"] == back_to and f"the loss is nan at step {at}: back to step {back_to}" in told["warning"]
    assert trainer.rates[-1] == pytest.approx(trainer.settings["learning_rate"] / 2)
    assert len(trainer.rates) == 8 + at - back_to
    state = torch.load(root / "models" / "model_final.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    steps = [line["step"] for line in lines(root)]
    assert steps == sorted(steps)


def test_a_gradient_that_is_not_finite_costs_one_step(make_bundle: MakeBundle) -> None:
    trainer = Trainer(Bundle.load(make_bundle()))
    parameter = next(trainer.network.parameters())
    before = parameter.detach().clone()
    handle = parameter.register_hook(lambda gradient: gradient * math.inf)
    batch = {"image": torch.rand(2, 1, 16, 16, 16), "label": torch.ones(2, 1, 16, 16, 16)}
    assert math.isfinite(trainer._optimise(batch)) and torch.equal(parameter, before)
    handle.remove()
    trainer._optimise(batch)
    assert not torch.equal(parameter, before)


def test_it_gives_up_after_three_returns(make_bundle: MakeBundle) -> None:
    trainer = Faulty(make_bundle(), {3}, always=True)
    with pytest.raises(AstrayError, match="nan at step 3"):
        trainer.run()
    assert trainer.progress.returns == MOST_RETURNS


class Killed(Hook):
    def on_step(self, trainer: Trainer, loss: float) -> None:
        if trainer.progress.returns and trainer.progress.step == 5:
            raise KeyboardInterrupt


def test_a_return_outlives_the_process(make_bundle: MakeBundle) -> None:
    """Killed after it went back, a training ends as one that was left alone after it."""
    whole, torn = make_bundle(name="whole_0"), make_bundle(name="torn_0")
    Faulty(whole, {2}).run()
    with pytest.raises(KeyboardInterrupt):
        Faulty(torn, {2}, hooks=(Killed(),)).run()
    progress = Trainer(Bundle.load(torn)).run()
    assert progress.returns == 1
    ends = [torch.load(root / "models" / "model_final.pt", weights_only=True) for root in (whole, torn)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_an_explosion_is_no_single_bad_patch() -> None:
    watch = LossWatch()
    for step in range(SETTLED):
        watch.see(step, 3.0)
    watch.see(SETTLED, 15.0)
    assert watch.calm
    for step in range(20):
        watch.see(step, 1.0)
    with pytest.raises(AstrayError, match="exploded"):
        for step in range(20):
            watch.see(step, 50.0)
    assert not watch.calm


def test_weights_on_their_way_up_are_no_checkpoint(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    trainer = Faulty(root, set())
    trainer.watch = LossWatch(steps=SETTLED, usual=1.0, mean=3.9)
    trainer.settings["num_iterations"] = 1
    trainer.run()
    assert not trainer.watch.calm
    assert not (root / "models" / "checkpoint.pt").exists()
