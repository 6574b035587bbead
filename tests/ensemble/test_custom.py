"""What is given as an ensemble of MONAI's kind, and what it may choose."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from monai.apps.auto3dseg import AlgoEnsemble, AlgoEnsembleBestN

from autoseg import AutoRunner
from autoseg.ensemble import custom
from autoseg.ensemble.custom import choose_by, ensemble_instance
from autoseg.errors import InputError
from autoseg.records import LeaderboardEntry

ENTRIES = [LeaderboardEntry("a", fold, "done", 0.5 + fold / 10) for fold in range(3)]


class Needy(AlgoEnsemble):
    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names

    def collect_algos(self) -> None:
        self.algo_ensemble = [{"identifier": name} for name in self.names] + [None]  # as MONAI's by fold may leave


class Voting(Needy):
    def __init__(self) -> None:
        super().__init__([])
        self.mode = "vote"

    def ensemble_pred(self, preds: Any, sigmoid: bool = False) -> Any:
        return preds[0]


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores decide here, not the bundles' files."""
    monkeypatch.setattr(custom, "algo_from_json", lambda path: (Path(path).parent.name, {}))


def test_monai_s_own_ensembles_choose_by_score() -> None:
    chosen = choose_by(ensemble_instance(AlgoEnsembleBestN(n_best=2)), Path("w"), ENTRIES)
    assert [entry.name for entry in chosen] == ["a_1", "a_2"]


def test_what_it_takes_must_have_been_offered_and_counts_once() -> None:
    assert choose_by(Needy(["a_2", "a_0", "a_2"]), Path("w"), ENTRIES) == [ENTRIES[2], ENTRIES[0]]
    with pytest.raises(InputError, match="Needy took b_0, not offered: a_0, a_1, a_2 were"):
        choose_by(Needy(["b_0"]), Path("w"), ENTRIES)


@pytest.mark.parametrize(("given", "words"), [(dict, "subclass"), (7, "subclass"), (Needy, "give an instance")])
def test_what_is_no_ensemble_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ensemble_instance(given)


def test_the_runner_takes_its_mode_and_says_what_does_not_count(
    demo_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = AutoRunner(work_dir=tmp_path, input={"modality": "MRI", "datalist": str(demo_data)})
    with caplog.at_level(logging.WARNING):
        assert runner.set_ensemble_method(Voting).config.ensemble_mode == "vote"
    assert "only its collect_algos counts" in caplog.text
    assert runner.config.ensemble_method == "auto"
