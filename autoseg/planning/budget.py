"""How a span of time is divided among jobs that run side by side, and what is worth training in it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from autoseg.devices import makespan
from autoseg.errors import Fault, InputError
from autoseg.planning.plan import Plan
from autoseg.records import Speed

LEAST_STEPS = 40  # with fewer a network has learned nothing that could be called a result
FOLD_STEPS = 300  # that every fold must get before there is another one
CPU_SHARE = 3.0  # times its planned steps, which are few on a CPU, that the first family gets before there is another
UNKNOWN_STEPS = 10**9  # of a family that cannot be measured
VALIDATIONS = 1.1  # times the steps' time: validations while training
HALVINGS = 40  # of a span of time: far under a millisecond is left
MARGIN = 1.1  # of what is kept for predictions


def seconds_a_share(seconds: float, shares: Sequence[float], slots: int) -> float:
    """What a job of share 1 may take so that jobs of these shares are all done within `seconds`."""
    return seconds / makespan(shares, slots)


def plan_search(plan: Plan) -> None:
    """Where an architecture is searched for within a training's seconds: it takes its share of them."""
    settings = plan.settings
    seconds = settings.get("max_seconds")
    if settings.get("search") and seconds and not settings.get("search_seconds"):
        share = float(settings["search_share"])
        if not 0 < share < 1:
            raise InputError([Fault("", "search_share", f"{share:g} is no share between 0 and 1")])
        own = round(share * float(seconds), 1)
        plan.set("search_seconds", own, "its share of the training's seconds")
        plan.set("max_seconds", round(float(seconds) - own, 1), plan.reasons["max_seconds"] + ", less the search's")


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
    fold has to score in the end. `enough`: steps a fold after which another family gives more.
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
        return self.speed.start + VALIDATIONS * steps * self.speed.step + 2 * scoring

    def steps_in(self, seconds: float) -> int:
        """Steps of a job that may take so long."""
        free = seconds - self.seconds(0)
        if not self.speed.step:
            return UNKNOWN_STEPS if free > 0 else 0
        return max(0, int(free / (VALIDATIONS * self.speed.step)))


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
    """Families in the order of their preference, with the seconds of each of their jobs; how many folds are trained."""

    seconds: dict[str, float]
    steps: dict[str, int]
    folds: int
    training: float  # seconds of the whole stage
    left_out: dict[str, str] = field(default_factory=dict)


def least_seconds(candidates: Sequence[Candidate], room: Room, named: bool, folds: int = 1) -> float:
    """The shortest time in which there is a result: so many folds of the first family, or of all of them, if named."""
    wanted = candidates if named else candidates[:1]
    jobs = makespan([c.seconds(LEAST_STEPS) for c in wanted] * folds, room.slots)
    return jobs + MARGIN * (room.closing + folds * room.a_member)


def choose(candidates: Sequence[Candidate], folds: int, room: Room, *, named: bool, all_folds: bool) -> Choice | None:
    """What to train in the time there is; None where it is too little for anything.

    The first family comes first: as many folds as get FOLD_STEPS each. Another family joins, with its planned steps,
    where the first one has `enough` on all folds; what is left is the first one's. Families that were `named` are all
    trained, sharing the time; `all_folds`: so are the folds.
    """
    if room.seconds < least_seconds(candidates, room, named, folds if all_folds else 1):
        return None
    first = candidates[0]
    taken = list(candidates) if named else [first]

    def shared(n: int) -> Choice:
        training, shares = room.training(n), [c.share for c in taken] * n
        unit = seconds_a_share(training, shares, room.slots)
        seconds = {c.name: unit * c.share for c in taken}
        return Choice(seconds, {c.name: c.steps_in(seconds[c.name]) for c in taken}, n, training)

    side_by_side = min(folds, max(1, room.slots // len(taken)))
    asked = [(n, FOLD_STEPS if n > side_by_side else LEAST_STEPS) for n in range(folds, 0, -1)]
    fitting = [n for n, steps in asked if min(shared(n).steps.values()) >= steps]
    choice = shared(folds if all_folds else fitting[0] if fitting else 1)
    if named or choice.folds < folds:
        reason = f"{choice.folds} of {folds} folds of {first.name} fill the time"
        return replace(choice, left_out={c.name: reason for c in candidates if c not in taken})
    left_out = {}
    for other in candidates[1:]:
        more = [*taken, other]
        wanted = [c.seconds(c.enough if c is first else c.steps) for c in more]
        if makespan(wanted * folds, room.slots) <= choice.training:
            taken = more
        else:
            left_out[other.name] = f"{first.name} would get fewer than {first.enough} steps a fold"
    return replace(_rest_to_the_first(taken, folds, room, choice.training), left_out=left_out)


def _rest_to_the_first(taken: Sequence[Candidate], folds: int, room: Room, training: float) -> Choice:
    """The other families get the time for their planned steps, the first one all that is left."""
    others = {c.name: c.seconds(c.steps) for c in taken[1:]}
    first = largest(lambda own: makespan([own, *others.values()] * folds, room.slots) <= training, training)
    seconds = {taken[0].name: first, **others}
    return Choice(seconds, {c.name: c.steps_in(seconds[c.name]) for c in taken}, folds, training)
