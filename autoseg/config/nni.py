"""MONAI's AutoRunner searches by NNI: what its users write for that, as this project's sweeps are told it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoseg.errors import Fault, Faults, InputError, nearest

RENAMED = {"maxTrialNumber": "n_trials", "maxExperimentDuration": "time_limit", "trialConcurrency": "max_parallel"}
UNUSED: tuple[str, ...] = ("trialCodeDirectory", "trialGpuNumber", "trialCommand", "trainingService", "tuner")
UNUSED += ("assessor", "experimentName", "experimentWorkingDirectory", "searchSpace", "search_space", "nni_dry_run")
# `_type` -> how many numbers `_value` holds, and what they are here; NNI's upper bound of integers is not among them
RANGES: dict[str, tuple[int, Callable[..., dict[str, Any]]]] = {
    "uniform": (2, lambda low, high: {"low": low, "high": high}),
    "loguniform": (2, lambda low, high: {"low": low, "high": high, "log": True}),
    "quniform": (3, lambda low, high, step: {"low": low, "high": high, "step": step}),
    "randint": (2, lambda low, above: {"low": low, "high": above - 1}),
}


def without_nni(params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Parameters of a sweep with NNI's keys under their names here, and a sentence about these, empty without any.

    A key that stands there under both names counts as it is here. InputError for NNI's dry run.
    """
    if params.get("nni_dry_run"):
        message = "nothing is written for NNI: run(dry_run=True) says what would be done"
        raise InputError([Fault("", "nni_dry_run", message)])
    named = [key for key in RENAMED if key in params]
    unused = [key for key in UNUSED if key in params]
    kept = {key: value for key, value in params.items() if key not in (*RENAMED, *UNUSED)}
    for key in named:
        value = params[key]
        seconds = key == "maxExperimentDuration" and isinstance(value, int)
        kept.setdefault(RENAMED[key], f"{value}s" if seconds else value)
    said = [f"{key} is taken as {RENAMED[key]}" for key in named]
    said += [f"{', '.join(unused)}: without effect, trials are jobs of autoseg's"] if unused else []
    return kept, "; ".join(said)


def read_nni_space(plain: Mapping[str, Any]) -> dict[str, Any]:
    """NNI's search space as one of ours, in which nothing else is searched.

    {"learning_rate": {"_type": "choice", "_value": [0.01, 0.001]}}; names may be MONAI's, `training#learning_rate`.
    InputError with every entry that cannot be read.
    """
    faults, space = Faults(), dict[str, Any](replace=True)
    for key, entry in plain.items():
        try:
            space[str(key).rpartition("#")[2]] = _entry(entry)
        except ValueError as error:
            faults.add("", str(key), str(error))
    if not plain:
        faults.add("", "search_space", "is empty")
    faults.raise_if_any()
    return space


def only_choices(space: Mapping[str, Any]) -> bool:
    """Whether a space of `read_nni_space` has so few points that each can be tried."""
    return all("choices" in entry for name, entry in space.items() if name != "replace")


def _entry(entry: Any) -> dict[str, Any]:
    """An entry of a space, see `hpo.entries`; ValueError where NNI's has no counterpart."""
    if not isinstance(entry, Mapping) or "_value" not in entry:
        raise ValueError("has no _value")
    kind, values = entry.get("_type"), entry["_value"]
    if kind != "choice" and kind not in RANGES:
        known = ("choice", *RANGES)
        raise ValueError(f"_type: {kind!r} is none of {', '.join(known)}{nearest(str(kind), known)}")
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"_value: {values!r} is not a list")
    if kind == "choice":
        return {"choices": list(values)}
    count, made = RANGES[kind]
    if len(values) != count or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise ValueError(f"_value: {list(values)!r} is not a list of {count} numbers, which {kind} needs")
    return made(*values)
