"""A sweep at work: trials over two slots of the real scheduler, on a virtual clock, in a study in a real journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autoseg.bundles import available_templates
from autoseg.errors import Fault, InputError
from autoseg.execution import FakeExecutor, FakeRun, Scheduler
from autoseg.hpo.bound import PLANNED, BoundSpace
from autoseg.hpo.objectives import read_objectives
from autoseg.hpo.space import read_space
from autoseg.hpo.study import make_pruner, make_sampler, open_study
from autoseg.hpo.sweep import BARREN, RACE, STEPS, Asked, Sweep, Terms
from autoseg.records import Event, Job, JobResult, Slot
from autoseg.workspace import read_json, write_json

SLOTS = [Slot(f"cpu{place}", "cpu", 1) for place in range(2)]
TEMPLATES = available_templates()
SPACE = {"replace": True, "learning_rate": {"low": 1.0e-4, "high": 1.0e-1, "log": True}}
PLAN = {"learning_rate": 0.001}
CASES, LENGTH = 12, 10.0  # cases of a fold, seconds of a training
DONE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
Trained = Callable[[Asked, int], FakeRun | None]


def quality(asked: Asked) -> float:
    """The Dice that a learning rate ends with: 0.9 at 0.01, 0.8 at the planned 0.001."""
    rate = float(asked.overrides.get("learning_rate", PLAN["learning_rate"]))
    return 0.9 - 0.1 * (math.log10(rate) + 2) ** 2


def flat(asked: Asked) -> float:
    return 0.8


class Room:
    """A run's hpo/ folder, and what its sweeps do: `call` is one call of the command."""

    def __init__(self, root: Path):
        self.hpo, self.jobs_dir = root / "hpo", root / "jobs"
        self.events: list[Event] = []
        self.asked: dict[str, tuple[Asked, int]] = {}
        self.executor = FakeExecutor()
        self.surface, self.noise, self.seed = quality, 0.005, 0
        self.trained: Trained = lambda asked, fold: None
        self.refused: Callable[[Asked, int], bool] = lambda asked, fold: False
        self.facts: Mapping[str, Any] = {}
        self.now = 0.0
        self.sweep: Sweep
        self.options: dict[str, Any] = {}

    def study(self, pruner: Any = "none", objective: Any = "dice", sampler: Any = "random", steps: int = 10) -> Any:
        directions = [one.direction for one in read_objectives(objective)]
        made = make_sampler(sampler, 0, lambda: self.space(self.options.get("space", SPACE)).grid())
        return open_study(
            "s", self.hpo / "journal.log", None, directions, {"data": 1}, made, make_pruner(pruner, steps)
        )

    def space(self, given: Any, families: tuple[str, ...] = ("segresnet",)) -> BoundSpace:
        folders = {name: TEMPLATES[name] for name in families}
        return read_space(folders, given).bound(dict.fromkeys(families, PLAN))

    def new(self, n_trials: float = 6, **options: Any) -> Sweep:
        """A sweep that has taken up what is there. Options: those of `study` and of Terms, `space` and `families`."""
        self.options = options
        terms = {key: options[key] for key in ("folds", "race_folds", "in_time") if key in options}
        own = {key: options[key] for key in ("pruner", "objective", "sampler") if key in options}
        study = self.study(**own, steps=10 * options.get("folds", 1))
        space = self.space(options.get("space", SPACE), options.get("families", ("segresnet",)))
        self.sweep = Sweep(
            study,
            space,
            read_objectives(options.get("objective", "dice")),
            self.hpo,
            self.make_job,
            Terms(n_trials, **terms),
            self.events.append,
        )
        return self.sweep

    def run(self, sweep: Sweep, **options: Any) -> dict[str, JobResult]:
        self.executor = FakeExecutor(self.behaviour)
        return Scheduler(self.executor, SLOTS, self.jobs_dir, self.events.append, **options).run([], sweep)

    def call(self, n_trials: float = 6, **options: Any) -> Sweep:
        self.events.clear()
        sweep = self.new(n_trials, **options)
        self.run(sweep)
        assert sweep.finished() and sweep.next() is None
        return sweep

    def make_job(self, asked: Asked, fold: int) -> Job:
        if self.refused(asked, fold):
            raise InputError([Fault("", "roi_size", "is larger than the network")])
        bundle = self.sweep.bundle(asked.number, fold)
        (bundle / "models").mkdir(parents=True, exist_ok=True)
        job = f"trial_{asked.number:04d}_{fold}"
        self.asked[job] = asked, fold
        return Job(
            job, ("fake",), str(bundle), outputs=("models/model.pt", "scores.json"), fingerprint=str(asked),
            progress="metrics.jsonl",
        )  # fmt: skip

    def behaviour(self, job: Job) -> FakeRun:
        """A training that gets better all along, and ends with the scores of the response surface."""
        asked, fold = self.asked[job.id]
        other = self.trained(asked, fold)
        if other is not None:
            return other
        best, bundle = self.surface(asked), Path(job.cwd)
        noise = np.random.default_rng([self.seed, asked.number, fold]).normal(0, self.noise, CASES)
        hard = np.random.default_rng(fold).uniform(-0.1, 0.1, CASES)
        rows = [
            {"case": f"f{fold}c{place:02d}", "label": 1, "dice": value, "hd95": 10 * (1 - value)}
            for place, value in enumerate((best + noise + hard).tolist())
        ]
        facts = {"mean_dice": best, "steps": 100, "seconds": 9.5, "seconds_a_case": 0.5, "memory": 1000, **self.facts}
        write_json(bundle / "scores.json", {"cases": rows, **facts})
        for name in ("model.pt", "checkpoint.pt"):
            (bundle / "models" / name).write_text(name)
        return FakeRun(LENGTH, metrics=validations(best))

    @property
    def trials(self) -> list[FrozenTrial]:
        found: list[FrozenTrial] = self.sweep.study.get_trials(deepcopy=False)
        return found

    @property
    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.trials]

    @property
    def starts(self) -> list[str]:
        return [process.job.id.removeprefix("trial_000") for process in self.executor.history]

    def told(self) -> list[tuple[int, str]]:
        facts = [event.facts for event in self.events if event.kind == "trial"]
        return [(found["number"], found["state"]) for found in facts]


def validations(best: float, seconds: float = LENGTH) -> tuple[tuple[float, dict[str, Any]], ...]:
    """Ten validations, and lines of the loss between them."""
    lines: list[tuple[float, dict[str, Any]]] = []
    for tenth in range(1, 11):
        dice = best * tenth / 10
        facts = {"step": 10 * tenth, "num_iterations": 100}
        lines += [(seconds * (tenth - 0.5) / 10, {**facts, "step": 10 * tenth - 5, "loss": 1.0})]
        lines += [(seconds * tenth / 10 - 0.01, {**facts, "mean_dice": dice, "dice": {"1": dice}})]
    return tuple(lines)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# --- trials are asked, trained and told ---


def test_trials_are_counted_over_calls_and_the_default_is_the_first(room: Room) -> None:
    room.call(3)
    assert room.states == [DONE] * 3 and room.starts == ["0_0", "1_0", "2_0"]
    room.call(5)
    assert room.states == [DONE] * 5 and room.starts == ["3_0", "4_0"]
    assert room.told() == [(3, "COMPLETE"), (4, "COMPLETE")]
    room.call(5)
    assert room.starts == [] and room.told() == []
    default, *others = room.trials
    assert default.params == PLAN and default.user_attrs[PLANNED] == "segresnet"
    assert not any(PLANNED in trial.user_attrs for trial in others)
    asked = [read_json(room.sweep.home(number) / "trial.json") for number in range(5)]
    assert asked[0]["overrides"] == {} and [one["family"] for one in asked] == ["segresnet"] * 5
    assert [one["overrides"] for one in asked[1:]] == [trial.params for trial in others]
    for trial in room.trials:
        scores = read_json(room.sweep.bundle(trial.number, 0) / "scores.json")
        assert trial.value == pytest.approx(np.mean([row["dice"] for row in scores["cases"]]))
        assert trial.user_attrs["seconds_a_case"] == 0.5 and trial.user_attrs["steps"] == 100
        assert sorted(trial.intermediate_values) == list(range(1, STEPS + 1))
    assert room.sweep.ranked()[0] == room.sweep.study.best_trial.number and room.sweep.default() == 0


def test_of_a_trial_only_what_may_be_used_again_stays(room: Room) -> None:
    room.call(1)
    assert [path.name for path in (room.sweep.bundle(0, 0) / "models").iterdir()] == ["model.pt"]


def test_of_what_is_to_be_small_the_smallest_leads(room: Room) -> None:
    sweep = room.call(8, objective="hd95", pruner={"name": "median", "n_startup_trials": 2, "n_warmup_steps": 2})
    values = {trial.number: trial.values[0] for trial in room.trials if trial.state is DONE}
    assert [values[number] for number in sweep.ranked()] == sorted(values.values())
    best = {number: quality(sweep.asked[number]) for number in range(8)}
    pruned = [best[trial.number] for trial in room.trials if trial.state is PRUNED]
    assert pruned and max(pruned) < max(best.values()) and max(best, key=lambda n: best[n]) == sweep.ranked()[0]


def test_two_objectives(room: Room) -> None:
    sweep = room.call(5, objective=["dice", "seconds"])
    assert room.states == [DONE] * 5 and not any(trial.intermediate_values for trial in room.trials)
    assert all(len(trial.values) == 2 and trial.values[1] == 0.5 for trial in room.trials)
    assert sweep.ranked() == sorted(range(5), key=lambda number: -room.trials[number].values[0])
    assert "mean_dice 0." in room.events[-1].message or any("seconds 0.5" in e.message for e in room.events)


def test_scores_that_are_nought_are_no_missing_ones(room: Room) -> None:
    room.facts = {"mean_dice": 0.0, "memory": None}
    room.call(1)
    assert room.trials[0].user_attrs["mean_dice"] == 0.0 and "memory" not in room.trials[0].user_attrs


def test_several_families_begin_with_the_default_of_each(room: Room) -> None:
    space = {name: {**SPACE} for name in ("segresnet", "dints")}
    sweep = room.call(6, families=("segresnet", "dints"), space=space)
    assert room.states == [DONE] * 6
    assert [room.trials[number].user_attrs[PLANNED] for number in (0, 1)] == ["segresnet", "dints"]
    assert [sweep.asked[number].family for number in (0, 1)] == ["segresnet", "dints"] and sweep.default() == 0
    for number, asked in sweep.asked.items():
        assert asked.family == room.trials[number].params["family"]
        assert (sweep.bundle(number, 0) / "scores.json").is_file() and asked.family in sweep.bundle(number, 0).name
    assert {asked.family for asked in sweep.asked.values()} == {"segresnet", "dints"}


def test_a_default_that_was_cut_off_before_its_family_was_asked_comes_all_the_same(room: Room) -> None:
    families, space = ("segresnet", "dints"), {name: {**SPACE} for name in ("segresnet", "dints")}
    bound = room.space(space, families)
    room.study().enqueue_trial(bound.default("segresnet"), user_attrs={PLANNED: "segresnet"})
    room.call(4, families=families, space=space)
    assert [trial.user_attrs.get(PLANNED) for trial in room.trials] == ["segresnet", "dints", None, None]


def test_a_grid_ends_when_every_point_has_been_tried(room: Room) -> None:
    space = {"replace": True, "num_images_per_batch": {"choices": [1, 2, 4]}}
    room.call(50, sampler="grid", space=space)
    assert set(room.states) == {DONE} and 3 <= len(room.trials) <= 4
    assert {asked.overrides.get("num_images_per_batch") for asked in room.sweep.asked.values()} - {None} == {1, 2, 4}


# --- trials are ended early ---


def test_a_pruned_trial_gives_its_slot_to_the_next(room: Room) -> None:
    room.surface = lambda asked: 0.8 if asked.number < 4 else 0.1 if asked.number == 4 else 0.9
    sweep = room.call(6, pruner="median")
    assert room.states == [*[DONE] * 4, PRUNED, DONE]
    trial = room.trials[4]
    assert sorted(trial.intermediate_values) == [1, 2, 3] and trial.intermediate_values[2] == pytest.approx(0.02)
    assert "at 30 % of its training" in trial.user_attrs["error"] and "MedianPruner" in trial.user_attrs["error"]
    history = {process.job.id[-3]: process for process in room.executor.history}
    assert history["4"].exit_code == -15 and history["4"].ends - history["4"].started < 0.4 * LENGTH
    assert [path.name for path in (sweep.bundle(4, 0) / "models").iterdir()] == [], "its weights are nobody's"
    later = room.call(7, pruner="median")
    assert room.starts == ["6_0"] and room.states[4] is PRUNED and (4, 0) not in later.scores


@pytest.mark.parametrize("pruner", ["halving", "hyperband", {"name": "threshold", "lower": 0.5}])
def test_the_default_is_never_ended_early(room: Room, pruner: Any) -> None:
    """All that comes is compared with it. Here the others are quicker, and better."""

    def slow(asked: Asked, fold: int) -> FakeRun | None:
        if asked.number:
            return None
        room.trained = lambda asked, fold: None
        room.behaviour(room.make_job(asked, fold))
        room.trained = slow
        return FakeRun(5 * LENGTH, metrics=validations(0.2, 5 * LENGTH))

    room.trained = slow
    room.surface = lambda asked: 0.9 + 0.001 * asked.number
    room.call(8, pruner=pruner)
    assert room.states[0] is DONE and len(room.trials[0].intermediate_values) == STEPS


def test_validations_of_one_tenth_are_reported_once(room: Room) -> None:
    """Two of them between two looks of the scheduler; Optuna would warn."""

    def often(asked: Asked, fold: int) -> FakeRun | None:
        room.trained = lambda asked, fold: None
        run = room.behaviour(room.make_job(asked, fold))
        room.trained = often
        lines = [
            (4.0, {"step": n, "num_iterations": 1000, "mean_dice": n / 1000, "dice": {"1": n / 1000}})
            for n in (101, 102, 350)
        ]
        return FakeRun(run.seconds, metrics=(*lines, (6.0, {"step": 400, "mean_dice": 0.1, "dice": {"1": None}})))

    room.trained = often
    room.call(2, pruner="median")
    assert room.trials[1].intermediate_values == {1: 0.101, 4: 0.35}


def test_wilcoxon_ends_a_trial_by_its_cases(room: Room) -> None:
    room.surface = lambda asked: 0.8 if asked.number < 2 else 0.5
    room.call(3, pruner="wilcoxon", folds=2)
    assert room.states == [DONE, DONE, PRUNED] and room.starts[-1] == "2_0" and len(room.starts) == 5
    assert len(room.trials[2].intermediate_values) == CASES and "by its cases" in room.trials[2].user_attrs["error"]
    scores = read_json(room.sweep.bundle(2, 0) / "scores.json")["cases"]
    assert room.trials[2].intermediate_values == {place: row["dice"] for place, row in enumerate(scores)}
    assert not list((room.sweep.bundle(2, 0) / "models").iterdir())


def test_wilcoxon_of_what_is_to_be_small(room: Room) -> None:
    room.surface = lambda asked: 0.5 if asked.number == 0 else 0.8 if asked.number == 1 else 0.4
    room.call(3, pruner="wilcoxon", folds=2, objective="hd95")
    assert room.states == [DONE, DONE, PRUNED] and min(room.trials[2].intermediate_values.values()) > 0


def test_wilcoxon_compares_the_same_cases_where_one_has_no_value(room: Room) -> None:
    sweep = room.new(3, pruner="wilcoxon", folds=3)
    for number, missing in ((0, 1), (1, 0)):
        sweep.next()
        for fold in range(2):
            rows = [{"case": f"f{fold}c{place}", "label": 1, "dice": 0.1 * place} for place in range(5)]
            rows[missing]["dice"] = None
            sweep.scores[number, fold] = {"cases": rows}
            sweep._hopeless(number, fold)
            sweep._hopeless(number, fold)  # after a restart: nothing is reported twice
    assert sorted(room.trials[0].intermediate_values) == [0, 2, 3, 4, 5, 7, 8, 9]
    assert sorted(room.trials[1].intermediate_values) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert all(v == pytest.approx(0.1 * (k % 5)) for k, v in room.trials[1].intermediate_values.items())


# --- trials fail ---


def test_a_trial_that_fails_is_told_with_its_error(room: Room) -> None:
    crash = FakeRun(2, 1, "Traceback (most recent call last):\n  ...\nRuntimeError: out of memory\n")
    room.trained = lambda asked, fold: crash if asked.number == 1 else None
    room.refused = lambda asked, fold: asked.number == 2
    sweep = room.call(5)
    assert room.states == [DONE, FAIL, FAIL, DONE, DONE] and room.starts == ["0_0", "1_0", "3_0", "4_0"]
    assert room.trials[1].user_attrs["error"].splitlines()[0] == "RuntimeError: out of memory"
    assert "roi_size: is larger than the network" in room.trials[2].user_attrs["error"]
    said = [event.message for event in room.events if event.kind == "trial"]
    assert "trial 1: failed: RuntimeError: out of memory" in said
    assert sweep.ranked()[0] in (0, 3, 4) and set(sweep.ranked()) == {0, 3, 4}
    room.trained, room.refused = lambda asked, fold: None, lambda asked, fold: False
    room.call(6)
    assert room.starts == ["5_0"], "what failed is told, and not tried again"


def test_all_trials_may_fail(room: Room) -> None:
    room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n")
    sweep = room.call(4)
    assert room.states == [FAIL] * 4 and sweep.ranked() == [] and sweep.default() is None
    assert {trial.user_attrs["error"].splitlines()[0] for trial in room.trials} == {"ValueError: no"}


@pytest.mark.parametrize("how", ["jobs", "bundles", "callable", "given up"])
def test_a_sweep_without_a_number_of_trials_ends_when_nothing_comes_of_them(room: Room, how: str) -> None:
    """By its time alone it would go on, thousands of trials a minute."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number > 3:
            raise optuna.TrialPruned if how == "given up" else RuntimeError("no such thing")
        return {"learning_rate": 0.002}

    if how == "jobs":
        room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n") if asked.number > 3 else None
    elif how == "bundles":
        room.refused = lambda asked, fold: asked.number > 3
    sweep = room.call(math.inf, space=space if how in ("callable", "given up") else SPACE)
    assert sorted(sweep.ranked()) == [0, 1, 2, 3]
    assert BARREN <= len(room.trials) - 4 <= BARREN + len(SLOTS)
    assert [e.message for e in room.events if e.kind == "warning"] == [
        f"{BARREN} trials in a row came to nothing: no further one is asked for"
    ]
    before = len(room.trials)
    room.call(math.inf, space=space if how in ("callable", "given up") else SPACE)
    assert len(room.trials) > before, "another call tries once more"


def test_a_default_that_fails_is_tried_again_in_a_later_call(room: Room) -> None:
    room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n") if not asked.overrides else None
    sweep = room.call(3, race_folds=2)
    assert room.states == [FAIL, DONE, DONE] and sweep.default() is None and sweep.race.incumbent is None
    assert room.starts == ["0_0", "1_0", "2_0"], "there is nothing to race against"
    room.trained = lambda asked, fold: None
    sweep = room.call(5, race_folds=2)
    assert room.trials[3].user_attrs[PLANNED] == "segresnet" and sweep.asked[3].overrides == {}
    assert sweep.default() == 3 and room.states == [FAIL, *[DONE] * 4]


def test_scores_that_cannot_be_read_fail_the_trial_alone(room: Room) -> None:
    def torn(asked: Asked, fold: int) -> FakeRun | None:
        if asked.number == 1:
            (room.sweep.bundle(1, 0) / "scores.json").write_text('{"cases": [')
            return FakeRun(1)
        return None

    room.trained = torn
    room.call(3)
    assert room.states == [DONE, FAIL, DONE] and "scores.json" in room.trials[1].user_attrs["error"]


def test_a_trial_whose_cases_have_no_value_fails(room: Room) -> None:
    room.surface = lambda asked: math.nan if asked.number == 1 else 0.8
    room.call(3)
    assert room.states == [DONE, FAIL, DONE]
    assert room.trials[1].user_attrs["error"] == "no validation case has a value"


# --- spaces ---


def test_a_callable_space(room: Room) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        if trial.number == 2:
            raise ZeroDivisionError("by nought")
        if trial.number == 3:
            raise optuna.TrialPruned("seen before")
        return {"learning_rate": rate}

    sweep = room.call(5, space=space)
    assert room.states == [DONE, DONE, FAIL, PRUNED, DONE] and room.starts == ["0_0", "1_0", "4_0"]
    assert sweep.asked[0].overrides == {} and sweep.asked[4].overrides == {
        "learning_rate": room.trials[4].params["rate"]
    }
    assert "the callable failed" in room.trials[2].user_attrs["error"]
    assert room.trials[3].user_attrs["error"] == "seen before"
    room.call(6, space=space)
    assert room.starts == ["5_0"]


def test_choices_that_differ_from_the_studys_are_refused(room: Room) -> None:
    space = {"replace": True, "num_images_per_batch": {"choices": [1, 2, 4]}}
    room.call(3, space=space)
    with pytest.raises(InputError) as caught:
        room.call(5, space={**space, "num_images_per_batch": {"choices": [1, 2, 8]}})
    (fault,) = caught.value.faults
    assert fault.field == "space" and "earlier trials" in fault.message
    assert room.states == [*[DONE] * 3, FAIL]
    room.call(5, space=space)
    assert room.states == [*[DONE] * 3, FAIL, DONE], "the study is not damaged by it"


# --- it goes on ---


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_sweep_that_is_interrupted_goes_on(room: Room, moment: int) -> None:
    """At the n-th event of any kind: trials keep their numbers, and what is done is not done again."""
    room.surface = lambda asked: 0.05 if asked.number == 4 else 0.8
    pruner = {"name": "median", "n_startup_trials": 2}
    sweep, events = room.new(6, pruner=pruner), []

    def interrupted(event: Event) -> None:
        events.append(event)
        if len([one for one in events if one.kind != "jobs"]) == moment:
            raise KeyboardInterrupt

    sweep.notify = interrupted
    with pytest.raises(KeyboardInterrupt):
        Scheduler(executor := FakeExecutor(room.behaviour), SLOTS, room.jobs_dir, interrupted).run([], sweep)
    done = {p.job.id for p in executor.history if p.exit_code == 0 and p.ends < executor.clock}
    before = {trial.number: (trial.state, trial.params) for trial in room.trials}
    assert RUNNING in room.states or moment == 6, "between two trials"
    room.call(6, pruner=pruner)
    assert not done & {process.job.id for process in room.executor.history}
    assert room.states == [*[DONE] * 4, PRUNED, DONE]
    for number, (state, params) in before.items():
        assert params.items() <= room.trials[number].params.items()
        assert state in (RUNNING, TrialState.WAITING) or (number, state.name) not in room.told()


def test_a_training_that_was_done_but_not_told_is_told_once(room: Room) -> None:
    room.surface = lambda asked: 0.8 if asked.number < 4 else 0.1
    room.call(4, pruner="median")
    for total in (5, 6):  # the one pruned, the other failed
        if total == 6:
            room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n")
        sweep = room.new(total, pruner="median")
        sweep._tell = interrupt  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            room.run(sweep)
        assert room.states[-1] is RUNNING
        room.trained = lambda asked, fold: None
        room.call(total, pruner="median")
        assert room.told() == [(total - 1, "PRUNED")]
        assert room.starts == ([] if total == 5 else ["5_0"]), "a failed one is tried again"
    sweep = room.new(7, pruner="median")
    room.surface = lambda asked: 0.9
    sweep._tell = interrupt  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        room.run(sweep)
    room.call(7, pruner="median")
    assert (
        room.starts == [] and room.told() == [(6, "COMPLETE")] and room.trials[6].value == pytest.approx(0.9, abs=0.05)
    )


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_trial_that_was_asked_and_not_written_down_is_told_as_failed(room: Room) -> None:
    room.call(2)
    study = room.study()
    study.ask().suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    (room.hpo / "trials" / "0003").mkdir()
    study.ask()
    (room.hpo / "trials" / "0003" / "trial.json").write_text('{"number": 3, "fam')
    room.call(5)
    assert room.states == [DONE, DONE, FAIL, FAIL, DONE] and room.starts == ["4_0"]
    assert room.told()[:2] == [(2, "FAIL"), (3, "FAIL")]
    assert all("cut off before" in room.trials[number].user_attrs["error"] for number in (2, 3))


def test_a_default_that_was_asked_and_not_written_down_comes_again(room: Room) -> None:
    room.new(3)
    room.study().ask()
    sweep = room.call(3)
    assert room.states == [FAIL, DONE, DONE] and sweep.default() == 1 and sweep.asked[1].overrides == {}


def test_an_interrupted_trial_reports_on_where_it_was(room: Room) -> None:
    """Validations that were reported before are handed over again, and change nothing."""
    sweep = room.new(2, pruner="median")
    with pytest.raises(KeyboardInterrupt):
        Scheduler(Stopped(room.behaviour), SLOTS, room.jobs_dir, lambda event: None).run([], sweep)
    before = [dict(trial.intermediate_values) for trial in room.trials]
    assert all(sorted(values) == [1, 2, 3, 4] for values in before)
    room.call(2, pruner="median")
    for values, trial in zip(before, room.trials, strict=True):
        assert values.items() <= trial.intermediate_values.items() and len(trial.intermediate_values) == STEPS


class Stopped(FakeExecutor):
    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        if 4.1 < self.clock < 5:
            raise KeyboardInterrupt


# --- several folds, and the race ---


def test_a_trial_of_several_folds_is_told_after_the_last(room: Room) -> None:
    sweep = room.call(3, folds=2, pruner="median")
    assert room.states == [DONE] * 3 and len(room.starts) == 6
    assert sorted(room.starts[2:4]) == ["0_1", "1_1"] and room.starts[4:] == ["2_0", "2_1"]
    for trial in room.trials:
        assert sorted(trial.intermediate_values) == list(range(1, 2 * STEPS + 1))
        values = [sweep.objectives[0].value([sweep.scores[trial.number, fold]]) for fold in (0, 1)]
        assert trial.value == pytest.approx(sum(values) / 2)


def test_a_trial_of_several_folds_goes_on_with_its_second(room: Room) -> None:
    def second(asked: Asked, fold: int) -> FakeRun | None:
        if fold == 1:
            raise KeyboardInterrupt
        return None

    room.trained = second
    with pytest.raises(KeyboardInterrupt):
        room.run(room.new(1, folds=2))
    room.trained = lambda asked, fold: None
    room.call(1, folds=2)
    assert room.starts == ["0_1"] and room.states == [DONE]
    room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n") if fold else None
    room.call(2, folds=2)
    assert room.states == [DONE, FAIL] and room.starts == ["1_0", "1_1"]


def test_a_leading_trial_races_before_further_trials_come(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    sweep = room.call(6, race_folds=3)
    assert room.starts == ["0_0", "1_0", "1_1", "0_1", "2_0", "3_0", "4_0", "5_0"]
    assert sweep.race.incumbent == 1 and [found[:2] for found in sweep.race.verdicts] == [(1, 0)]
    assert len(room.told()) == 6 and room.trials[1].value == pytest.approx(0.9, abs=0.05), "of its own fold alone"
    again = room.call(6, race_folds=3)
    assert room.starts == [] and again.race.incumbent == 1 and again.race.verdicts == sweep.race.verdicts
    assert (1, 1) in again.scores


def test_what_fails_in_the_race_does_not_fail_the_trial(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    room.trained = lambda asked, fold: FakeRun(1, 1, "ValueError: no\n") if (asked.number, fold) == (1, 1) else None
    sweep = room.call(4, race_folds=2)
    assert room.states == [DONE] * 4 and sweep.race.incumbent == 0 and sweep.lost == {(1, 1)}
    assert sweep.race.verdicts[0][3] == "could not be trained on fold 1" and len(room.told()) == 4
    room.trained = lambda asked, fold: None
    sweep = room.call(4, race_folds=2)
    assert room.starts == ["1_1"] and sweep.race.incumbent == 1, "what was lost is tried again in a later call"


def test_a_bundle_of_the_race_that_is_refused_is_lost_alone(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    room.refused = lambda asked, fold: fold == 1
    sweep = room.call(4, race_folds=2)
    assert room.states == [DONE] * 4 and sweep.race.incumbent == 0 and (1, 1) in sweep.lost


def test_noise_does_not_replace_the_default(room: Room) -> None:
    room.surface, room.seed = flat, 4
    sweep = room.call(6, race_folds=3)
    leading = [trial for trial, *_ in sweep.race.verdicts]
    assert sweep.race.incumbent == 0 and leading and not any("better" in found[3] for found in sweep.race.verdicts)


def test_an_interrupted_race_goes_on_and_keeps_its_verdicts(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.85, 3: 0.9}.get(asked.number, 0.7)

    def second_race(asked: Asked, fold: int) -> FakeRun | None:
        if (asked.number, fold) == (3, 1):
            raise KeyboardInterrupt
        return None

    room.trained = second_race
    with pytest.raises(KeyboardInterrupt):
        room.run(room.new(5, race_folds=2))
    assert len(room.sweep.study.user_attrs[RACE]) == 1
    room.trained = lambda asked, fold: None
    sweep = room.call(5, race_folds=2)
    assert room.starts[0] == "3_1" or "3_1" in room.starts
    assert [found[:2] for found in sweep.race.verdicts] == [(1, 0), (3, 1)] and sweep.race.incumbent == 3


def test_verdicts_on_trials_whose_scores_are_gone_do_not_stand(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    assert room.call(3, race_folds=2).race.incumbent == 1
    for fold in (0, 1):
        (room.sweep.bundle(1, fold) / "scores.json").unlink()
    sweep = room.call(3, race_folds=2)
    assert sweep.race.incumbent == 0 and sweep.ranked() == [0, 2] and room.starts == []


def test_a_trial_of_which_a_fold_is_gone_is_not_ranked(room: Room) -> None:
    room.call(3, folds=2)
    (room.sweep.bundle(1, 1) / "scores.json").unlink()
    assert set(room.call(3, folds=2).ranked()) == {0, 2}


# --- time ---


def test_when_time_is_up_no_trial_begins_and_no_race(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    asked: list[bool] = []

    def in_time(further: bool) -> bool:
        asked.append(further)
        return room.executor.clock < (0.5 * LENGTH if further else 1.5 * LENGTH)

    sweep = room.call(9, race_folds=3, in_time=in_time)
    assert room.starts == ["0_0", "1_0", "1_1", "0_1"] and set(asked) == {True, False}
    assert sweep.race.incumbent == 1
    later = room.new(9, race_folds=3, in_time=lambda further: False)
    assert later.finished() and later.next() is None and later.race.incumbent == 1


def test_without_time_for_a_race_the_default_stays(room: Room) -> None:
    room.surface = lambda asked: {0: 0.8, 1: 0.9}.get(asked.number, 0.7)
    sweep = room.call(4, race_folds=2, in_time=lambda further: further)
    assert len(room.starts) == 4 and sweep.race.incumbent == 0
    room.call(4, race_folds=2)
    assert room.starts == ["1_1", "0_1"] and room.sweep.race.incumbent == 1


@pytest.mark.parametrize("seed", range(6))
def test_whenever_nothing_runs_and_none_comes_the_sweep_is_finished(room: Room, seed: int) -> None:
    """Otherwise the scheduler would wait for ever. Trials end in every way, in any order."""
    random = np.random.default_rng(seed)
    room.surface = lambda asked: float(np.random.default_rng([seed, asked.number]).uniform(0.5, 0.9))
    room.refused = lambda asked, fold: random.random() < 0.15
    sweep = room.new(12, race_folds=3, folds=1 + seed % 2, pruner="wilcoxon" if seed % 3 == 0 else "median")
    running: list[Job] = []
    for _ in range(400):
        job = sweep.next() if len(running) < 3 else None
        if job is not None:
            running.append(job)
        elif not running:
            break
        else:
            ended = running.pop(int(random.integers(len(running))))
            room.behaviour(ended)
            fate = "done" if random.random() < 0.75 else "failed"
            _, fold = room.asked[ended.id]
            if fate == "failed" and fold < sweep.terms.folds and random.random() < 0.5:
                fate = "stopped"
            sweep.ended(ended, JobResult(ended.id, fate, error="so"))
        assert not (sweep.finished() and running)
    assert sweep.finished() and not running and len(room.trials) == 12
    assert {state.is_finished() for state in room.states} == {True}


def test_a_look_at_a_hundred_trials_reads_the_journal_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler asks at every poll while a slot is free; here a challenger waits for its trainings."""
    sweep = room.new(101, race_folds=3)
    room.surface = lambda asked: 0.7 + 0.001 * asked.number
    reports = dict.fromkeys(range(1, STEPS + 1), 0.7)
    for number in range(1, 101):
        sweep.asked[number] = asked = Asked(number, "segresnet", {})
        done = optuna.trial.create_trial(value=room.surface(asked), intermediate_values=reports)
        sweep.study.add_trial(done)
        write_json(sweep.home(number) / "trial.json", asked)
        room.behaviour(room.make_job(asked, 0))
    job = sweep.next()
    assert job is not None
    room.behaviour(job)
    sweep.ended(job, JobResult(job.id, "done"))
    sweep = room.new(102, race_folds=3)
    while sweep.next() is not None:
        pass
    assert len(sweep._running) == 3, "two trainings of the race and the last trial"
    looks: list[str] = []

    def watch(name: str, what: Any) -> None:
        real = getattr(what, name)

        def watched(*given: Any, **named: Any) -> Any:
            looks.append(name)
            return real(*given, **named)

        monkeypatch.setattr(what, name, watched)

    watch("settle", sweep.race)
    watch("get_trials", sweep.study)
    for _ in range(10):
        assert not sweep.finished() and sweep.next() is None
    assert looks == ["get_trials"] * 10, "nothing has changed for the race"
