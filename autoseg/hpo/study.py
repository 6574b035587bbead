"""A sweep's study, what chooses its next trial, and what ends one early: Optuna's own, by name."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GridSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.hpo.storage import open_storage, refused, shown

IDENTITY = "autoseg"  # the study's user attribute that says what it searches
KINDS: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "None": NoneType,
}
# what Optuna's constructors let through, to fail in the middle of a sweep
LEAST = {"n_ei_candidates": 1, "popsize": 4, "min_resource": 1, "max_resource": 1, "reduction_factor": 2}


def open_study(
    name: str,
    journal: Path,
    storage: str | None,
    directions: Sequence[str],
    identity: Mapping[str, Any],
    sampler: BaseSampler,
    pruner: BasePruner,
) -> optuna.Study:
    """The study called `name`, made where there is none: in the file `journal`, or in the database at `storage`, a URL.

    `directions`: "minimize" or "maximize", one an objective. `identity`, JSON-able, is kept with a new study and must
    equal that of one that is there. A study that has trials gets its sampler reseeded, which would suggest its first
    points again otherwise. Raises `InputError`: what cannot be reached or read (field `storage`), or a study that is
    another's or searches something else (field `study`, every difference).
    """
    _hush()
    where = str(journal) if storage is None else shown(storage)
    with refused(where, storage):
        study = optuna.create_study(
            storage=open_storage(journal, storage),
            sampler=sampler,
            pruner=pruner,
            study_name=name,
            directions=[StudyDirection[direction.upper()] for direction in directions],
            load_if_exists=True,
        )
        _check_identity(study, where, directions, json.loads(json.dumps(identity)))
        if study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()
    return study


def name_objectives(study: optuna.Study, names: Sequence[str]) -> None:
    """What Optuna's own tools call the values of a trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(names))


def _hush() -> None:
    """Optuna says each trial on stderr: only warnings are wanted, where everything else is logged.

    Somebody who has set another verbosity than Optuna's own keeps it.
    """
    if optuna.logging.get_verbosity() == optuna.logging.INFO:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()


def _check_identity(study: optuna.Study, where: str, directions: Sequence[str], identity: Any) -> None:
    faults = Faults()
    its_own = [direction.name.lower() for direction in study.directions]
    if its_own != list(directions):
        faults.add(where, "study", f"'{study.study_name}' is there and has the directions {its_own}: give another")
    stored = study.user_attrs.get(IDENTITY)
    # an empty study without it was made a moment ago, by this call or by one that was killed before the next line
    if stored is None and (study.user_attrs or study.get_trials(deepcopy=False)):
        faults.add(where, "study", f"'{study.study_name}' is there and was not made by autoseg: give another name")
    elif stored is not None:
        for key in {**stored, **identity}:
            old, new = (_brief(values[key]) if key in values else "nothing" for values in (stored, identity))
            if stored.get(key) != identity.get(key):
                faults.add(where, "study", f"'{study.study_name}' was made with {key} {old}, and now it is {new}")
    faults.raise_if_any()
    if stored is None:
        study.set_user_attr(IDENTITY, identity)


def _brief(value: Any, longest: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 3] + "..."


class _Grid(GridSampler):
    """Optuna's grid for a sweep that asks and tells; Optuna's own would stop a loop that does not run."""

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Nothing: `points_left` says when there is no more to ask."""


def points_left(study: optuna.Study) -> bool:
    """Whether the sampler can still suggest something new: not when every point of a grid has been tried or is."""
    if not isinstance(study.sampler, _Grid):
        return True
    tried = {trial.system_attrs.get("grid_id") for trial in study.get_trials(deepcopy=False)} - {None}
    return len(tried) < study.sampler._n_min_trials


@dataclass(frozen=True)
class _Method:
    """A sampler or a pruner, and what its constructor gets unless the user says otherwise."""

    make: Callable[..., Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""  # that Optuna needs for it and that only an extra of autoseg brings
    objectives: int = 2  # as many as it can do

    def offered(self) -> dict[str, list[str]]:
        """Names of KINDS by parameter, for those parameters that can be written in a file."""
        kinds = {}
        for name, parameter in inspect.signature(self.make).parameters.items():
            kind = parameter.annotation
            text = kind.__name__ if isinstance(kind, type) else str(kind)
            kinds[name] = [part.strip() for part in text.split("|")]
        return {name: found for name, found in kinds.items() if set(found) <= set(KINDS)}


SAMPLERS = {
    # constant_liar: trials that run count as bad ones, so that the slots beside them try something else
    "tpe": _Method(optuna.samplers.TPESampler, {"multivariate": False, "constant_liar": True}),
    # group: parameters that only some trials have are modelled with those they occur with
    "tpe_multivariate": _Method(
        optuna.samplers.TPESampler, {"multivariate": True, "group": True, "constant_liar": True}
    ),
    "gp": _Method(optuna.samplers.GPSampler, {"warn_independent_sampling": False}),
    "cmaes": _Method(optuna.samplers.CmaEsSampler, {"warn_independent_sampling": False}, "cmaes", objectives=1),
    "random": _Method(optuna.samplers.RandomSampler),
    "grid": _Method(_Grid),
    "qmc": _Method(optuna.samplers.QMCSampler, {"scramble": True, "warn_independent_sampling": False}),
}


def _pruners(steps: int) -> dict[str, _Method]:
    # Steps are counted from 1, and Optuna lets a trial be while its step is below n_warmup_steps: a fifth is let be.
    late = {"n_warmup_steps": 1 + steps // 5}
    early = {"n_startup_trials": 4, **late}
    pruners = optuna.pruners
    return {
        "none": _Method(pruners.NopPruner),
        "median": _Method(pruners.MedianPruner, early, objectives=1),
        "percentile": _Method(pruners.PercentilePruner, {"percentile": 66.0, **early}, objectives=1),
        # first after three tenths, and every second goes on: on made-up curves that cross, an earlier look or a third
        # that goes on ended the best trials, and so did the median, which is that of the survivors
        "halving": _Method(pruners.SuccessiveHalvingPruner, {"min_resource": 3, "reduction_factor": 2}, objectives=1),
        "hyperband": _Method(
            pruners.HyperbandPruner, {"min_resource": 1, "max_resource": steps, "reduction_factor": 3}, objectives=1
        ),
        "wilcoxon": _Method(pruners.WilcoxonPruner, objectives=1),
        "threshold": _Method(pruners.ThresholdPruner, late, objectives=1),
        "patient": _Method(pruners.PatientPruner, {"patience": 3}, objectives=1),
    }


def make_sampler(spec: Any, seed: int, grid: Callable[[], dict[str, list[Any]]]) -> BaseSampler:
    """The sampler that `spec` names: "tpe", or {"name": "tpe", "n_startup_trials": 5}, with Optuna's parameters.

    The same `seed` makes the same suggestions. `grid` gives the values by parameter, and is asked for a grid only.
    Raises `InputError` (field `sampler`) with every fault.
    """
    method, parameters = _read(spec, "sampler", SAMPLERS)
    if "seed" in method.offered():
        parameters = {"seed": seed, **parameters}
    if method.make is _Grid:
        parameters["search_space"] = grid()
    sampler: BaseSampler = _made(method, parameters, "sampler")
    return sampler


def make_pruner(spec: Any, steps: int = 10) -> BasePruner:
    """The pruner that `spec` names, as for `make_sampler`, for trials that report at the steps 1 to `steps`.

    {"name": "patient", "pruner": "median", "patience": 3} asks another one once a trial has stopped getting better;
    without `pruner` such a trial is ended at once. Raises `InputError` (field `pruner`) with every fault.
    """
    inner = None
    if isinstance(spec, Mapping) and spec.get("name") == "patient":
        inner = spec.get("pruner")
        spec = {key: value for key, value in spec.items() if key != "pruner"}
    method, parameters = _read(spec, "pruner", _pruners(steps))
    for key in {"min_resource", "n_warmup_steps"} & set(parameters):
        if isinstance(parameters[key], int) and parameters[key] > steps:
            raise InputError([Fault("", f"pruner.{key}", f"must be at most {steps}, the reports of a trial")])
    if method.make is optuna.pruners.PatientPruner:
        parameters["wrapped_pruner"] = None if inner is None else make_pruner(inner, steps)
    pruner: BasePruner = _made(method, parameters, "pruner")
    return pruner


def forget_study(name: str, storage: str) -> None:
    """Delete a study from a database, if it is there."""
    with refused(shown(storage), storage), contextlib.suppress(KeyError):
        optuna.delete_study(study_name=name, storage=open_storage(Path(), storage))


def check_combination(sampler: Any, pruner: Any, objectives: int, steps: int = 10) -> None:
    """Raises `InputError` with every fault of the two, as for `make_sampler` and `make_pruner`, and of both with
    the number of objectives: Optuna prunes by one only, and CMA-ES does one only.
    """
    faults = Faults()
    for field_name, spec, methods, make in (
        ("sampler", sampler, SAMPLERS, lambda spec: make_sampler(spec, 0, lambda: {})),
        ("pruner", pruner, _pruners(1), lambda spec: make_pruner(spec, steps)),
    ):
        try:
            make(spec)
        except InputError as error:
            faults.extend(error.faults)
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        if isinstance(name, str) and name in methods and methods[name].objectives < objectives:
            fitting = ", ".join(name for name, method in methods.items() if method.objectives >= objectives)
            faults.add("", field_name, f"'{name}' cannot do {objectives} objectives; those that can: {fitting}")
    faults.raise_if_any()


def _read(spec: Any, where: str, methods: Mapping[str, _Method]) -> tuple[_Method, dict[str, Any]]:
    """The method that a spec names, and its parameters, checked against the constructor's."""
    name, parameters = (spec.get("name"), dict(spec)) if isinstance(spec, Mapping) else (spec, {})
    parameters.pop("name", None)
    if not isinstance(name, str) or name not in methods:
        hint = nearest(name, methods) if isinstance(name, str) else ""
        raise InputError([Fault("", where, f"{name!r} is none of {', '.join(methods)}{hint}")])
    method, faults = methods[name], Faults()
    if method.package and find_spec(method.package) is None:
        faults.add("", where, f"'{name}' needs the package {method.package}: pip install 'autoseg[sweeps]'")
    offered = method.offered()
    for key, value in parameters.items():
        if key not in offered:
            known = ", ".join(offered) or "none"
            faults.add("", f"{where}.{key}", f"unknown to '{name}', which has {known}{nearest(str(key), offered)}")
        elif not any(_is(value, kind) for kind in offered[key]):
            faults.add("", f"{where}.{key}", f"must be {' or '.join(offered[key])}, not {value!r}")
        elif isinstance(value, (int, float)) and value < LEAST.get(key, -math.inf):
            faults.add("", f"{where}.{key}", f"must be at least {LEAST[key]}, not {value!r}")
    faults.raise_if_any()
    return method, {**method.given, **parameters}


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, KINDS[kind]) and not (isinstance(value, float) and not math.isfinite(value))


def _made(method: _Method, parameters: Mapping[str, Any], where: str) -> Any:
    """What the constructor makes of the parameters; its complaint, or that one is deprecated, is an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("error", FutureWarning)
            return method.make(**parameters)
    except (ValueError, TypeError, FutureWarning) as error:
        raise InputError([Fault("", where, " ".join(str(error).split()))]) from error
