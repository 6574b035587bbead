"""The one loop: deterministic, resumable, honest about what it wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.bundles.marks import patch_file
from autoseg.engine import precision as of_engine
from autoseg.engine import rehearsal
from autoseg.engine.bundle import Bundle
from autoseg.engine.predictor import Predictor
from autoseg.engine.rehearsal import measure
from autoseg.engine.trainer import Hook, Trainer
from autoseg.errors import InputError
from autoseg.records import Case
from autoseg.workspace import write_json

MakeBundle = Callable[..., Path]


def weights(root: Path, name: str = "model_final.pt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(root / "models" / name, weights_only=True)
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_settings_give_the_same_weights_and_another_seed_gives_others(make_bundle: MakeBundle) -> None:
    roots = [make_bundle(name="segresnet_0"), make_bundle(name="again_0"), make_bundle(name="other_0", seed=1)]
    for root in roots:
        Trainer(Bundle.load(root)).run()
    assert equal(weights(roots[0]), weights(roots[1]))
    assert not equal(weights(roots[0]), weights(roots[2]))


@pytest.mark.parametrize("at", [3, 5])
def test_a_training_interrupted_and_resumed_ends_with_the_same_weights(
    make_bundle: MakeBundle, stop_at: Callable[[int], Hook], at: int
) -> None:
    whole, torn = make_bundle(name="whole_0"), make_bundle(name="torn_0")
    Trainer(Bundle.load(whole)).run()
    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(torn), hooks=(stop_at(at),)).run()
    resumed = Trainer(Bundle.load(torn))
    progress = resumed.run()
    assert progress.step == 6
    assert equal(weights(whole), weights(torn))
    steps = [json.loads(line)["step"] for line in (torn / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_files_of_a_training(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    trainer = Trainer(Bundle.load(root))
    progress = trainer.run()
    assert progress.step == 6
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "mean_dice" in line]
    assert validated[-1]["step"] == 6
    assert set(validated[-1]["dice"]) == {"1", "2"}
    import yaml

    history = yaml.safe_load((root / "progress.yaml").read_text())
    assert history[-1]["best_avg_dice_score"] == max(line["mean_dice"] for line in validated)
    assert list((root / "tensorboard").iterdir())
    network = Bundle.load(root).trained_network()
    assert not network.training


def test_num_iterations_wins_over_num_epochs_and_epochs_count_cases(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_iterations=None, num_epochs=3)
    trainer = Trainer(Bundle.load(root))
    assert trainer.steps_per_epoch == 2  # three training cases, two a step
    assert trainer.budget.steps == 6
    assert Trainer(Bundle.load(root, {"num_iterations": 5})).budget.steps == 5


def test_seconds_end_a_training(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_iterations=None, num_epochs=None, max_seconds=1.5)
    progress = Trainer(Bundle.load(root)).run()
    assert progress.step > 0
    assert progress.seconds >= 1.5
    assert (root / "models" / "model.pt").exists()
    with pytest.raises(InputError, match="how long"):
        Trainer(Bundle.load(root, {"max_seconds": None}))


def test_a_deadline_ends_a_training_and_one_that_is_over_still_leaves_weights(make_bundle: MakeBundle) -> None:
    limits = {"num_iterations": None, "num_epochs": None, "deadline": time.time() + 6.0}
    started = time.time()
    progress = Trainer(Bundle.load(make_bundle(**limits))).run()
    assert progress.step > 1
    assert time.time() - started < 8.0
    late = make_bundle(name="late_0", **{**limits, "deadline": time.time() - 100.0})
    assert Trainer(Bundle.load(late)).run().step == 1
    assert (late / "models" / "model.pt").exists()


def test_a_rehearsal_leaves_no_trace(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    before = sorted(str(path) for path in root.rglob("*"))
    speed = measure(root, seconds=0.1)
    assert sorted(str(path) for path in root.rglob("*")) == before
    assert min(speed.start, speed.step, speed.case, speed.memory) > 0


def test_a_rehearsal_predicts_the_case_whose_windows_are_nearest_to_the_mean() -> None:
    sizes = {"small": 16, "typical": 40, "large": 48}  # 1, 64 and 125 windows
    cases = [Case(name, (f"{name}.nii",)) for name in sizes]
    shown = [SimpleNamespace(id=name, label=np.zeros((n, n, n))) for name, n in sizes.items()]
    settings = {"roi_size": [16, 16, 16], "overlap": 0.5, "mirror_axes_inference": []}
    bundle = SimpleNamespace(cases=lambda: ((Case("other", ("o.nii",)),), tuple(cases)))
    for validated, of_all in ((shown, []), ([], shown)):
        trainer: Any = SimpleNamespace(validation=validated, training=of_all, settings=settings, bundle=bundle)
        assert rehearsal._typical(trainer) == (cases[1], (40, 40, 40))


def test_a_rehearsal_predicts_in_the_planned_windows_and_in_the_fewest(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in which weights of before were scored do not count."""
    root = make_bundle(overlap=0.5, mirror_axes_inference=[0])
    write_json(patch_file(root), {"roi_size": [16, 16, 16], "overlap": 0.1, "mirror_axes_inference": []})
    asked = list[tuple[float, list[int]]]()

    class Watched(Predictor):
        def __init__(self, bundles: Sequence[Bundle], *given: Any, **more: Any):
            asked.append((bundles[0].settings["overlap"], bundles[0].settings["mirror_axes_inference"]))
            super().__init__(bundles, *given, **more)

    monkeypatch.setattr(rehearsal, "Predictor", Watched)
    speed = measure(root, seconds=0.1)
    assert asked == [(0.5, [0]), (0.25, [])]
    assert len(speed.shape) == 3 and speed.fewest > 0


def test_unknown_overrides_are_refused_together_with_the_nearest(make_bundle: MakeBundle) -> None:
    with pytest.raises(InputError) as caught:
        Bundle.load(make_bundle(), {"learnin_rate": 1, "num_epoch": 2})
    text = str(caught.value)
    assert "learning_rate" in text
    assert "num_epochs" in text
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize("change", [{"loss": "dice_focal"}, {"optimizer": "sgd", "lr_schedule": "polynomial"}])
def test_every_named_part_trains(make_bundle: MakeBundle, change: dict[str, str]) -> None:
    progress = Trainer(Bundle.load(make_bundle(num_iterations=2, **change))).run()
    assert progress.step == 2


def test_bfloat16_on_the_cpu(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_engine, "has_bfloat16", lambda: True)
    assert Trainer(Bundle.load(make_bundle(num_iterations=2, precision="float16"))).run().step == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_float16_with_scaling_on_a_gpu(make_bundle: MakeBundle) -> None:
    trainer = Trainer(Bundle.load(make_bundle(num_iterations=4, precision="float16")))
    assert trainer.scaler.is_enabled()
    assert trainer.run().step == 4
