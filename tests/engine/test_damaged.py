"""Checkpoints, weights and caches that are damaged or planted: nothing of them runs, and the training is done anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import ensure_cached
from autoseg.engine.trainer import Hook, Trainer
from autoseg.ensemble.predict import usable_bundles
from autoseg.errors import InputError, NoResultError
from autoseg.records import Event
from autoseg.workspace import read_yaml, write_yaml

MakeBundle = Callable[..., Path]


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_the_bomb_is_one(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "marker")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "marker").is_dir()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "checkpoint.pt planted": lambda models, marker: torch.save({"a": Bomb(marker)}, models / "checkpoint.pt"),
    "checkpoint.pt truncated": lambda models, _: truncate(models / "checkpoint.pt"),
    "checkpoint.pt empty": lambda models, _: (models / "checkpoint.pt").write_bytes(b""),
    "checkpoint.pt of another": lambda models, _: other(models / "checkpoint.pt"),
    "model.pt planted": lambda models, marker: torch.save({"a": Bomb(marker)}, models / "model.pt"),
    "model.pt truncated": lambda models, _: truncate(models / "model.pt"),
    "model.pt gone": lambda models, _: (models / "model.pt").unlink(),
}


def other(path: Path) -> None:
    """Of these data, but of another network."""
    state = torch.load(path, weights_only=True)
    state["network"] = {name: value[:1] for name, value in state["network"].items() if value.ndim}
    torch.save(state, path)


def test_a_damaged_training_goes_on_from_what_is_whole_and_ends_the_same(
    make_bundle: MakeBundle, stop_at: Callable[[int], Hook]
) -> None:
    """From the checkpoint before, or from the beginning; where the best weights are in the checkpoint, from that."""
    whole = make_bundle()
    Trainer(Bundle.load(whole)).run()
    ends = torch.load(whole / "models" / "model_final.pt", weights_only=True)
    torn = make_bundle(name="torn_0")
    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(torn), (stop_at(5),)).run()
    step = torch.load(torn / "models" / "checkpoint_before.pt", weights_only=True)["progress"]["step"]
    assert step == 3
    for name, damage in DAMAGES.items():
        root, marker = torn.with_name("damaged_0"), torn.parent / "marker"
        shutil.copytree(torn, root)
        damage(root / "models", marker)
        assert Trainer(Bundle.load(root)).run().step == 6
        again = torch.load(root / "models" / "model_final.pt", weights_only=True)
        assert all(torch.equal(again[key], ends[key]) for key in ends), name
        told = [json.loads(line).get("warning", "") for line in (root / "metrics.jsonl").read_text().splitlines()]
        told = [line for line in told if line]
        if "checkpoint" in name:
            assert len(told) == 1 and f": back to step {step}" in told[0] and "checkpoint.pt" in told[0], name
        assert torch.load(root / "models" / "model.pt", weights_only=True).keys() == ends.keys()
        assert not marker.exists() and not (root / "models" / "checkpoint_before.pt").exists(), name
        shutil.rmtree(root)


def test_with_no_checkpoint_that_is_whole_it_begins_anew(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    Trainer(Bundle.load(root)).run()
    ends = torch.load(root / "models" / "model_final.pt", weights_only=True)
    truncate(root / "models" / "checkpoint.pt")
    assert Trainer(Bundle.load(root)).run().step == 6
    again = torch.load(root / "models" / "model_final.pt", weights_only=True)
    assert all(torch.equal(again[key], ends[key]) for key in ends)
    assert "checkpoint.pt is cut off" in (root / "metrics.jsonl").read_text().splitlines()[0]
    assert "trained anew" in (root / "metrics.jsonl").read_text().splitlines()[0]


def test_metrics_of_another_form_are_dropped(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    (root / "metrics.jsonl").write_bytes(b'[1]\n3\n{"step": "x"}\n\xff\xfe\n{"step": 2, "lo')
    assert Trainer(Bundle.load(root)).run().step == 6
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6


def test_a_member_with_planted_weights_is_left_out(make_bundle: MakeBundle) -> None:
    good, bad = make_bundle(), make_bundle(fold=1)
    marker = good.parent / "marker"
    torch.save(Bundle.load(good).network().state_dict(), good / "models" / "model.pt")
    torch.save({"a": Bomb(marker)}, bad / "models" / "model.pt")
    events: list[Event] = []
    assert [bundle.root.name for bundle in usable_bundles([good, bad], events.append)] == ["segresnet_0"]
    (event,) = events
    assert "segresnet_1 is left out" in event.message and "nothing of it was run" in event.message
    assert "weights_only" not in event.message, "torch's own words advise to run it"
    torch.save([1], bad / "models" / "model.pt")
    with pytest.raises(NoResultError):
        usable_bundles([bad], events.append)
    assert not marker.exists()


@pytest.mark.parametrize("value", ["$X", "@X", "%X", ["$X"], {"a": "$X"}])
def test_hyper_parameters_are_no_expressions(make_bundle: MakeBundle, value: Any) -> None:
    root = make_bundle()
    marker = root.parent / "marker"
    path = root / "configs" / "hyper_parameters.yaml"
    planted = json.loads(json.dumps(value).replace("X", f"open('{marker}', 'w')"))
    write_yaml(path, {**read_yaml(path), "init_filters": planted}, versioned=False)
    with pytest.raises(InputError, match=r"init_filters: .* no expression is allowed here"):
        Bundle.load(root).network()
    assert not marker.exists()


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "places.npy", "case.json"])
def test_a_damaged_case_of_the_cache_is_made_anew(make_bundle: MakeBundle, file: str) -> None:
    bundle = Bundle.load(make_bundle())
    cases = bundle.cases()[0][:1]
    (cached,) = ensure_cached(bundle, cases)
    whole, marker = (cached.folder / file).read_bytes(), bundle.root.parent / "marker"
    for content in (whole[: len(whole) // 2], b"", b"[]", None):
        if content is None:
            with open(cached.folder / file, "wb") as open_file:
                np.save(open_file, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
        else:
            (cached.folder / file).write_bytes(content)
        ensure_cached(bundle, cases)
        assert (cached.folder / file).read_bytes() == whole
    assert not marker.exists()
