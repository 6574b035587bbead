"""The errors of autoseg: one tree, so that a caller can catch what it can mend.

Bad input gathers: `Faults` collects every fault of a stage and raises them together, so that a user mends a
datalist in one pass instead of one fault a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with what was given: the file it stands in, the field, and what to do."""

    file: str
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)


class AutosegError(Exception):
    """Root of all errors that autoseg raises on purpose; `exit_code` is what the shell gets."""

    exit_code = 4


class InputError(AutosegError):
    """What was given is wrong. Holds every fault found, not only the first.

    `partial` is what could be read all the same (a configuration, say), so that later checks can add their faults.
    """

    exit_code = 2

    def __init__(self, faults: Iterable[Fault], partial: object = None):
        self.faults = tuple(faults)
        self.partial = partial
        super().__init__("\n".join(str(fault) for fault in self.faults))


class WorkspaceInUseError(InputError):
    """Another living run holds the work_dir."""


class NoResultError(AutosegError):
    """The work was done but nothing valid came of it: every job failed, say."""

    exit_code = 4


class Faults:
    """Collects faults; `raise_if_any` raises them all as one `InputError`."""

    def __init__(self) -> None:
        self.items: list[Fault] = []

    def add(self, file: object, field: str, message: str) -> None:
        fault = Fault(str(file), field, message)
        if fault not in self.items:
            self.items.append(fault)

    def extend(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.add(fault.file, fault.field, fault.message)

    def __bool__(self) -> bool:
        return bool(self.items)

    def raise_if_any(self) -> None:
        if self.items:
            raise InputError(self.items)


def all_faults(*parts: Callable[[], object]) -> None:
    """Call every part; one InputError with the faults of all that raise one."""
    faults = Faults()
    for part in parts:
        try:
            part()
        except InputError as error:
            faults.extend(error.faults)
    faults.raise_if_any()


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A hint ` (did you mean 'x'?)` naming the known word nearest to `word` in any case, or the empty string.

    `cutoff` is difflib's ratio (0 to 1) below which nothing is near.
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=cutoff)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def root_cause(error: BaseException) -> BaseException:
    """What is behind an error: MONAI says of a component only that it could not be made."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """Type and message of an error, without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
