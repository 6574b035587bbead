"""The time limit: what earlier calls spent counts, and trainings are over when they must be."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from autoseg.config import RunConfig
from autoseg.errors import NoResultError
from autoseg.pipeline import clock as clock_module
from autoseg.pipeline.choosing import in_time
from autoseg.pipeline.clock import Clock, Deadlines, seconds_spent
from autoseg.pipeline.session import open_session
from autoseg.records import Job, LeaderboardEntry
from autoseg.workspace import read_json, write_json


class Hands:
    """time.time() and time.monotonic() in the test's hands."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(clock_module, "time", found)
    return found


def test_time_of_a_call_that_was_cut_off_counts(tmp_path: Path, hands: Hands) -> None:
    path = tmp_path / "clock.json"
    first = Clock(600.0, path)
    hands.now += 100
    first.tick()
    hands.now += 5000  # the machine was off
    again = Clock(600.0, path)
    assert (again.before, again.left) == (100.0, 500.0)
    again.end()
    assert not path.exists()
    assert Clock(600.0, path).left == 600.0


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"limit": 300, "spent": 50}', '{"limit": 600}', '{"spent": 1}'])
def test_a_note_of_another_limit_or_a_broken_one_counts_for_nothing(tmp_path: Path, hands: Hands, kept: str) -> None:
    (tmp_path / "clock.json").write_text(kept)
    assert Clock(600.0, tmp_path / "clock.json").left == 600.0


def test_ticks_are_noted_every_few_seconds(tmp_path: Path, hands: Hands) -> None:
    path = tmp_path / "clock.json"
    clock = Clock(600.0, path)
    clock.tick()
    for _ in range(4):
        hands.now += 1
        clock.tick()
    assert read_json(path)["spent"] == 0.0
    hands.now += 1
    clock.tick()
    assert read_json(path)["spent"] == 5.0


def run_all(deadlines: Deadlines, hands: Hands, names: list[str], slots: int, late: float = 0.0) -> dict[str, float]:
    """Jobs in this order over the slots; each ends `late` seconds after its deadline. Returns when each ended."""
    free, ends = [hands.now] * slots, {}
    for name in names:
        free.sort()
        hands.now = free[0]
        job = deadlines.give(Job(name, ("train",), "/"))
        assert job.argv[:2] == ("train", "--deadline")
        ends[name] = free[0] = max(hands.now, float(job.argv[2])) + late
    return ends


def test_the_last_job_of_every_slot_ends_at_the_end(hands: Hands) -> None:
    seconds = {"a_0": 300.0, "a_1": 300.0, "a_2": 300.0, "b_0": 100.0, "b_1": 100.0, "b_2": 100.0}
    deadlines = Deadlines(seconds, {}, 2, hands.now + 600)
    ends = run_all(deadlines, hands, list(seconds), 2)
    assert sorted(ends.values())[-2:] == [1600.0, 1600.0]
    assert ends["a_0"] == pytest.approx(1300.0)


def test_what_one_job_took_longer_the_others_share(hands: Hands) -> None:
    deadlines = Deadlines(dict.fromkeys("abcdef", 200.0), {}, 2, hands.now + 600)
    ends = run_all(deadlines, hands, list("abcdef"), 2, late=20.0)
    assert max(ends.values()) == pytest.approx(1620.0)  # late by the last job's own seconds, not by those before


def test_a_training_that_is_half_done_gets_the_other_half(hands: Hands) -> None:
    deadlines = Deadlines({"a": 400.0, "b": 400.0}, {"a": 200.0}, 1, hands.now + 600)
    assert run_all(deadlines, hands, ["a", "b"], 1) == {"a": pytest.approx(1200.0), "b": pytest.approx(1600.0)}


def test_another_try_keeps_the_deadline_and_other_jobs_get_none(hands: Hands) -> None:
    deadlines = Deadlines({"a": 100.0, "b": 100.0}, {}, 1, hands.now + 200)
    first = deadlines.give(Job("a", ("train",), "/"))
    hands.now += 30
    assert deadlines.give(Job("a", ("train",), "/")).argv == first.argv
    assert deadlines.give(Job("predict_0", ("x",), "/")).argv == ("x",)


def test_seconds_behind_a_training(tmp_path: Path) -> None:
    """What came after the last checkpoint is lost, and trained again."""
    lines = ['{"seconds": 10, "mean_dice": 0.5}', '{"seconds": 61.5, "checkpoint": true}', '{"seconds": 80}', '{"sec']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "early.jsonl").write_text('{"seconds": 9}\n')
    write_json(tmp_path / "other.json", {})
    names = {"a": "metrics.jsonl", "b": "none", "c": "other.json", "d": "early.jsonl"}
    assert seconds_spent({name: tmp_path / file for name, file in names.items()}) == {"a": 61.5}


def test_the_real_clock_runs(tmp_path: Path) -> None:
    clock = Clock(10.0, tmp_path / "clock.json")
    time.sleep(0.01)
    assert 0 < clock.spent < 5


def test_the_best_members_that_are_in_time_are_kept() -> None:
    board = [LeaderboardEntry("a", fold, "done", dice) for fold, dice in enumerate((0.7, 0.9, 0.8))]
    ranks = {entry.name: entry.mean_dice for entry in board}
    kept, late = in_time(board, 25.0, {"a": 10.0}, ranks)
    assert [entry.fold for entry in kept] == [1, 2]
    assert [name for name, _ in late] == ["a_0"]
    assert [entry.fold for entry in in_time(board, -5.0, {"a": 10.0}, ranks)[0]] == [1]  # a result there must be
    assert in_time(board, 30.0, {"a": 10.0}, ranks) == (board, [])
    quick = LeaderboardEntry("b", 0, "done", 0.6)
    for seconds in (5.0, 0.5):  # what is left out takes no time of the others
        kept, late = in_time([*board, quick], seconds, {"a": 10.0, "b": 1.0}, {**ranks, "b_0": 0.6})
        assert kept == [quick] and len(late) == 3
    refit = LeaderboardEntry("a", 3, "done", math.nan)  # on all cases: ranked by its family
    kept, _ = in_time([*board, refit], 25.0, {"a": 10.0}, {**ranks, "a_3": 0.85})
    assert [entry.fold for entry in kept] == [1, 3]


@pytest.mark.parametrize(("jobs", "slots"), [(5, 2), (5, 4), (10, 4), (3, 2)])
def test_jobs_that_do_not_go_round_get_equal_time(hands: Hands, jobs: int, slots: int) -> None:
    names = [f"a_{i}" for i in range(jobs)]
    rounds = -(-jobs // slots)
    deadlines = Deadlines(dict.fromkeys(names, 1000.0 / rounds), {}, slots, hands.now + 1000)
    ends = run_all(deadlines, hands, names, slots)
    starts = {name: 1000.0 + 1000.0 / rounds * (i // slots) for i, name in enumerate(names)}
    assert min(ends[name] - starts[name] for name in names) == pytest.approx(1000.0 / rounds, abs=1.0)


def test_a_run_that_ends_with_an_error_of_ours_has_all_its_time_again(tmp_path: Path) -> None:
    config = RunConfig(str(tmp_path / "w"), "d.json", "/", "CT", time_limit=600.0)
    for error, left in ((NoResultError("x"), False), (KeyboardInterrupt(), True)):
        with pytest.raises(type(error)), open_session(config, None, timed=True) as session:
            session.stage("at work")
            raise error
        assert (tmp_path / "w" / "clock.json").exists() is left
    with open_session(config, None) as session:
        assert session.clock is None
