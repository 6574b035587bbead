"""What a sweep over hyper-parameters is told: the keys of `hpo_params`, and of the flags of `autoseg tune`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoseg.config.keys import duration, integer, positive, text
from autoseg.errors import Faults, InputError, nearest
from autoseg.workspace import parse_reason, parse_yaml


@dataclass(frozen=True)
class SweepConfig:
    """A sweep. None means: as the data, the time and the machine ask for."""

    n_trials: int | None = None  # of the whole study, those of earlier calls included
    time_limit: float | None = None  # seconds of the sweep, where it is a part of a run
    sampler: Any = "tpe"  # a name, or {name: ..., parameter: value}
    pruner: Any = None  # the same; none ends no trial early
    space: Any = None  # YAML file, mapping, or callable trial -> overrides: narrows, widens or replaces the families'
    objective: Any = "mean_dice"  # a metric, {label: weight}, or two of them
    trial_minutes: float | None = None  # of training a trial
    trial_steps: int | None = None  # ... or optimiser steps
    trial_folds: int = 1  # on which a trial is trained and validated
    trial_spacing: float = 1.0  # times coarser than planned
    race_folds: int = 3  # on which a trial that leads is compared with the best one
    held_out: float | None = None  # share of the patients that no trial sees; None: a fold
    storage: str | None = None  # URL of Optuna's storage; None: hpo/journal.log
    study: str = "autoseg"  # its name there


def _plain(value: Any, brackets: tuple[str, ...] = ("{",)) -> Any:
    """Text that begins with a bracket as the YAML that it is, all else as it is; ValueError where it is none."""
    if not isinstance(value, str) or not value.lstrip().startswith(brackets):
        return value
    try:
        return parse_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(f"cannot be parsed: {parse_reason(error)}") from error


def _share(value: Any) -> float:
    share = positive(value)
    if share >= 1:
        raise ValueError(f"{value!r} is not a share between 0 and 1")
    return share


def _factor(value: Any) -> float:
    factor = positive(value)
    if factor < 1:
        raise ValueError(f"{value!r} is less than 1: cases can be trained coarser than planned, not finer")
    return factor


def _named(value: Any) -> Any:
    """A name, or a mapping with a name and parameters, as text too."""
    value = _plain(value)
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise ValueError(f"{dict(value)!r} has no name")
        return dict(value)
    return text(value)


def _space(value: Any) -> Any:
    """A callable or a mapping as it is; a file's path made absolute."""
    value = _plain(value)
    if callable(value) or isinstance(value, Mapping):
        return value
    path = Path(text(value).removeprefix("@")).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return str(path)


def _objective(value: Any) -> Any:
    """One objective, or a list of two; {label: weight} stands for one."""
    value = _plain(value, ("{", "["))
    if isinstance(value, str) and "," in value:
        value = [word.strip() for word in value.split(",")]
    if isinstance(value, (list, tuple)):
        if len(value) not in (1, 2):
            raise ValueError(f"{len(value)} objectives: one or two")
        return [_objective(item) for item in value] if len(value) == 2 else _objective(value[0])
    return {str(k): positive(v) for k, v in value.items()} if isinstance(value, Mapping) and value else text(value)


READERS: dict[str, Callable[[Any], Any]] = {
    "n_trials": integer(1),
    "time_limit": duration,
    "sampler": _named,
    "pruner": _named,
    "space": _space,
    "objective": _objective,
    "trial_minutes": positive,
    "trial_steps": integer(1),
    "trial_folds": integer(1),
    "trial_spacing": _factor,
    "race_folds": integer(1),
    "held_out": _share,
    "storage": text,
    "study": text,
}
assert set(READERS) == {f.name for f in dataclasses.fields(SweepConfig)}


def read_sweep(given: Mapping[str, Mapping[Any, Any]], faults: Faults, prefix: str = "hpo_params.") -> SweepConfig:
    """The sweep that mappings by their file describe, the later ones over the earlier; faults are added."""
    values: dict[str, Any] = {}
    for file, plain in given.items():
        for key, value in plain.items():
            field = f"{prefix if file else ''}{key}"
            if key not in READERS:
                faults.add(file, field, f"unknown key{nearest(str(key), READERS)}")
            elif value is not None:
                try:
                    values[str(key)] = READERS[key](value)
                except ValueError as error:
                    faults.add(file, field, str(error))
                except InputError as error:
                    faults.extend(error.faults)
    if "trial_minutes" in values and "trial_steps" in values:
        faults.add("", "trial_steps", "bounds a trial, which trial_minutes does, too: give one of them")
    return SweepConfig(**values)
