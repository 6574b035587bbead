"""How a span of time is divided among jobs that run side by side, and what is worth training in it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoseg.devices import makespan
from autoseg.planning.plan import BY_USER, Plan
from autoseg.records import Speed

LEAST_STEPS = 40  # with fewer a network has learned nothing that could be called a result
# steps, and share of those that are enough, that each network gets before another round over the slots is begun: three
# times the steps gave no less than three times the networks, which take longer to predict (docs/ensemble.md)
FOLD_STEPS, FOLD_SHARE = 300, 0.5
ALL_SHARE = 1.0  # the same, where a round is begun for networks beyond the folds
LEAST_FOLDS = 2  # before there are networks on all cases: they show one another's collapse, and how good all are
CPU_SHARE = 3.0  # times its planned steps, which are few on a CPU, that are enough for a family
UNKNOWN_STEPS = 10**9  # of a family that cannot be measured
VALIDATING = 1.2  # times the steps' time: validations while training, and the last one (engine/budget.py)
HALVINGS = 40  # of a span of time: far under a millisecond is left
SEARCH_START = 15.0  # seconds of a search's process before its first step
MARGIN = 1.1  # of what is kept for predictions


def seconds_a_share(seconds: float, shares: Sequence[float], slots: int) -> float:
    """What a job of share 1 may take so that jobs of these shares are all done within `seconds`."""
    return seconds / makespan(shares, slots)


def share_out(
    seconds: float, plans: Mapping[str, Plan], settings: Mapping[str, Mapping[str, Any]], networks: int, slots: int
) -> None:
    """Seconds of the whole stage as those of each of a family's `networks`, by shares; what the user has set stays.

    `settings`: all hyper-parameters of each of our families; another one takes its share, and ends as it likes. An
    architecture that is searched for takes its own share, or the `search_seconds` that the user gives it, before any
    training starts.
    """
    searches = {name: float(own["search_share"]) for name, own in settings.items() if own.get("search")}
    given = {name: float(settings[name]["search_seconds"] or 0.0) for name in searches}
    before = {name: plans[name].share * part for name, part in searches.items() if not given[name]}
    training = {name: plan.share - before.get(name, 0.0) for name, plan in plans.items()}
    left = seconds - makespan([value + SEARCH_START for value in given.values() if value] * networks, slots)
    stages = [list(shares.values()) * networks for shares in (before, training)]
    unit = max(0.0, left) / sum(makespan(shares, slots) for shares in stages)
    for name in settings:
        plan, own = plans[name], unit * training[name]
        reserve = min(60.0, 15.0 + 0.05 * own)  # start-up and the last validation, which no job's budget holds
        limits: dict[str, Any] = {"max_seconds": round(max(10.0, own - reserve), 1), "num_epochs": None}
        if name in before:
            limits["search_seconds"] = round(max(10.0, unit * before[name] - SEARCH_START), 1)
        for key, value in limits.items():
            if plan.reasons.get(key) != BY_USER:
                plan.set(key, value, "a share of the minutes")


def search_faults(settings: Mapping[str, Any], limited: bool) -> list[tuple[str, str]]:
    """(hyper-parameter, what is wrong with it) of a search that is asked for; `limited`: its time is, as all is."""
    if not settings.get("search"):
        return []
    faults = []
    bounds = ("search_iterations", "search_seconds")
    for key in ("search_memory", "search_rate", "search_share", *bounds):
        value = settings[key]
        if value is None and key in bounds:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            faults.append((key, f"{value!r} must be a number above 0"))
        elif key == "search_share" and value >= 1:
            faults.append((key, f"{value!r} is no share between 0 and 1"))
    if not limited and all(settings[key] is None for key in bounds):
        faults.append((", ".join(bounds), "one of them must say how long to search"))
    return faults


def largest(fits: Callable[[float], bool], most: float) -> float:
    """The largest number of 0 to `most` that fits, where with one number all smaller ones do; by halving the range."""
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Candidate:
    """A family that could be trained: its speed on one slot, how many steps a fold is planned to take, its share.

    A `speed` of 0 s a step is of one that cannot be measured: it makes as many steps as are wanted. `cases`: that a
    fold has to score in the end. `enough`: steps a network after which another network, or family, gives more.
    """

    name: str
    speed: Speed
    steps: int
    enough: int
    cases: int
    share: float = 1.0

    def seconds(self, steps: int) -> float:
        """Of a job that trains for so many steps, from its start to its scores."""
        scoring = self.speed.case * self.cases
        return self.speed.start + VALIDATING * steps * self.speed.step + scoring

    def steps_in(self, seconds: float) -> int:
        """Steps of a job that may take so long."""
        free = seconds - self.seconds(0)
        if not self.speed.step:
            return UNKNOWN_STEPS if free > 0 else 0
        return max(0, int(free / (VALIDATING * self.speed.step)))


@dataclass(frozen=True)
class Room:
    """What there is to spend: `seconds` on `slots`, of which predictions take `closing` and `a_member` for each one."""

    seconds: float
    slots: int
    closing: float
    a_member: float

    def training(self, members: int) -> float:
        return self.seconds - MARGIN * (self.closing + members * self.a_member)


@dataclass(frozen=True)
class Choice:
    """Families in the order of their preference, with the seconds of each of their jobs.

    Each trains its first `folds` folds, and `refit` networks on all cases.
    """

    seconds: dict[str, float]
    steps: dict[str, int]
    folds: int
    training: float  # seconds of the whole stage
    refit: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    search: bool = False  # whether there is time to search for architectures before
    windows: int = 0  # the level of those that cases are predicted in (`planning.windows`)

    @property
    def networks(self) -> int:
        """That each family trains."""
        return self.folds + self.refit


def least_seconds(candidates: Sequence[Candidate], room: Room, named: bool, folds: int = 1) -> float:
    """The shortest time in which there is a result: so many folds of the first family, or of all of them, if named."""
    wanted = candidates if named else candidates[:1]
    jobs = makespan([c.seconds(LEAST_STEPS) for c in wanted] * folds, room.slots)
    return jobs + MARGIN * (room.closing + folds * room.a_member)


def windows_share(candidates: Sequence[Candidate], room: Room, choice: Choice) -> float:
    """The share of all time that networks take to predict their folds' cases, to be scored, and the testing cases."""
    scoring = [c.speed.case * c.cases for c in candidates if c.name in choice.seconds] * choice.folds
    return (makespan(scoring, room.slots) + choice.networks * room.a_member) / room.seconds


def choose(
    candidates: Sequence[Candidate], folds: int, room: Room, *, named: bool, all_folds: bool, refit: int = 0
) -> Choice | None:
    """What to train in the time there is; None where it is too little for anything.

    The first family comes first: as many networks as get their steps each (FOLD_STEPS, FOLD_SHARE; beyond the number of
    folds ALL_SHARE), in full rounds over the slots, for what stands idle would have been steps. Half of them, `refit`
    at most, are trained on all cases: they have seen more than a fold's, and folds say how good both are. Another
    family joins, with its planned steps, where the first one has `enough` on all networks; what is left is the first
    one's. Families that were `named` are all trained, sharing the time; `all_folds`: so are all networks. LEAST_FOLDS
    come first.
    """
    if room.seconds < least_seconds(candidates, room, named, folds + refit if all_folds else 1):
        return None
    first = candidates[0]
    taken = list(candidates) if named else [first]

    def shared(n: int) -> Choice:
        training, shares = room.training(n), [c.share for c in taken] * n
        unit = seconds_a_share(training, shares, room.slots)
        seconds = {c.name: unit * c.share for c in taken}
        more = refit if all_folds else max(n - folds, min(refit, n // 2, n - LEAST_FOLDS), 0)
        return Choice(seconds, {c.name: c.steps_in(seconds[c.name]) for c in taken}, n - more, training, more)

    at_a_time = max(1, room.slots // len(taken))
    choice = shared(folds + refit if all_folds else _networks(first, folds, folds + refit, at_a_time, shared))
    if named or choice.networks < folds:
        reason = f"{choice.networks} networks of {first.name} fill the time"
        return replace(choice, left_out={c.name: reason for c in candidates if c not in taken})
    left_out = {}
    for other in candidates[1:]:
        more = [*taken, other]
        wanted = [c.seconds(c.enough if c is first else c.steps) for c in more]
        if makespan(wanted * choice.networks, room.slots) <= choice.training:
            taken = more
        else:
            left_out[other.name] = f"{first.name} would get fewer than {first.enough} steps a network"
    return _rest_to_the_first(taken, room, replace(choice, left_out=left_out))


def _networks(first: Candidate, folds: int, most: int, at_a_time: int, shared: Callable[[int], Choice]) -> int:
    """How many networks a family trains, up to `most`: the largest number that leaves each one its steps.

    `shared`: what each gets, by their number. What fits one round over the slots needs LEAST_STEPS alone; a round that
    is begun for folds is filled.
    """
    one_round, begun = min(most, at_a_time), -(-folds // at_a_time) * at_a_time

    def asked(n: int) -> int:
        if n <= one_round:
            return LEAST_STEPS
        share = FOLD_SHARE if n <= begun else ALL_SHARE
        return max(FOLD_STEPS, int(share * first.enough))

    full = [n for n in range(most, 0, -1) if n == most or n <= one_round or n % one_round == 0]
    return next((n for n in full if min(shared(n).steps.values()) >= asked(n)), 1)


def _rest_to_the_first(taken: Sequence[Candidate], room: Room, choice: Choice) -> Choice:
    """The other families get the time for their planned steps, the first one all that is left."""
    others = {c.name: c.seconds(c.steps) for c in taken[1:]}

    def fits(own: float) -> bool:
        return makespan([own, *others.values()] * choice.networks, room.slots) <= choice.training

    seconds = {taken[0].name: largest(fits, choice.training), **others}
    return replace(choice, seconds=seconds, steps={c.name: c.steps_in(seconds[c.name]) for c in taken})
