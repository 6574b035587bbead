"""Frozen records that cross a file or process boundary, and their way to and from plain JSON/YAML values.

A stage hands the next one a record, never a loose dict. `to_plain` and `from_plain` are the only serialisation:
dataclass fields by name, nested records included, unknown keys refused.
"""

from __future__ import annotations

import dataclasses
import math
import time
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SCHEMA_VERSION = 1
T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Records, tuples, paths and NumPy scalars as values that JSON and YAML can hold; NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, (str, int)) else str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, without importing NumPy here
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Build the record `cls` from what `to_plain` gave; raises ValueError on unknown or missing fields."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = set(plain) - set(known) - {"schema_version"}
    if unknown:
        raise ValueError(f"unknown fields for {cls.__name__}: {', '.join(sorted(map(str, unknown)))}")
    missing = [
        name
        for name, f in known.items()
        if name not in plain and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"missing fields for {cls.__name__}: {', '.join(missing)}")
    return cls(**{name: _restore(hints[name], plain[name]) for name in known if name in plain})


def _restore(hint: Any, value: Any) -> Any:
    """`value` as the type `hint` says; only what records use: records, tuples, lists, dicts and unions with None."""
    if value is None:
        return float("nan") if hint is float else None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _restore(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value)
    if origin is tuple:
        inner = arguments if arguments and arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        return tuple(_restore(a, v) for a, v in zip(inner, value, strict=True))
    if origin is list:
        return [_restore(arguments[0], v) for v in value]
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        key, item = arguments
        return {(int(k) if key is int else k): _restore(item, v) for k, v in value.items()}
    if hint in (int, float, str, bool):
        return hint(value)
    return value


@dataclass(frozen=True)
class Case:
    """One volume of the datalist. `image` holds absolute paths, one a channel (or one multi-channel file)."""

    id: str
    image: tuple[str, ...]
    label: str | None = None
    fold: int | None = None
    patient: str | None = None


@dataclass(frozen=True)
class Datalist:
    """A checked datalist: cases with absolute paths and folds, and the declared labels (value -> name, without 0).

    `regions` (name -> label values), where there are any, are what is predicted and scored instead of single labels;
    they may overlap.
    """

    path: str
    dataroot: str
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()
    testing: tuple[Case, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    num_fold: int = 0
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def scored(self) -> dict[int, str]:
        """Names of what is predicted and scored: by label value, or of regions by number from 1 on."""
        return dict(enumerate(self.regions, 1)) if self.regions else dict(self.labels)

    @property
    def highest_fold(self) -> int:
        """Of any training case; 0 where they have none."""
        return max((case.fold or 0 for case in self.training), default=0)

    def split(self, fold: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training cases, validation cases) of a fold; a `validation` list, where there is one, is every fold's.

        `fold=-1` means "train on all": every training case, and the validation list (possibly empty).
        """
        if self.validation or fold < 0:
            return self.training, self.validation
        return (
            tuple(c for c in self.training if c.fold != fold),
            tuple(c for c in self.training if c.fold == fold),
        )


@dataclass(frozen=True)
class Slot:
    """A place where one job runs: a GPU or a part of one, or a share of the CPU's cores.

    `gpu` is its index as CUDA counts it, `name` what it is called; slots of one index share it.
    """

    id: str
    device: str
    cpus: int
    gpu: str | None = None
    memory: int = 0
    name: str = ""


@dataclass(frozen=True)
class Resources:
    """What a job asks for: whole GPUs (0 on a machine without; where some are lost, those that are left are enough),
    cores, bytes of memory (0: not said).
    """

    gpus: int = 0
    cpus: int = 1
    memory: int = 0


@dataclass(frozen=True)
class Job:
    """A process to run, as data. `outputs` are paths relative to `cwd`; `cost` orders jobs, longest first.

    `progress` names the metrics.jsonl that the live table reads, relative to `cwd`. `inputs`: what it is made from, by
    part (version, settings, files, cases) and name, as values or digests; `fingerprint` is the digest of all.
    """

    id: str
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fingerprint: str = ""
    cost: float = 1.0
    progress: str | None = None
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """`result.json` of a job. `status` is done, failed, skipped (a job it needs did not end well), cancelled (with the
    run) or stopped (early, since its result was not wanted any more: `error` says why).

    In the file it is `running` from a job's start on, and stays so where the orchestrator itself was killed. `sizes`
    are the bytes of those outputs that are files, when it was done.
    """

    id: str
    status: str
    fingerprint: str = ""
    outputs: tuple[str, ...] = ()
    tries: int = 0
    seconds: float = 0.0
    error: str | None = None
    log: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """How fast a family is on one slot: seconds until its first step, of a step, of predicting and scoring a case.

    `memory`: bytes of the device at the peak of a step (of the process, on a CPU). `shape`: voxels of that case, as the
    network sees it; `fewest`: its seconds in as few windows as there may be (`planning.windows`).
    """

    start: float
    step: float
    case: float
    memory: int = 0
    shape: tuple[int, ...] = ()
    fewest: float = 0.0


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`: when (seconds since the epoch), what kind, a sentence, and its facts."""

    kind: str
    message: str
    facts: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class LeaderboardEntry:
    """A trained (family, fold): its mean Dice and Dice by label value, in cross-validation.

    `predicts` is false where a foreign network's InferClass failed on its validation cases: the score is its own.
    `recall_dice`, of one without validation cases: mean Dice on some that it was trained on, which tells a collapse.
    """

    algo: str
    fold: int
    status: str
    mean_dice: float
    dice: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    predicts: bool = True
    recall_dice: float | None = None

    @property
    def name(self) -> str:
        return f"{self.algo}_{self.fold}"
