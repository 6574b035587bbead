"""What one hyper-parameter may be once the plan is known: numbers, choices, or a factor for every axis of a list.

A domain speaks two languages: the parameter that Optuna sees (a number, text or truth value) and the hyper-parameter's
value, which may be a list. Both are plain: they go through JSON unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`, both among them; on a logarithmic scale, or `step` apart; `whole`: integers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def single(self) -> bool:
        return self.low == self.high

    def ask(self, trial: BaseTrial, name: str) -> Any:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def value(self, parameter: Any) -> Any:
        return int(parameter) if self.whole else float(parameter)

    def nearest(self, planned: Any) -> Any:
        """The number nearest to the planned one; of what is no number, the middle."""
        if isinstance(planned, bool) or not isinstance(planned, (int, float)):
            planned = self._middle()
        inside = min(max(planned, self.low), self.high)
        if self.step is not None:
            steps = round((inside - self.low) / self.step)
            inside = float(_exact(self.low) + steps * _exact(self.step))
        return round(inside) if self.whole else float(inside)

    def points(self) -> list[Any]:
        """Every step; without steps the ends and the middle of the scale."""
        if self.step is None:
            found = [self.low, self._middle(), self.high]
        else:
            count = int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1
            found = [float(_exact(self.low) + number * _exact(self.step)) for number in range(count)]
        return list(dict.fromkeys(self.nearest(point) for point in found))

    def plain(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}

    def _middle(self) -> float:
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


@dataclass(frozen=True)
class Choices:
    """Any of some plain values. Optuna's categories are text or numbers: other values are written as JSON."""

    values: tuple[Any, ...]

    @property
    def single(self) -> bool:
        return len(self.values) == 1

    def ask(self, trial: BaseTrial, name: str) -> Any:
        return trial.suggest_categorical(name, self.points())

    def value(self, parameter: Any) -> Any:
        return self.values[self.points().index(parameter)]

    def nearest(self, planned: Any) -> Any:
        """The planned value, or the number nearest to it, or the first choice."""
        if planned in self.values:
            return self.points()[self.values.index(planned)]
        numbers = [v for v in (planned, *self.values) if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) > len(self.values):
            return min(self.values, key=lambda value: abs(value - planned))
        return self.points()[0]

    def points(self) -> list[Any]:
        return [json.dumps(value) if isinstance(value, (list, dict)) else value for value in self.values]

    def plain(self) -> dict[str, Any]:
        return {"choices": list(self.values)}


@dataclass(frozen=True)
class Scale:
    """A planned list times a factor, axis by axis: whole numbers stay whole, in whole multiples, and 1 stays 1.

    Where every axis would be one multiple only, the longest gets another: a network's deepest level would be one voxel,
    which cannot be normalised.
    """

    factor: Numbers
    planned: tuple[Any, ...]
    multiple: tuple[int, ...] | None = None

    @property
    def single(self) -> bool:
        return self.factor.single

    def ask(self, trial: BaseTrial, name: str) -> Any:
        return self.factor.ask(trial, name)

    def value(self, parameter: Any) -> list[Any]:
        if parameter == 1 or any(isinstance(n, float) for n in self.planned):
            return [n if parameter == 1 else n * parameter for n in self.planned]
        units = self.multiple or (1,) * len(self.planned)
        pairs = list(zip(self.planned, units, strict=True))
        found = [n if n == 1 else unit * max(1, math.floor(n * parameter / unit + 0.5)) for n, unit in pairs]
        if self.multiple and max(units) > 1 and all(n == unit for n, unit in zip(found, units, strict=True)):
            longest = max(range(len(found)), key=lambda axis: self.planned[axis])
            found[longest] += units[longest]
        return found

    def nearest(self, planned: Any) -> Any:
        return self.factor.nearest(1.0)

    def points(self) -> list[Any]:
        return self.factor.points()

    def plain(self) -> dict[str, Any]:
        bounds = {"times": [self.factor.low, self.factor.high], "log": self.factor.log, "step": self.factor.step}
        return {**bounds, "planned": list(self.planned), "multiple": self.multiple and list(self.multiple)}


Domain = Numbers | Choices | Scale


def bind(fields: Mapping[str, Any], name: str, settings: Mapping[str, Any], default: Any) -> Domain:
    """The domain that an entry's checked `fields` mean beside the planned `settings`; ValueError where none is left.

    `default`: the template's, which says whether numbers are whole where a plan may say 1 for 1.0.
    """
    planned = settings[name]
    whole = _whole(planned if default is None else default, fields)
    log, step = bool(fields.get("log")), fields.get("step")
    if "value" in fields:
        return Choices((fields["value"],))
    if "choices" in fields:
        return Choices(tuple(fields["choices"]))
    if "low" in fields:
        kind = int if whole else float
        return _stepped(Numbers(kind(fields["low"]), kind(fields["high"]), log, step, whole))
    if "shorten" in fields:
        if not isinstance(planned, (list, tuple)) or not planned:
            raise ValueError(f"the planned value, {planned!r}, is no list that could be shorter")
        least, most = (min(int(n), len(planned) - 1) for n in fields["shorten"])
        return Choices(tuple(list(planned[: len(planned) - n]) for n in range(least, most + 1)))
    low, high = fields["times"]
    if isinstance(planned, (list, tuple)) and planned:
        unit = settings[fields["multiple"]] if "multiple" in fields else None
        if unit is not None and (not isinstance(unit, (list, tuple)) or len(unit) != len(planned)):
            raise ValueError(f"multiple: {unit!r} has no number for each of {planned!r}")
        factor = _stepped(Numbers(float(low), float(high), log, step))
        return Scale(factor, tuple(planned), None if unit is None else tuple(int(n) for n in unit))
    if isinstance(planned, bool) or not isinstance(planned, (int, float)) or planned <= 0:
        raise ValueError(f"the planned value is {planned!r}, of which there is no multiple: give low and high")
    return _around(planned, low, high, log, step, whole)


def _whole(kind: Any, fields: Mapping[str, Any]) -> bool:
    """Whether numbers are integers: `kind` is one, or nothing is known of it and all bounds are."""
    bounds = [fields[key] for key in ("low", "high", "step") if fields.get(key) is not None]
    return isinstance(kind, int) or (kind is None and all(isinstance(bound, int) for bound in bounds))


def _around(planned: float, low: float, high: float, log: bool, step: float | None, whole: bool) -> Numbers:
    """Numbers from low to high times the planned one, which is among the steps."""
    if step is None:
        least, most = (max(1, round(planned * b)) if whole else planned * b for b in (low, high))
        return Numbers(least, most, log, None, whole)
    centre, unit = _exact(planned), _exact(step)
    first = math.ceil(centre * (_exact(low) - 1) / unit)
    first = max(first, 1 - math.ceil(centre / unit))  # above 0
    last = math.floor(centre * (_exact(high) - 1) / unit)
    if first > last:
        raise ValueError(f"no number {step:g} or a multiple of it away from the planned {planned:g} lies in between")
    least, most = (float(centre + count * unit) for count in (first, last))
    return Numbers(int(least) if whole else least, int(most) if whole else most, False, step, whole)


def _stepped(numbers: Numbers) -> Numbers:
    """The range with its end on the last step."""
    if numbers.step is None:
        return numbers
    low, unit = _exact(numbers.low), _exact(numbers.step)
    high = float(low + (_exact(numbers.high) - low) // unit * unit)
    return Numbers(numbers.low, int(high) if numbers.whole else high, numbers.log, numbers.step, numbers.whole)


def _exact(number: float) -> Decimal:
    """As it is written, not as it is stored: 0.1 three times is 0.3, for Optuna as well."""
    return Decimal(str(number))


def matches(value: Any, wanted: Sequence[Any]) -> bool:
    """Whether a hyper-parameter's value is one of the `wanted`; true and 1 are not the same."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in wanted)
