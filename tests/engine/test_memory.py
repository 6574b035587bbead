"""Memory that runs out costs a training time, not its end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from autoseg.engine import entry, validation
from autoseg.engine.astray import AstrayError
from autoseg.engine.bundle import Bundle
from autoseg.engine.memory import out_of_memory
from autoseg.engine.predictor import Predictor
from autoseg.engine.slices import run_network
from autoseg.engine.trainer import Hook, Trainer
from autoseg.pipeline.inputs import bundle_parts
from autoseg.records import Event
from autoseg.workspace import read_json, read_yaml

MakeBundle = Callable[..., Path]
CPU = torch.device("cpu")
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


def test_where_several_processes_make_a_step_the_next_try_takes_less(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_images_per_batch=4)
    first = Trainer(Bundle.load(root))
    first.ranks.world = 2

    def full() -> None:
        raise ERRORS[0]

    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            first._with_less(full, first.progress.take_less)
    again = Trainer(Bundle.load(root))
    assert again.run().parts == 4
    assert (root / "models" / "checkpoint_less.json").is_file()


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


def test_one_patch_that_does_not_fit_is_an_error_where_it_cannot_be_halved(make_bundle: MakeBundle) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(make_bundle(), 0, ERRORS[0])
    with pytest.raises(torch.OutOfMemoryError):
        trained(make_bundle(roi_multiple=[2, 2, 2]), 0, ERRORS[0])


LONG = {"roi_size": [16, 32, 16], "roi_multiple": [2, 2, 2], "num_images_per_batch": 2}
FITS = 16**3  # voxels


def refuse(monkeypatch: pytest.MonkeyPatch, voxels: int = FITS, after: int = 0) -> list[tuple[int, ...]]:
    """From step `after` on, a pass of more voxels runs out of memory; returns the shapes that were trained on."""
    whole, seen = Trainer._optimise, list[tuple[int, ...]]()

    def optimise(trainer: Trainer, batch: dict[str, torch.Tensor]) -> float:
        at_once = math.ceil(len(batch["image"]) / trainer.progress.parts)
        if trainer.progress.step >= after and at_once * math.prod(batch["image"].shape[2:]) > voxels:
            raise ERRORS[0]
        seen.append(tuple(batch["image"].shape[2:]))
        return whole(trainer, batch)

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    return seen


def warnings(root: Path) -> list[str]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [line["warning"] for line in lines if "warning" in line]


def test_a_patch_that_does_not_fit_is_halved(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    root, seen = make_bundle(**LONG), refuse(monkeypatch, after=2)
    trainer = Trainer(Bundle.load(root))
    windows: list[tuple[int, ...]] = []
    trainer.average.module.register_forward_pre_hook(lambda _, given: windows.append(tuple(given[0].shape[2:])))
    progress = trainer.run()
    assert (progress.step, progress.parts, progress.patch) == (6, 2, [16, 16, 16])
    assert seen == [(16, 32, 16)] * 2 + [(16, 16, 16)] * 4
    assert set(windows) == {(16, 32, 16), (16, 16, 16)} and windows[-1] == (16, 16, 16), "validated alike"
    assert warnings(root) == [
        "memory ran out at step 3: 1 of 2 patches at a time",
        "memory ran out at step 3: patches and windows of 16x16x16 instead of 16x32x16 voxels",
    ]


@pytest.mark.parametrize("at", [2, 5])
def test_a_training_whose_patch_was_halved_resumes_exactly(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole, torn = make_bundle(name="whole_0", **LONG), make_bundle(name="torn_0", **LONG)
    refuse(monkeypatch, after=2)
    Trainer(Bundle.load(whole)).run()

    class Kill(Hook):
        def on_step(self, trainer: Trainer, loss: float) -> None:
            if trainer.progress.step == at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(torn), hooks=(Kill(),)).run()
    assert Trainer(Bundle.load(torn)).run().patch == [16, 16, 16]
    first, second = (torch.load(root / "models" / "model_final.pt", weights_only=True) for root in (whole, torn))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert set(warnings(whole)) == set(warnings(torn))


def test_windows_that_run_out_while_validating_make_the_patch_smaller(make_bundle: MakeBundle) -> None:
    root = make_bundle(**LONG)
    trainer = Trainer(Bundle.load(root))

    def narrow(network: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        if given[0][0, 0].numel() > FITS:
            raise ERRORS[0]

    trainer.average.module.register_forward_pre_hook(narrow)
    assert trainer.run().patch == [16, 16, 16]


def test_after_a_return_the_patch_stays_small(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = refuse(monkeypatch, after=2)
    trainer, astray = Trainer(Bundle.load(make_bundle(**LONG))), [True]
    fine = trainer.watch.see

    def see(step: int, loss: float) -> None:
        if step == 4 and astray.pop():
            astray.append(False)
            raise AstrayError("the loss is nan at step 4")
        fine(step, loss)

    monkeypatch.setattr(type(trainer.watch), "see", lambda watch, step, loss: see(step, loss))
    progress = trainer.run()
    assert (progress.returns, progress.patch) == (1, [16, 16, 16])
    assert set(seen[2:]) == {(16, 16, 16)}


def test_a_rehearsal_makes_do_and_leaves_nothing(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    root, seen = make_bundle(**LONG), refuse(monkeypatch)
    assert len(Trainer(Bundle.load(root)).rehearse(0.1, 3)) == 3 and seen == [(16, 16, 16)] * 3
    assert not (root / "metrics.jsonl").exists()


def test_the_bundle_says_the_patch_it_was_trained_with(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_bundle(**LONG)
    before = bundle_parts(root)
    with monkeypatch.context() as small:
        refuse(small)
        entry.train(root, {"num_iterations": 2})
    assert bundle_parts(root) == before, "what is done stays done"
    assert read_json(root / "scores.json")["roi_size"] == [16, 16, 16]
    assert Bundle.load(root).settings["roi_size"] == [16, 16, 16]
    assert Bundle.load(root, {"roi_size": [8, 8, 8]}).settings["roi_size"] == [8, 8, 8]
    parser = ConfigParser({**read_yaml(root / "configs" / "inference.yaml"), "bundle_root": str(root)})
    assert parser.get_parsed_content("inferer").roi_size == [16, 16, 16]
    assert parser.get_parsed_content("roi_size") == LONG["roi_size"]
    entry.train(root, {"num_iterations": 3})  # goes on, and knows it from its checkpoint
    assert Bundle.load(root).settings["roi_size"] == [16, 16, 16]
    (root / "models" / "checkpoint.pt").unlink()  # anew, with room
    entry.train(root, {"num_iterations": 2})
    assert Bundle.load(root).settings["roi_size"] == LONG["roi_size"]
    assert ConfigParser({**parser.get(), "bundle_root": str(root)}).get_parsed_content("window_size") == [16, 32, 16]


def test_predictions_make_do_with_smaller_windows(make_bundle: MakeBundle) -> None:
    root = make_bundle(**LONG, num_iterations=1)
    Trainer(Bundle.load(root)).run()
    bundle, expected = Bundle.load(root), Bundle.load(root, {"roi_size": [16, 16, 16]})
    told: list[Event] = []
    predictor, case = Predictor([bundle], CPU, notify=told.append), bundle.datalist().testing[0]

    def narrow(network: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        if given[0][0, 0].numel() > FITS:
            raise ERRORS[0]

    predictor._networks(0)[0].register_forward_pre_hook(narrow)
    found = predictor.predict(case).labels
    assert (found == Predictor([expected], CPU).predict(case).labels).all()
    predictor.predict(case)
    message = "memory ran out: windows of 16x16x16 instead of 16x32x16 voxels"
    assert [event.message for event in told] == [message], "said once, and remembered"


@pytest.mark.parametrize("error", [ERRORS[0], RuntimeError("shapes")])
def test_a_volume_that_does_not_fit_on_the_device_is_put_together_beside_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The meta device stands for a GPU without memory for a volume."""
    homes = []

    def slide(image: torch.Tensor, *_: Any, device: torch.device, sw_device: torch.device, **__: Any) -> torch.Tensor:
        homes.append((image.device.type, device.type, sw_device.type))
        if device.type == "meta":
            raise error
        return image

    monkeypatch.setattr(validation, "sliding_window_inference", slide)
    settings = {"slice_axis": None, "roi_size": [4, 4, 4], "sw_batch_size": 1, "validation_overlap": 0.5}
    work = torch.nn.Identity(), torch.rand(1, 3, 8, 8, 8), settings
    if error is ERRORS[0]:
        assert torch.equal(validation._logits(*work, torch.device("meta")), work[1])
        assert homes == [("meta", "meta", "meta"), ("cpu", "cpu", "meta")]
    else:
        with pytest.raises(RuntimeError, match="shapes"):
            validation._logits(*work, torch.device("meta"))


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_a_real_gpu_that_runs_out_of_memory(make_bundle: MakeBundle) -> None:
    """The training gets three quarters of what it needs for a single patch."""
    root = make_bundle(roi_size=[32, 128, 128], roi_multiple=[2, 2, 2], num_images_per_batch=2, init_filters=32)
    probe = Trainer(Bundle.load(root))
    probe.progress.parts = 2
    probe.rehearse(0.0, 1)
    needed, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    del probe
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * needed / total)
    try:
        progress = Trainer(Bundle.load(root)).run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert progress.step == 6 and progress.parts == 2 and 0 < math.prod(progress.patch) < 32 * 128 * 128
    assert warnings(root)
