"""What is wrong with a datalist, gathered while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import Fault, Faults
from autoseg.records import Case

SHOWN = 20  # faults of one kind that are listed one by one


class Complaints:
    """Faults of one datalist by kind, so that 10,000 wrong paths are told by the first ones and a count."""

    def __init__(self, path: Path):
        self.path = path
        self.by_kind: dict[str, list[Fault]] = {}

    def add(self, kind: str, field: str, message: str) -> None:
        self.by_kind.setdefault(kind, []).append(Fault(str(self.path), field, message))

    def raise_if_any(self) -> None:
        gathered = Faults()
        for kind, faults in self.by_kind.items():
            gathered.extend(faults[:SHOWN])
            if len(faults) > SHOWN:
                gathered.add(self.path, "", f"and {len(faults) - SHOWN} more {kind}")
        gathered.raise_if_any()


@dataclass(frozen=True)
class Entry:
    """A case and where it stands, such as training[3]; a faulty entry's case has no image."""

    where: str
    section: str
    case: Case


def kind_of(value: Any) -> str:
    """What a JSON value is, in a sentence such as "is a list, not a path"."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return "empty" if value in ("", None) else names.get(type(value), f"a {type(value).__name__}")


def some(numbers: Sequence[int]) -> str:
    """The first of the numbers, with commas."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
