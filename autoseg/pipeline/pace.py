"""How long a run will take, and what fits a time limit: speeds are measured, trainings chosen, deadlines set."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg.bundles.marks import bundle_settings, is_foreign_bundle, scored_windows
from autoseg.config import RunConfig
from autoseg.devices import PREDICTING_SCALING, makespan
from autoseg.engine.budget import SECONDS_A_CASE, VALIDATIONS, budget_steps
from autoseg.errors import Fault, InputError
from autoseg.execution.results import is_done, read_result
from autoseg.pipeline.clock import Deadlines, seconds_spent
from autoseg.pipeline.inputs import fingerprint
from autoseg.pipeline.measuring import family_of, first_bundles, fold_of, measure
from autoseg.pipeline.searching import Span, searches_left, time_to_search
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import gpus_a_job, training_inputs, training_jobs, trainings
from autoseg.planning.budget import (
    CPU_SHARE,
    UNKNOWN_STEPS,
    Candidate,
    Choice,
    Room,
    choose,
    least_seconds,
    windows_share,
)
from autoseg.planning.windows import FEWER_OVERLAP, LEVELS, fewer_windows, level_within, passes
from autoseg.records import Case, Datalist, Event, Job, Slot, Speed, to_plain
from autoseg.workspace import Workspace, read_keys, restored, write_json

SEARCH_LEAVES = 400  # steps a training must keep beside a search
WORTH_MEASURING = 100  # steps: shorter trainings are over before they are forecast
PREDICTION_START = 8.0  # seconds: of the process that predicts, where no start has been measured
# of choosing the ensemble: seconds of its start, share of the seconds that all validation cases take, most of a limit
SELECTION_START, SELECTION_CASE, SELECTION_SHARE = 2.0, 0.06, 0.03
SECONDS_A_SCORE = 0.1  # of one core: surface distances of a case
FOREIGN_START, FOREIGN_CASE = 20.0, 2.0  # seconds of a foreign template's start, of a case: nobody has measured them
# what is said of windows that are not as planned
FEWER = {"overlap": f"overlap by {FEWER_OVERLAP:.0%}", "mirror_axes_inference": "are not mirrored"}


@dataclass(frozen=True)
class Pace:
    """Which bundles are trained, by when (None: as their own settings say), and seconds a member needs to predict.

    `closing`: seconds of all that comes after the trainings, members' predictions apart; `selecting`: those of them in
    which the ensemble is chosen. `windows`: by bundle, in which other windows than planned it predicts.
    """

    bundles: list[Path]
    deadlines: Deadlines | None = None
    closing: float = 0.0
    selecting: float = 0.0
    member_seconds: dict[str, float] = field(default_factory=dict)
    search: Span | None = None  # what searches for architectures may take; None: there is no time, or no limit
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """For trainings, from now on; infinite without a time limit."""
        return math.inf if self.deadlines is None else self.deadlines.end - time.time()

    def for_more(self, names: Sequence[str]) -> Deadlines | None:
        """Deadlines of further trainings: all the time that is left."""
        if self.deadlines is None:
            return None
        return Deadlines(dict.fromkeys(names, 1.0), {}, self.deadlines.slots, self.deadlines.end)


def pace(session: Session, bundles: Sequence[Path], datalist: Datalist) -> Pace:
    """What is trained and how long, told as a forecast. InputError where a time limit is too short for anything."""
    jobs = training_jobs(session, bundles, datalist)
    ours = [bundle for bundle in bundles if not is_foreign_bundle(bundle)]
    left = {job.id for job in jobs if not is_done(job, read_result(session.workspace.job(job.id)))}
    if session.clock is None:
        if left and len(ours) == len(bundles):
            _forecast(session, [job for job in jobs if job.id in left], datalist)
        return Pace(list(bundles))
    trained = list(bundles) if session.config.algos is not None else _without_foreign(session, bundles, ours)
    speeds = measure(session, ours, datalist) if ours else {}
    candidates = _candidates(session, ours, datalist, speeds) if ours else []
    candidates += _unmeasured([bundle for bundle in trained if bundle not in ours], datalist)
    ahead = [_ahead(session, trained, datalist, candidates, level, left) for level in LEVELS]
    choice = _chosen(session, trained, datalist, ahead)
    chosen, taken = among(choice, trained, datalist.num_fold), ahead[choice.windows]
    windows = {b.name: _windows(session, b, choice.windows) for b in chosen if b in ours}
    _tell(session, choice, datalist, {key for other in windows.values() for key in other})
    planned = {b.name: choice.seconds[family_of(b)] for b in chosen if b.name in left}
    spent = seconds_spent({b.name: b / "metrics.jsonl" for b in chosen})
    end = time.time() + replace(taken.room, seconds=session.clock.left).training(choice.networks)
    deadlines = Deadlines(planned, spent, len(session.training_slots(trainings(session, chosen, datalist))), end)
    searches = searches_left(session, chosen, datalist) if choice.search else []
    span = time_to_search(session, searches, len(chosen))
    return Pace(chosen, deadlines, taken.room.closing, taken.selecting, taken.members, span, windows)


@dataclass(frozen=True)
class _Ahead:
    """What a limit is divided among where cases are predicted in the windows of one level (`planning.windows`).

    `members`: seconds that a network of each family adds to the predictions; `selecting`: see `Pace`.
    """

    candidates: list[Candidate]
    room: Room
    members: dict[str, float]
    selecting: float


def _ahead(
    session: Session,
    bundles: Sequence[Path],
    datalist: Datalist,
    measured: Sequence[Candidate],
    level: int,
    left: Container[str],
) -> _Ahead:
    """`left`: the bundles that are still to be trained; others predict in the windows that they were scored in."""
    assert session.clock is not None
    first, members = first_bundles(bundles), dict[str, Speed]()
    candidates = []
    for family in measured:
        speed = _in_windows(family.speed, first[family.name], _windows(session, first[family.name], level))
        candidates.append(replace(family, speed=speed))
        kept = [b for b in bundles if family_of(b) == family.name and b.name not in left]
        others = [_in_windows(family.speed, b, scored_windows(b)).case for b in kept]
        members[family.name] = replace(speed, case=max([speed.case, *others]))
    slots = session.training_slots(trainings(session, bundles, datalist))
    closing, seconds = _predictions(session, datalist, members, slots)
    validating = len(datalist.validation or datalist.training) * sum(c.speed.case for c in candidates)
    selecting = SELECTION_START + min(SELECTION_CASE * validating, SELECTION_SHARE * session.clock.limit)
    room = Room(session.clock.left, len(slots), closing + selecting, max(seconds.values()))
    return _Ahead(candidates, room, seconds, selecting)


def _windows(session: Session, bundle: Path, level: int) -> dict[str, Any]:
    """Hyper-parameters of a bundle's windows at a level, which the user has not set."""
    if is_foreign_bundle(bundle):
        return {}
    return fewer_windows(bundle_settings(bundle), level, session.config.said(family_of(bundle)))


def _in_windows(speed: Speed, bundle: Path, windows: Mapping[str, Any]) -> Speed:
    """The speed of a family that predicts in other `windows` than planned: between those that were measured."""
    if not speed.shape:
        return speed
    planned = bundle_settings(bundle)
    fewest = fewer_windows(planned, LEVELS[-1])
    least, own, most = (passes(speed.shape, {**planned, **some}) for some in (fewest, windows, {}))
    share = (own - least) / (most - least) if most > least else 1.0
    return replace(speed, case=speed.fewest + share * (speed.case - speed.fewest))


def _without_foreign(session: Session, bundles: Sequence[Path], ours: list[Path]) -> list[Path]:
    """Our own bundles: templates written for MONAI's Auto3DSeg take part by name only where time is limited.

    Nobody can tell those when to end: they are ended when their time is over, and what they have saved by then counts.
    """
    foreign = sorted({family_of(bundle) for bundle in bundles if bundle not in ours})
    if foreign:
        message = f"{', '.join(foreign)} left out: a foreign template is trained by name only where time is limited"
        session.notify(Event("warning", message))
    if not ours:
        raise InputError([Fault("", "time_limit", "no family is left: name foreign templates by algos")])
    return ours


def _unmeasured(bundles: Sequence[Path], datalist: Datalist) -> list[Candidate]:
    """Foreign families: what a step takes them is not known, and predictions are counted as a guess."""
    found = []
    for name, bundle in first_bundles(bundles).items():
        cases = len([case for case in datalist.split(fold_of(bundle))[1] if case.label])
        found.append(Candidate(name, Speed(FOREIGN_START, 0.0, FOREIGN_CASE), 0, 0, cases))
    return found


def _candidates(
    session: Session, bundles: Sequence[Path], datalist: Datalist, speeds: dict[str, Speed]
) -> list[Candidate]:
    """The families that could be measured, the preferred one first."""
    planned: dict[str, Any] = {}
    processes = max(1, gpus_a_job(session, len(bundles)))
    with contextlib.suppress(InputError):  # bundles may stand there without it
        planned = read_keys(session.workspace.plan_json, "families")[0]
    found = []
    for name, bundle in first_bundles(bundles).items():
        if name not in speeds:
            continue
        training, validation = datalist.split(fold_of(bundle))
        steps = planned_steps(bundle_settings(bundle), len(training), processes)
        enough = int(steps * (1 if session.devices.gpus else CPU_SHARE))
        cases = len([case for case in validation if case.label])
        share = float(planned.get(name, {}).get("share", 1.0))
        found.append(Candidate(name, speeds[name], steps, enough, cases, share))
    if not found:
        raise InputError([Fault("", "time_limit", "no family could be measured: see the logs of the measuring jobs")])
    return sorted(found, key=lambda candidate: (-candidate.share, candidate.name))


def planned_steps(settings: dict[str, Any], cases: int, processes: int = 1) -> int:
    """Optimiser steps that a bundle's own settings ask for, in so many processes; 0 where only time bounds them."""
    return budget_steps(settings, math.ceil(cases / (processes * int(settings["num_images_per_batch"])))) or 0


def _predictions(
    session: Session, datalist: Datalist, speeds: dict[str, Speed], slots: Sequence[Slot]
) -> tuple[float, dict[str, float]]:
    """(seconds of what comes after the trainings whatever their number, seconds a member of each family adds)."""
    start = max((speed.start for speed in speeds.values()), default=PREDICTION_START)
    seconds, times = prediction_seconds(session, datalist.testing, slots, start)
    return seconds + 2.0, {name: times * max(0.0, s.case - SECONDS_A_CASE) for name, s in speeds.items()}


def prediction_seconds(
    session: Session, cases: Sequence[Case], slots: Sequence[Slot], start: float = PREDICTION_START
) -> tuple[float, float]:
    """(seconds to predict and score cases, their networks apart; how often the seconds of a network and case count).

    `slots`: on which these seconds a case were measured; `start`: seconds of the process that predicts.
    """
    cores, labelled = session.devices.cores, len([case for case in cases if case.label])
    fixed = (start if cases else 0.0) + SECONDS_A_CASE * len(cases) + SECONDS_A_SCORE * labelled / cores
    if session.devices.gpus:
        return fixed, math.ceil(len(cases) / len(session.slots(len(cases))))
    return fixed, len(cases) / (cores / slots[0].cpus) ** PREDICTING_SCALING


def _chosen(session: Session, bundles: Sequence[Path], datalist: Datalist, ahead: Sequence[_Ahead]) -> Choice:
    """The choice for this limit: the one of an earlier call that went the same way, or a new one, kept in pace.json.

    `ahead`: by level of windows.
    InputError where it is too short for anything.
    """
    assert session.clock is not None
    config, limit, folds = session.config, session.clock.limit, datalist.num_fold
    key = choice_key(bundles, datalist, config)
    earlier = kept_choice(session.workspace, key)
    if earlier is not None:
        return earlier
    named, all_folds = config.algos is not None, config.num_fold is not None
    refit = max(0, max(Counter(map(family_of, bundles)).values()) - folds)  # bundles that there are on all cases

    def chosen_in(there: _Ahead, without: float = 0.0) -> Choice | None:
        room = replace(there.room, seconds=there.room.seconds - without)
        return choose(there.candidates, folds, room, named=named, all_folds=all_folds, refit=refit)

    found = [chosen_in(there) for there in ahead]
    level = level_within([_windows_share(there, choice) for there, choice in zip(ahead, found, strict=True)])
    choice = found[level]
    if choice is None:
        there = ahead[level]
        least = least_seconds(there.candidates, there.room, named, folds + refit if all_folds else 1)
        message = f"{_span(limit)} are too short: the least for these data here is"
        raise InputError([Fault("", "time_limit", f"{message} {_span(1.1 * (least + session.clock.spent))}")])
    first = among(choice, bundles, folds)
    span = time_to_search(session, searches_left(session, first, datalist), len(first))
    beside = None if span is None else chosen_in(ahead[level], span.together)
    if beside is not None and min(beside.steps.values()) >= SEARCH_LEAVES:
        choice = replace(beside, search=True)
    choice = replace(choice, windows=level)
    write_json(session.workspace.pace_json, {"key": key, "limit": limit, "choice": choice})
    return choice


def _windows_share(ahead: _Ahead, choice: Choice | None) -> float | None:
    """What windows take of the time, by the families that are chosen: a slow one that is left out does not count."""
    if choice is None:
        return None
    member = max(ahead.members[name] for name in choice.seconds)
    return windows_share(ahead.candidates, replace(ahead.room, a_member=member), choice)


def kept_choice(workspace: Workspace, key: str) -> Choice | None:
    """What was chosen before, for what `choice_key` gives; None where nothing was."""
    with contextlib.suppress(InputError):  # there is none, or it is torn
        kept, choice = read_keys(workspace.pace_json, "key", "choice")
        return restored(Choice, choice, workspace.pace_json) if kept == key else None
    return None


def among(choice: Choice, bundles: Sequence[Path], folds: int) -> list[Path]:
    """The bundles that are trained: of every family chosen the first ones of its `folds`, and of those on all cases.

    A foreign family has folds alone: it trains as many networks, as far as it has them.
    """
    taken = set[Path]()
    for name in choice.seconds:
        own = sorted((bundle for bundle in bundles if family_of(bundle) == name), key=fold_of)
        whole = own[folds:][: choice.refit]
        taken |= {*own[:folds][: choice.networks - len(whole)], *whole}
    return [bundle for bundle in bundles if bundle in taken]


def choice_key(bundles: Sequence[Path], datalist: Datalist, config: RunConfig) -> str:
    """Differs where another choice might be made: by the trainings there are, the limit, and what the user names."""
    said = [config.time_limit, config.algos is not None, config.num_fold is not None]
    return fingerprint({"jobs": [fingerprint(training_inputs(b, datalist)) for b in bundles], "said": said})


def _tell(session: Session, choice: Choice, datalist: Datalist, windows: Container[str]) -> None:
    """`windows`: the hyper-parameters of those that cases are predicted in, where they are not as planned."""
    assert session.clock is not None
    parts = [
        f"{name}: {_span(seconds)} a network, {_steps(choice.steps[name])}" for name, seconds in choice.seconds.items()
    ]
    folds = datalist.num_fold
    which = f"{choice.folds} of {folds} folds" if choice.folds < folds else f"{folds} fold{'s' if folds > 1 else ''}"
    if choice.refit or session.config.refit:
        which += f" and {choice.refit} network{'s' if choice.refit != 1 else ''} on all cases"
    before = f", {_span(session.clock.before)} of it spent before" if session.clock.before else ""
    facts = {"time_limit": session.clock.limit, "left": session.clock.left, "choice": to_plain(choice)}
    fewer = [word for key, word in FEWER.items() if key in windows]
    parts += [f"predictions in windows that {' and '.join(fewer)}, to save time"] if fewer else []
    message = f"time limit {_span(session.clock.limit)}{before}: {which}; {'; '.join(parts)}"
    session.notify(Event("forecast", message, facts))
    for name, reason in choice.left_out.items():
        session.notify(Event("forecast", f"{name} is not trained in this time: {reason}"))


def _steps(number: int) -> str:
    return "as many steps as it makes" if number >= UNKNOWN_STEPS else f"about {number} steps"


def _forecast(session: Session, jobs: Sequence[Job], datalist: Datalist) -> None:
    """Say how long trainings and predictions will take, where that is worth measuring."""
    bundles = [session.workspace.root / job.id for job in jobs]
    processes = max(1, gpus_a_job(session, len(bundles)))
    cases = {b: len(datalist.split(fold_of(b))[0]) for b in bundles}
    lengths = {b.name: planned_steps(bundle_settings(b), cases[b], processes) for b in bundles}
    if max(lengths.values()) < WORTH_MEASURING or session.config.minutes:
        return
    speeds = measure(session, bundles, datalist)
    known = {c.name: c for c in _candidates(session, bundles, datalist, speeds)} if speeds else {}
    if any(family_of(b) not in known for b in bundles):
        return
    seconds = {b.name: _unlimited(known[family_of(b)], lengths[b.name], bundle_settings(b)) for b in bundles}
    slots = session.training_slots(trainings(session, bundles, datalist))
    closing, members = _predictions(session, datalist, speeds, slots)
    folds = len({fold_of(b) for b in bundles})
    total = makespan(list(seconds.values()), len(slots)) + closing + folds * max(members.values())
    longest = {name: max(seconds[b.name] for b in bundles if family_of(b) == name) for name in known}
    each = "; ".join(f"{name}: {_span(longest[name])} a fold" for name in known)
    apart = ", searches apart" if searches_left(session, bundles, datalist) else ""
    message = f"forecast: about {_span(total)} for {len(jobs)} trainings and the predictions{apart} ({each})"
    session.notify(Event("forecast", message, {"seconds": total, "jobs": seconds}))


def _unlimited(family: Candidate, steps: int, settings: dict[str, Any]) -> float:
    """Seconds of a training by steps, which makes all its validations; their windows are not mirrored."""
    scoring = family.speed.case * family.cases
    validating = VALIDATIONS * scoring / 2 ** len(settings["mirror_axes_inference"])
    return float(family.speed.start + steps * family.speed.step + validating + scoring)


def _span(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 2 min 30 s, 40 min, 3 h 20 min."""
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return " ".join([f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * bool(rest or not minutes))
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join([f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes or not hours))
