"""Who is in the ensemble: by the files of trainings as they lie in a work_dir."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from autoseg.bundles.marks import out_of_fold_file
from autoseg.config import load_config
from autoseg.engine.out_of_fold import OutOfFold
from autoseg.pipeline import choosing
from autoseg.pipeline.pace import Pace
from autoseg.pipeline.session import Session, open_session
from autoseg.records import Case, Datalist, Event, LeaderboardEntry
from autoseg.workspace import read_json, write_json

SHAPE, CASES, FOLDS = (12, 12, 6), 12, 2


def truth() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[2:6, 3:10, 1:5], found[6:10, 3:9, 1:5] = 1, 2
    return found


@dataclass
class Scene:
    """A session in a work_dir with trained families, and what was heard."""

    session: Session
    datalist: Datalist
    board: list[LeaderboardEntry]
    events: list[Event]

    def pick(self, **changes: Any) -> choosing.Ensemble:
        session = replace(self.session, config=replace(self.session.config, **changes))
        return choosing.pick_members(session, self.datalist, self.board, unvalidated_ok=False)

    @property
    def record(self) -> dict[str, Any]:
        return dict(read_json(self.session.workspace.ensemble_json))

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if event.kind == "warning"]


MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(demo_data: Path, odd_path: Path) -> Iterator[MakeScene]:
    """`make_scene(a=3.0, b=3.0)`: families by name, with the deviation of the noise on their logits."""
    config = load_config(None, work_dir=str(odd_path / "w"), datalist=str(demo_data), modality="MRI")
    events: list[Event] = []
    with open_session(config, events.append) as session:

        def make(**families: float) -> Scene:
            cases = tuple(Case(f"c{n:02d}", (f"c{n:02d}.nii.gz",), "x", n % FOLDS) for n in range(CASES))
            datalist = Datalist("d", ".", cases, labels={1: "a", 2: "b"}, num_fold=FOLDS)
            board = []
            for number, (family, deviation) in enumerate(families.items()):
                for fold in range(FOLDS):
                    root = session.workspace.root / f"{family}_{fold}"
                    (root / "models").mkdir(parents=True)
                    (root / "models" / "model.pt").touch()
                    write_json(root / "scores.json", {"seconds_a_case": 0.5})
                    board.append(LeaderboardEntry(family, fold, "done", 0.9 - 0.01 * number, {"1": 0.9}))
                for n, case in enumerate(cases):
                    generator = np.random.default_rng([number, n])
                    logits = np.stack([(truth() == value) * 4.0 for value in range(3)])
                    smooth = ndimage.gaussian_filter(generator.normal(size=(2, *SHAPE)), (0, 1, 1, 1))
                    logits[1:] += deviation * smooth / smooth.std()
                    p = (np.exp(logits) / np.exp(logits).sum(0))[1:].astype(np.float16)
                    totals = {label: int((truth() == label).sum()) for label in (1, 2)}
                    file = out_of_fold_file(session.workspace.root / f"{family}_{case.fold}", case.id)
                    OutOfFold(p, (0, 0, 0), truth(), totals, 1.0).save(file)
            return Scene(session, datalist, board, events)

        yield make


def test_the_selection_is_used_recorded_and_kept(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    found = scene.pick()
    assert found.members == ("a_0", "b_0", "a_1", "b_1")
    assert set(found.combination.weights) == set(found.members) and found.combination.temperature != 1.0
    record = scene.record
    assert record["members"] == list(found.members) and record["method"] == "auto"
    assert record["selection"]["method"] in ("greedy selection", "AlgoEnsembleAll", "AlgoEnsembleBestN")
    assert record["selection"]["mean_dice"] > 0.5 and "rows" not in record["selection"] and record["doubt"]
    said = next(event.message for event in scene.events if event.message.startswith("ensemble: "))
    assert "against the best family alone" in said and "s of prediction a case for" in said
    job = scene.session.workspace.job("select") / "result.json"
    stamp = job.stat().st_mtime_ns
    assert scene.pick() == found and job.stat().st_mtime_ns == stamp
    standing = choosing.standing_ensemble(scene.session, scene.session.workspace, scene.board, None)
    assert standing == found and not scene.warnings()


def test_a_limit_on_prediction_time(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    known = choosing._seconds_a_case(scene.session, scene.datalist, scene.board)
    seconds = known["a"]
    scores = scene.session.workspace.root / "a_1" / "scores.json"
    for nothing in (0.0, None):  # as of a network that was trained on all cases
        write_json(scores, {**read_json(scores), "seconds_a_case": nothing})
        assert choosing._seconds_a_case(scene.session, scene.datalist, scene.board) == known
    assert len(scene.pick(predict_seconds_per_case=2.5 * seconds).members) == 2
    assert len(scene.pick(predict_seconds_per_case=1.5 * seconds, ensemble_mode="vote").members) == 1
    assert any("predict_seconds_per_case leaves no time" in message for message in scene.warnings())


def test_a_choice_for_which_there_is_too_little_time_now_is_made_again(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run does that was cut off while it predicted; and only then."""
    scene = make_scene(a=3.0, b=3.0)
    left: list[float] = [100.0]
    monkeypatch.setattr(choosing, "_prediction_times", lambda *_: ({"a": 1.0, "b": 1.0}, left[0]))
    job = scene.session.workspace.job("select") / "result.json"

    def picked(seconds: float) -> tuple[int, int]:
        """Members, and when they were chosen."""
        left[0] = seconds
        return len(scene.pick().members), job.stat().st_mtime_ns

    first, enough, short, same, shorter = (picked(seconds) for seconds in (100.0, 50.0, 2.5, 2.5, 0.5))
    assert first == enough and first[0] == 4
    assert short[0] == 2 and short[1] > first[1] and same == short
    assert shorter[0] == 1 and shorter[1] > short[1] and picked(0.5) == shorter  # one is kept whatever it takes


def test_within_a_time_limit_seconds_are_those_of_a_case(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four GPUs predict four of the 8 cases at a time: a network that needs 10 s for all of them takes 5 s a case."""
    scene = make_scene(a=3.0)
    datalist = replace(scene.datalist, testing=scene.datalist.training[:8])
    planned = Pace([], closing=20.0, member_seconds={"a": 10.0, "never trained": 1.0})
    times = choosing._prediction_times
    assert times(scene.session, datalist, scene.board, planned)[1] is None  # no limit
    clocked = replace(scene.session, clock=SimpleNamespace(left=100.0))
    taken, most = times(clocked, datalist, scene.board, planned)
    assert (taken["a"], most) == (1.25, 10.0)
    gpus = tuple(SimpleNamespace(index=n) for n in range(4))
    monkeypatch.setattr(Session, "slots", lambda self, jobs, memory=0: [None] * min(4, jobs))
    monkeypatch.setattr(Session, "training_slots", lambda self, jobs: [None] * min(4, jobs))
    on_gpus = replace(clocked, devices=SimpleNamespace(gpus=gpus, cores=8))
    taken, most = times(on_gpus, datalist, scene.board, planned)
    assert (taken["a"], most) == (5.0, 40.0)
    limited = replace(on_gpus, config=replace(on_gpus.config, predict_seconds_per_case=6.0))
    assert times(limited, datalist, scene.board, planned)[1] == 6.0


def test_a_leading_family_of_which_few_cases_are_kept_is_not_left_out_for_that(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    for case in scene.datalist.training[:7]:
        out_of_fold_file(scene.session.workspace.root / f"a_{case.fold}", case.id).unlink()
    assert scene.pick().members == ("a_0", "a_1") and "selection" not in scene.record
    said = [event.message for event in scene.events if "not chosen out of fold" in event.message]
    assert len(said) == 1 and "too few probabilities of a, the best family, are kept" in said[0]


def test_members_that_a_method_gives_are_weighed_alike_and_calibrated(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    scene.board[3] = replace(scene.board[3], mean_dice=0.95)  # b_1 is the best of its fold
    found = scene.pick(ensemble_method="AlgoEnsembleBestByFold")
    assert found.members == ("a_0", "b_1") and found.combination.weights == {"a_0": 0.5, "b_1": 0.5}
    assert found.combination.temperature != 1.0 and scene.record["method"] == "AlgoEnsembleBestByFold"


def test_votes_have_no_weights(make_scene: MakeScene) -> None:
    found = make_scene(a=3.0, b=3.0).pick(ensemble_mode="vote")
    assert found.combination == choosing.Combination("vote") and found.members == ("a_0", "a_1")


def test_a_family_that_kept_nothing_is_named_or_if_it_leads_decides(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    for case in scene.datalist.training:
        out_of_fold_file(scene.session.workspace.root / f"b_{case.fold}", case.id).unlink()
    assert scene.pick().members == ("a_0", "a_1")
    assert scene.record["left_out"] == [
        {"name": "b", "reason": "too few probabilities of its validation cases are kept"}
    ]
    scene.board[:] = [replace(e, mean_dice=0.95) if e.algo == "b" else e for e in scene.board]
    assert scene.pick().members == ("b_0", "b_1") and "selection" not in scene.record


def test_too_few_cases_and_none_that_are_kept(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0)
    for case in scene.datalist.training[:6]:
        out_of_fold_file(scene.session.workspace.root / f"a_{case.fold}", case.id).unlink()
    assert scene.pick().members == ("a_0", "a_1") and "selection" not in scene.record
    assert any("too few to choose by" in event.message for event in scene.events)
    job = scene.session.workspace.job("select") / "result.json"
    stamp = job.stat().st_mtime_ns
    scene.pick()
    assert job.stat().st_mtime_ns == stamp and not scene.warnings()


def test_no_time_is_no_answer_for_the_next_call(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(a=3.0)
    monkeypatch.setattr(choosing, "LONGEST", -1.0)
    assert scene.pick().members == ("a_0", "a_1") and "selection" not in scene.record
    assert any("there was no time" in event.message for event in scene.events)
    monkeypatch.undo()
    scene.pick()
    assert scene.record["selection"]["n_cases"] == CASES


def test_what_was_chosen_stays_while_trainings_are_kept(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0, b=3.0)
    choosing.keep_members_so_far(scene.session, scene.board[:1])
    assert scene.record["members"] == ["a_0"] and scene.record["interim"]
    assert choosing.standing_ensemble(scene.session, scene.session.workspace, scene.board, None) is None
    choosing.keep_members_so_far(scene.session, scene.board[:2])
    assert scene.record["members"] == ["a_0", "a_1"]
    scene.pick()
    chosen = scene.record
    choosing.keep_members_so_far(scene.session, scene.board[:1])
    assert scene.record == chosen and "interim" not in chosen
    (scene.session.workspace.root / "b_1" / "models" / "model.pt").unlink()  # it is trained anew
    choosing.keep_members_so_far(scene.session, scene.board[:1])
    assert scene.record["members"] == ["a_0"]


def test_a_validation_list_is_shared_out(make_scene: MakeScene) -> None:
    scene = make_scene(a=3.0)
    listed = replace(scene.datalist, training=(), validation=scene.datalist.training)
    assert [fold for _, fold in choosing._seen_by(listed, [0, 1])] == [n % 2 for n in range(CASES)]
    assert math.isclose(sum(scene.pick().combination.weights.values()), 1)
