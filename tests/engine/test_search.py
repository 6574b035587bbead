"""The search of an architecture: bounded, resumable, within its memory; what it finds is what is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from autoseg.bundles.marks import architecture_file
from autoseg.engine import entry
from autoseg.engine import search as searching
from autoseg.engine.bundle import Bundle
from autoseg.engine.search import ArchitectureSearch
from autoseg.engine.trainer import Trainer
from autoseg.errors import InputError
from autoseg.workspace import read_json

BundleOf = Callable[..., Path]
SEARCH = {"search": True, "search_iterations": 5, "precision": "float32", "num_iterations": 3, "roi_size": [16, 16, 16]}


@pytest.fixture
def make(bundle_of_family: BundleOf) -> Callable[..., Bundle]:
    return lambda **settings: Bundle.load(bundle_of_family("dints", "isotropic", **{**SEARCH, **settings}))


def test_what_is_found_is_what_is_trained(make: Callable[..., Bundle]) -> None:
    bundle = make()
    fixed = bundle.settings["arch_code_a"]
    entry.train(bundle.root, {})
    found = read_json(architecture_file(bundle.root))
    assert found["steps"] == 5 and found["memory"] <= 1.0
    again = Bundle.load(bundle.root)
    assert {key: again.settings[key] for key in ("arch_code_a", "arch_code_c", "node_a")} == {
        key: found[key] for key in ("arch_code_a", "arch_code_c", "node_a")
    }
    assert found["arch_code_a"] != fixed
    told = ConfigParser(ConfigParser.load_config_file(str(bundle.root / "configs" / "train.yaml")))
    told["bundle_root"] = str(bundle.root)
    assert told.get_parsed_content("arch_code_a") == found["arch_code_a"], "for MONAI's tools, too"
    again.trained_network()  # its weights are those of the found architecture
    assert Bundle.load(bundle.root, {"search": False}).settings["arch_code_a"] == fixed
    assert (bundle.root / "docs" / "architecture.svg").read_text().startswith("<svg")
    assert not (bundle.root / "models" / "search.pt").exists()
    lines = [json.loads(line) for line in (bundle.root / "search.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 5 and lines[-1]["memory"] > 0


def test_a_search_that_was_cut_off_ends_as_one_that_was_not(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make()
    whole = ArchitectureSearch(bundle)
    whole.run()
    monkeypatch.setattr(searching, "KEPT_SECONDS", 0.0)
    torn = ArchitectureSearch(bundle)
    keep = torn._keep

    def stop_after() -> None:
        keep()
        if torn.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torn, "_keep", stop_after)
    with pytest.raises(KeyboardInterrupt):
        torn.run()
    resumed = ArchitectureSearch(bundle)
    assert resumed.run()["steps"] == 5
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert one.equal(other)


def test_one_of_other_settings_begins_anew(make: Callable[..., Bundle], caplog: pytest.LogCaptureFixture) -> None:
    bundle = make()
    begun = ArchitectureSearch(bundle)
    begun.step, begun._resumed = 3, time.monotonic()
    begun._keep()
    other = ArchitectureSearch(Bundle.load(bundle.root, {"search_rate": 0.5}))
    other._resume()
    assert other.step == 0 and "begins anew" in caplog.text
    longer = ArchitectureSearch(Bundle.load(bundle.root, {"search_iterations": 9}))
    longer._resume()
    assert longer.step == 3


def test_where_memory_runs_out_it_goes_on_with_less(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search = ArchitectureSearch(make(num_images_per_batch=2))
    sizes: list[tuple[int, ...]] = []
    segment = ArchitectureSearch._segment

    def cramped(self: ArchitectureSearch, batch: dict[str, Any]) -> Any:
        sizes.append(tuple(batch["image"].shape))
        if len(batch["image"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return segment(self, batch)

    monkeypatch.setattr(ArchitectureSearch, "_segment", cramped)
    assert search.run()["steps"] == 5
    assert [size[0] for size in sizes[:3]] == [2, 1, 1]
    assert "1 of 2 patches a step" in caplog.text


def test_edges_and_operations_learn_and_the_weights_first(make: Callable[..., Bundle]) -> None:
    early = ArchitectureSearch(make(search_iterations=20))
    before = [parameter.detach().clone() for parameter in early.choices]
    chosen: list[int] = []
    early._choose = lambda batch, choose=early._choose: (chosen.append(early.step), choose(batch))  # type: ignore
    early.run()
    assert chosen == list(range(5, 20)), "not in the first fifth"
    for parameter, first in zip(early.choices, before, strict=True):
        assert not parameter.equal(first)


def test_memory_is_kept_to(make: Callable[..., Bundle]) -> None:
    assert ArchitectureSearch(make(search_memory=0.4)).run()["memory"] <= 0.4


def test_the_halves_share_no_case_and_one_case_is_too_few(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make()
    first, second = ArchitectureSearch(bundle).halves
    training, validation = bundle.cases()
    assert {case.id for case in first}.isdisjoint(case.id for case in second)
    assert {case.id for case in (*first, *second)} == {case.id for case in training}
    monkeypatch.setattr(Bundle, "cases", lambda self: (training[:1], validation))
    with pytest.raises(InputError, match="search: takes two training cases"):
        ArchitectureSearch(bundle)


@pytest.mark.parametrize("limits", [{"search_seconds": 0.5}, {"search_iterations": 2, "search_seconds": 600.0}])
def test_seconds_or_steps_end_it(make: Callable[..., Bundle], limits: dict[str, Any]) -> None:
    found = ArchitectureSearch(make(**limits)).run()
    assert found["steps"] <= 5
    assert found["seconds"] < 60


def test_training_goes_on_from_its_own_architecture(make: Callable[..., Bundle]) -> None:
    """A checkpoint is of the architecture that was found: the second training takes it over whole."""
    bundle = make()
    entry.train(bundle.root, {})
    trainer = Trainer(Bundle.load(bundle.root, {"num_iterations": 4}))
    assert trainer.run().step == 4
    assert not trainer._complaint
