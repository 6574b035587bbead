"""What a sweep searches: the families' search_space.yaml and the user's over them, as Optuna parameters and back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from graphlib import CycleError
from pathlib import Path
from typing import Any

import optuna

from autoseg.bundles.contract import is_foreign
from autoseg.bundles.templates import SKELETON, template_settings
from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.hpo.bound import BoundSpace, Entries, FunctionSpace, Overriding, Suggestion, bound_family, in_order
from autoseg.hpo.domains import matches
from autoseg.hpo.entries import NOT_SEARCHED, Entry, check_entry, is_number, put_over, read_entries, wrong_value
from autoseg.workspace import read_yaml

__all__ = ["BoundSpace", "SearchSpace", "Suggestion", "read_space"]

FILE = "search_space.yaml"


def read_space(
    folders: Mapping[str, Path], given: Any = None, fixed: Mapping[str, Collection[str]] | None = None
) -> SearchSpace:
    """The space over the families of the template `folders`, changed by what the user has `given`.

    `given`: None, the path of a YAML file, a mapping (see `entries`; beside hyper-parameters and families its keys may
    be `replace: true`, so that nothing else is searched, and `only: [names]`), or a callable `trial -> overrides`.
    `fixed`: hyper-parameters by family that are set elsewhere and so not searched. InputError with every fault.
    """
    faults = Faults()
    for family, folder in folders.items():
        if is_foreign(folder):
            faults.add(folder, "algos", f"'{family}' is a template of Auto3DSeg's own: its settings cannot be searched")
    faults.raise_if_any()
    known = {family: template_settings(folder) for family, folder in folders.items()}
    held = {family: frozenset((fixed or {}).get(family, ())) for family in folders}
    if callable(given):
        space = SearchSpace(known, {}, held, given)
        space.try_out()
        return space
    file, plain = _read_given(given)
    entries: dict[str, Entries] = {}
    for family, folder in folders.items():
        found: Entries = {}
        _put_level(found, _read_file(SKELETON / FILE), str(SKELETON / FILE), "space", False, known[family], faults)
        own = folder / FILE
        _put_level(found, _read_file(own), str(own), f"space.{family}", False, known[family], faults)
        shared = {key: value for key, value in plain.items() if key not in folders}
        known_here = {k: v for k, v in shared.items() if k in known[family] or k in ("replace", "only")}
        _put_level(found, known_here, file, "space", True, known[family], faults)
        _put_level(found, plain.get(family, {}), file, f"space.{family}", True, known[family], faults)
        entries[family] = {name: found[name] for name in found if name not in held[family]}
    _refuse_unknown(plain, file, known, faults)
    for family, found in entries.items():
        _check_family(found, known[family], faults)
    searched = any(entry.form != "value" for found in entries.values() for some in found.values() for entry in some)
    if not faults and not searched and len(folders) == 1:
        faults.add(file, "space", "nothing is left to search")
    faults.raise_if_any()
    return SearchSpace(known, entries, held, None)


def _read_given(given: Any) -> tuple[str, Mapping[str, Any]]:
    """(name for faults, mapping) of what the user gave."""
    if given is None:
        return "", {}
    file = str(given) if isinstance(given, (str, Path)) else ""
    plain = read_yaml(Path(given).expanduser()) if file else given
    if not isinstance(plain, Mapping) or not plain:
        message = "is empty" if not plain and plain is not False else "is no mapping of hyper-parameters to ranges"
        raise InputError([Fault(file, "space", message)])
    return file, {str(key): value for key, value in plain.items() if key != "schema_version"}


def _read_file(path: Path) -> Any:
    return (read_yaml(path) or {}) if path.is_file() else {}


def _put_level(
    found: Entries, plain: Any, file: str, field: str, given: bool, known: Mapping[str, Any], faults: Faults
) -> None:
    """One mapping of hyper-parameters to entries over what is `found` so far."""
    if not isinstance(plain, Mapping):
        faults.add(file, field, f"{plain!r} is no mapping of hyper-parameters to ranges")
        return
    only = plain.get("only")
    if not isinstance(plain.get("replace", False), bool):
        faults.add(file, f"{field}.replace", f"{plain['replace']!r} is neither true nor false")
    elif plain.get("replace"):
        found.clear()
    for key, value in plain.items():
        name, where = str(key), f"{field}.{key}"
        if name in ("only", "replace"):
            continue
        if name not in known:
            faults.add(file, where, f"no such hyper-parameter{nearest(name, known)}")
        elif name in NOT_SEARCHED:
            faults.add(file, where, f"cannot be searched: {NOT_SEARCHED[name]}")
        elif value is None:
            found.pop(name, None)
        elif entries := read_entries(value, file, where, given, faults):
            found[name] = put_over(found.get(name, []), entries)
    if only is not None and not (isinstance(only, (list, tuple)) and all(isinstance(name, str) for name in only)):
        faults.add(file, f"{field}.only", f"{only!r} is not a list of hyper-parameters")
    elif only is not None:
        for name in (name for name in only if name in known and name not in found):
            faults.add(file, f"{field}.only", f"'{name}' is not searched by itself: give its range as well")
        for name in [name for name in found if name not in only and name not in plain]:
            del found[name]


def _refuse_unknown(
    plain: Mapping[str, Any], file: str, known: Mapping[str, Mapping[str, Any]], faults: Faults
) -> None:
    """Names that no family knows, each of which the levels have passed over."""
    every = dict.fromkeys(name for settings in known.values() for name in settings)
    for name in plain:
        if name not in (*every, *known, "replace", "only"):
            message = f"neither a hyper-parameter nor one of the families{nearest(name, [*every, *known])}"
            faults.add(file, f"space.{name}", message)
    sections = [(f"space.{family}", plain.get(family), known[family]) for family in known]
    for field, level, names in [("space", plain, every), *sections]:
        only = level.get("only") if isinstance(level, Mapping) else None
        for name in only if isinstance(only, (list, tuple)) else ():
            if name not in names:
                faults.add(file, f"{field}.only", f"no such hyper-parameter as '{name}'{nearest(str(name), names)}")


def _check_family(found: Entries, known: Mapping[str, Any], faults: Faults) -> None:
    """Every fault of a family's entries, and of the conditions among them."""
    for name, entries in found.items():
        for entry in entries:
            check_entry(entry, known[name], known, faults)
            for other, wanted in entry.when.items():
                if other not in known:
                    message = f"when: no such hyper-parameter as '{other}'{nearest(other, known)}"
                    faults.add(entry.file, entry.field, message)
                    continue
                for value in wanted:
                    wrong = wrong_value(value, known[other])
                    if wrong or (entry.given and not _can_be(value, found.get(other, []))):
                        message = wrong or f"{value!r} is none of what is searched for it"
                        faults.add(entry.file, entry.field, f"when: {other}: {message}")
    try:
        in_order(found)
    except CycleError as error:
        circle = list(error.args[1])
        entry = found[circle[0]][0]
        faults.add(entry.file, entry.field, f"when: each waits for the next: {' -> '.join(circle)}")


def _can_be(value: Any, entries: list[Entry]) -> bool:
    """Whether a hyper-parameter of these entries may have the value; a plan may say anything of others."""
    if not entries or any(entry.form in ("times", "shorten", "") or entry.when for entry in entries):
        return True
    for entry in entries:
        fields = entry.fields
        if entry.form == "range":
            bounds = (fields.get("low"), fields.get("high"))
            if not all(map(is_number, (value, *bounds))) or bounds[0] <= value <= bounds[1]:
                return True
        elif matches(value, fields["choices"] if entry.form == "choices" else [fields["value"]]):
            return True
    return False


class SearchSpace:
    """A checked space, some of it relative to plans that are yet to be made."""

    def __init__(
        self,
        known: Mapping[str, Mapping[str, Any]],
        entries: Mapping[str, Entries],
        fixed: Mapping[str, Collection[str]],
        function: Overriding | None,
    ):
        self.families = tuple(known)
        self.known, self.entries, self.fixed, self.function = known, entries, fixed, function

    def bound(self, planned: Mapping[str, Mapping[str, Any]]) -> BoundSpace:
        """The space around the planned settings of every family; InputError where a relative bound means nothing."""
        if self.function is not None:
            return FunctionSpace(self.known, self.fixed, self.function)
        settings = {family: {**self.known[family], **planned[family]} for family in self.families}
        faults = Faults()
        parameters = {
            family: bound_family(self.entries[family], settings[family], self.known[family], faults)
            for family in self.families
        }
        if (
            not faults
            and len(self.families) == 1
            and not any(
                not option.domain.single for options in parameters[self.families[0]].values() for option in options
            )
        ):
            faults.add("", "space", "nothing is left to search beside the plan")
        faults.raise_if_any()
        return BoundSpace(settings, parameters)

    def try_out(self) -> None:
        """Ask a callable once, for a trial that nobody keeps; InputError where it fails or names what it must not."""
        if self.function is None:
            return
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
            with contextlib.suppress(optuna.TrialPruned):  # it may give a trial up
                FunctionSpace(self.known, self.fixed, self.function).suggest(trial)
        finally:
            optuna.logging.set_verbosity(verbosity)
