"""A search space around a plan: what Optuna is asked for, and what a trial's parameters mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import optuna
from optuna.trial import BaseTrial

from autoseg.errors import Fault, Faults, InputError, nearest, one_line
from autoseg.hpo.domains import Choices, Domain, bind, matches
from autoseg.hpo.entries import NOT_SEARCHED, Entry, wrong_value

FAMILY = "family"  # the parameter that chooses among several
PLANNED = "planned_family"  # a trial with this user attribute is that family's plan, whatever a callable would say
Entries = dict[str, list[Entry]]
Overriding = Callable[[BaseTrial], Mapping[str, Any]]


@dataclass(frozen=True)
class Suggestion:
    """What a trial trains: a family, and hyper-parameters as `make_plan(overrides=)` takes them."""

    family: str
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Option:
    """A domain of a hyper-parameter, and the values of others under which it counts; `label` tells it from others."""

    when: Mapping[str, tuple[Any, ...]]
    label: str
    domain: Domain

    def applies(self, values: Mapping[str, Any]) -> bool:
        return all(matches(values[name], wanted) for name, wanted in self.when.items())


def in_order(found: Entries) -> list[str]:
    """Names so that what a condition names comes before; CycleError where that cannot be."""
    needs = {name: [o for entry in entries for o in entry.when if o in found] for name, entries in found.items()}
    return list(TopologicalSorter(needs).static_order())


def bound_family(
    found: Entries, settings: Mapping[str, Any], known: Mapping[str, Any], faults: Faults
) -> dict[str, list[Option]]:
    """Options by hyper-parameter, those of conditions first; conditions that the plan decides are decided."""
    options: dict[str, list[Option]] = {}
    for name in in_order(found):
        options[name] = []
        for entry in found[name]:
            verdict = _verdict(entry.when, options, settings)
            if verdict is False:
                continue
            try:
                domain = bind(entry.fields, name, settings, known[name])
            except ValueError as error:
                faults.add(entry.file, entry.field, str(error))
                continue
            open_ = verdict is None
            options[name].append(Option(entry.when if open_ else {}, entry.condition if open_ else "", domain))
            if not open_:
                break
    return {name: some for name, some in options.items() if some}


def _verdict(
    when: Mapping[str, tuple[Any, ...]], options: Mapping[str, list[Option]], settings: Mapping[str, Any]
) -> bool | None:
    """Whether a condition holds in every trial (True), in none (False) or in some (None)."""
    always = True
    for name, wanted in when.items():
        some = options.get(name, [])
        values = [v for option in some if isinstance(option.domain, Choices) for v in option.domain.values]
        values += [settings[name]] if not some or some[-1].when else []
        if any(not isinstance(option.domain, Choices) for option in some):
            always = False  # of a range it is not asked
        elif not any(matches(value, wanted) for value in values):
            return False
        else:
            always = always and all(matches(value, wanted) for value in values)
    return True if always else None


class BoundSpace:
    """Optuna parameters by family. With several families their names are `segresnet.learning_rate`, beside `family`.

    What counts only under a condition carries it in its name: `learning_rate[optimizer=sgd]`. Of a hyper-parameter
    that is a list the parameter is JSON text (choices) or the factor of the planned list.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Mapping[str, list[Option]]]):
        self.families = tuple(settings)
        self.settings, self.parameters = settings, parameters

    def suggest(self, trial: BaseTrial) -> Suggestion:
        """Ask a trial for its parameters; one that knows them already (stored, `FixedTrial`) gives the same again."""
        family = self.families[0]
        if len(self.families) > 1:
            family = trial.suggest_categorical(FAMILY, list(self.families))
        return Suggestion(family, self._walk(family, lambda _, name, domain: domain.ask(trial, name)))

    def default(self, family: str) -> dict[str, Any]:
        """The parameters under which `suggest` gives the planned configuration, or, where that is outside, the nearest.

        See `default_differs`. Of a callable nothing is known: its trial needs the user attribute PLANNED: family.
        """
        parameters: dict[str, Any] = {FAMILY: family} if len(self.families) > 1 else {}

        def nearest_to_plan(name: str, parameter: str, domain: Domain) -> Any:
            parameters[parameter] = domain.nearest(self.settings[family][name])
            return parameters[parameter]

        self._walk(family, nearest_to_plan)
        return parameters

    def default_differs(self, family: str) -> dict[str, tuple[Any, Any]]:
        """(planned, nearest in the space) of the hyper-parameters whose planned value the space does not hold."""
        planned = self.settings[family]
        found = self._walk(family, lambda name, _, domain: domain.nearest(planned[name]))
        return {name: (planned[name], value) for name, value in found.items() if value != planned[name]}

    def grid(self) -> dict[str, list[Any]]:
        """Values by parameter: choices, steps, and of a range without steps its ends and its middle.

        InputError where a parameter counts only under a condition: a grid would repeat the same trial.
        """
        faults = Faults()
        if len(self.families) > 1:
            faults.add("", "sampler", f"a grid is of one family, not of {', '.join(self.families)}")
        found: dict[str, list[Any]] = {}
        for name, options in self.parameters[self.families[0]].items():
            conditional = [option.label for option in options if option.when]
            for label in conditional:
                message = f"a grid has no conditions, and {name}{label} is one: fix it, or leave it out by null"
                faults.add("", "sampler", message)
            if not conditional and not options[0].domain.single:
                found[name] = options[0].domain.points()
        faults.raise_if_any()
        return found

    def plain(self) -> dict[str, Any]:
        """The space as plain values, for records and to tell whether a study is of the same one."""
        return {
            family: {name + option.label: option.domain.plain() for name, some in options.items() for option in some}
            for family, options in self.parameters.items()
        }

    def _walk(self, family: str, ask: Callable[[str, str, Domain], Any]) -> dict[str, Any]:
        """Overrides of a trial; `ask` gives the parameter of a (hyper-parameter, Optuna's name, domain)."""
        values, overrides = dict(self.settings[family]), {}
        prefix = f"{family}." if len(self.families) > 1 else ""
        for name, options in self.parameters[family].items():
            option = next((option for option in options if option.applies(values)), None)
            if option is None:
                continue
            domain = option.domain
            parameter = domain.points()[0] if domain.single else ask(name, prefix + name + option.label, domain)
            values[name] = overrides[name] = domain.value(parameter)
        return overrides


class FunctionSpace(BoundSpace):
    """A callable `trial -> overrides`, which asks what it likes; `family` among them chooses one, else the first."""

    def __init__(
        self,
        known: Mapping[str, Mapping[str, Any]],
        fixed: Mapping[str, Collection[str]],
        function: Overriding,
    ):
        super().__init__(known, {family: {} for family in known})
        self.known, self.fixed, self.function = known, fixed, function

    def suggest(self, trial: BaseTrial) -> Suggestion:
        """What the callable says; InputError where it fails or names what no bundle knows."""
        planned = trial.user_attrs.get(PLANNED)
        if planned is not None:
            return Suggestion(str(planned), {})
        try:
            said = self.function(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            raise InputError([Fault("", "space", f"the callable failed: {one_line(error)}")]) from error
        if not isinstance(said, Mapping):
            raise InputError([Fault("", "space", f"the callable gave {said!r}, not a mapping of hyper-parameters")])
        overrides = {str(key): value for key, value in said.items()}
        family = overrides.pop(FAMILY, self.families[0])
        if family not in self.families:
            raise InputError([Fault("", f"space.{FAMILY}", f"'{family}' is none of {', '.join(self.families)}")])
        self._check(family, overrides)
        return Suggestion(family, overrides)

    def default(self, family: str) -> dict[str, Any]:
        return {}

    def grid(self) -> dict[str, list[Any]]:
        raise InputError([Fault("", "sampler", "a callable has no grid: give ranges, or another sampler")])

    def plain(self) -> dict[str, Any]:
        function: Any = self.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return {"callable": f"{function.__module__}.{name}"}

    def _check(self, family: str, overrides: Mapping[str, Any]) -> None:
        faults, known = Faults(), self.known[family]
        for name, value in overrides.items():
            field = f"space.{family}.{name}"
            if name not in known:
                faults.add("", field, f"the callable gives it: no such hyper-parameter{nearest(name, known)}")
            elif name in NOT_SEARCHED:
                faults.add("", field, f"the callable gives it, and it cannot be searched: {NOT_SEARCHED[name]}")
            elif name in self.fixed[family]:
                faults.add("", field, "the callable gives it, and so does --set")
            elif wrong := wrong_value(value, known[name]):
                faults.add("", field, f"the callable gives it: {wrong}")
        faults.raise_if_any()
