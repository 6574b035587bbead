"""The verb tune: a sweep over hyper-parameters, its trials trainings over the same slots as those of a run."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from autoseg.bundles import load_algo
from autoseg.bundles.contract import is_foreign
from autoseg.config import RunConfig, config_to_input
from autoseg.datalist import plain_datalist
from autoseg.devices import detect_devices
from autoseg.errors import Fault, Faults, InputError
from autoseg.hpo.objectives import Objective, read_objectives
from autoseg.hpo.space import BoundSpace, SearchSpace, read_space
from autoseg.hpo.split import search_split
from autoseg.hpo.storage import refuse_unreachable
from autoseg.hpo.study import check_combination, make_pruner, make_sampler, name_objectives, open_study
from autoseg.hpo.sweep import JOB_SECONDS, STEPS, Asked, Sweep, Terms
from autoseg.hpo.variant import write_variant
from autoseg.pipeline import prepare, training
from autoseg.pipeline.clock import Clock
from autoseg.pipeline.inputs import case_digests, fingerprint, made_from
from autoseg.pipeline.judging import SweepResult, judge, write_summary
from autoseg.pipeline.session import Notify, Session
from autoseg.planning import Plan
from autoseg.records import Datalist, Event, Job, Slot
from autoseg.workspace import Workspace, read_json, write_json, write_yaml
from autoseg.workspace.lock import refuse_in_use

TRIALS = 30  # where nothing says how many
SHARE = 0.75  # of a sweep's time: its trials; the rest: the race, the cases held out
START_SECONDS = 30.0  # of a training, for its process and the scores at its end, until some are known
SHORTEST = 20.0  # seconds of a trial's training
BUDGET = ("num_epochs", "num_iterations", "max_seconds")
BUDGET_JSON = "budget.json"  # in hpo/: what later calls keep to
PRUNER = "median"


def refuse_bad_sweep(config: RunConfig) -> None:
    """Everything that is wrong with the input, the sweep's part included, at once; the work_dir is not touched."""
    asked = config.hpo_params
    objectives = len(asked.objective) if isinstance(asked.objective, list) else 1
    _all_faults(
        lambda: prepare.refuse_bad_input(config),
        lambda: _check_cases(config),
        lambda: check_combination(asked.sampler, _pruner(config, objectives), objectives),
        lambda: _check_folds(config),
        lambda: _space(config, _families(config)),
        lambda: refuse_unreachable(asked.storage),
    )


def _check_cases(config: RunConfig) -> None:
    """The objectives, with their labels where the datalist declares some; and whether there are enough patients."""
    asked = config.hpo_params
    try:
        datalist = prepare.read_datalist(config)
    except InputError:  # which `refuse_bad_input` tells
        read_objectives(asked.objective)
        return
    _all_faults(
        lambda: read_objectives(asked.objective, datalist.scored or None),
        lambda: search_split(datalist, asked.held_out, config.seed),
    )


def _all_faults(*parts: Callable[[], object]) -> None:
    """Call every part; one InputError with the faults of all."""
    faults = Faults()
    for part in parts:
        try:
            part()
        except InputError as error:
            faults.extend(error.faults)
    faults.raise_if_any()


def _check_folds(config: RunConfig) -> None:
    pruner = config.hpo_params.pruner
    name = pruner["name"] if isinstance(pruner, Mapping) else pruner
    if str(name).lower() == "wilcoxon" and config.hpo_params.trial_folds == 1:
        message = "wilcoxon compares trials after each of their folds: give trial_folds, 2 or more"
        raise InputError([Fault("", "pruner", message)])


def _families(config: RunConfig) -> dict[str, Path]:
    """Template folders of the families that can be tuned; of foreign ones it is not known what they can be told."""
    folders = prepare.families(config)
    ours = {name: folder for name, folder in folders.items() if not is_foreign(folder)}
    faults = Faults()
    for name in (name for name in folders if (config.algos or not ours) and name not in ours):
        faults.add("", "algos", f"{name} cannot be tuned: its template is written for MONAI's Auto3DSeg")
    faults.raise_if_any()
    return ours


def _space(config: RunConfig, folders: Mapping[str, Path]) -> SearchSpace:
    fixed = {name: set(prepare.said_of(config, name, folder)) for name, folder in folders.items()}
    return read_space(folders, config.hpo_params.space, fixed)


def _pruner(config: RunConfig, objectives: int) -> Any:
    """The pruner asked for, or the default, which two objectives have not."""
    return config.hpo_params.pruner or (PRUNER if objectives == 1 else "none")


def sweep(session: Session, datalist: Datalist) -> SweepResult:
    """Do the sweep in the session's work_dir, whose data are analysed."""
    started = time.monotonic()
    if session.config.not_use_cache:
        shutil.rmtree(session.workspace.hpo, ignore_errors=True)
    work = _Sweeping.prepare(session, datalist)
    work.study_and_feed()
    work.preprocess()
    session.stage(work.sentence())
    before = time.monotonic()
    results = training.run_jobs(session, [], work.slots, work.at_start, feed=work.feed)
    took = [results[name].seconds for name in work.started if name in results]
    whole = max(1e-9, len(work.slots) * (time.monotonic() - before))
    result = judge(session, work.feed, work.split)
    if work.own_clock is not None:
        work.own_clock.end()
    busy, start_up = sum(took) / whole, work.starts() / whole
    result = replace(result, seconds=time.monotonic() - started, busy=busy, start_up=start_up)
    write_summary(result, work.feed)
    return result


def look_ahead(config: RunConfig, notify: Notify) -> list[str]:
    """Analyse and plan, and say in lines what a sweep would do. Of the work_dir only the analysis' cache may grow."""
    real = Workspace(config.work_dir)
    if real.root.exists():
        real.create()
        refuse_in_use(real)
    with tempfile.TemporaryDirectory(prefix="autoseg_") as folder:
        session = Session(config, Workspace(folder), detect_devices(), notify)
        if config.time_limit:
            session.clock = Clock(config.time_limit, session.workspace.clock_json)
        record = real.hpo / BUDGET_JSON
        if record.is_file():
            session.workspace.hpo.mkdir()
            shutil.copyfile(record, session.workspace.hpo / BUDGET_JSON)
        datalist = prepare.analyse(session, real.cache / "analysis" if real.root.exists() else None)
        work = _Sweeping.prepare(session, datalist)
    lines = [work.sentence(), "searched around the plan, which is the first trial:"]
    for family, parameters in work.space.plain().items():
        lines += [f"  {family}.{name}: {_in_words(domain)}" for name, domain in parameters.items()]
    asked = len(list((real.hpo / "trials").glob("*/trial.json")))
    return [*lines, f"trials asked for in earlier calls: {asked}"]


def _in_words(domain: Any) -> str:
    """A domain of a search space, as `BoundSpace.plain` gives it, in a few words; of a callable its name."""
    if not isinstance(domain, Mapping):
        return str(domain)
    if "choices" in domain:
        return " or ".join(map(str, domain["choices"]))
    low, high = domain["times"] if "times" in domain else (domain["low"], domain["high"])
    of = f" times {domain['planned']}" if "times" in domain else ""
    return f"{low:.3g} to {high:.3g}{of}{', logarithmic' if domain['log'] else ''}"


def with_variant(config: RunConfig, family: str, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration with one family more: `family` with these hyper-parameters, as a template in the work_dir."""
    name = write_variant(prepare.families(config)[family], Workspace(config.work_dir).variants).name
    said = {**config.family_settings.get(family, {}), **overrides}
    return replace(config, tuned=name, family_settings={**config.family_settings, name: said})


@dataclass
class _Sweeping:
    """All that a sweep's jobs are made from."""

    session: Session
    split: Datalist
    plans: dict[str, Plan]
    folders: dict[str, Path]
    space: BoundSpace
    objectives: tuple[Objective, ...]
    slots: tuple[Slot, ...]
    budget: dict[str, Any]
    clock: Clock | None = None
    own_clock: Clock | None = None
    started: set[str] = field(default_factory=set)  # jobs of this call
    feed: Sweep = field(init=False)

    @classmethod
    def prepare(cls, session: Session, datalist: Datalist) -> _Sweeping:
        """Split the cases, plan the families, bind the search space to the plans.

        Where no family is named, the preferred one is tuned: trials spread over several find less in each.
        """
        config, asked, workspace = session.config, session.config.hpo_params, session.workspace
        split = search_split(datalist, asked.held_out, config.seed)
        bare = replace(session, config=replace(config, time_limit=None, minutes=None), clock=None)
        made = {k: p for k, p in prepare.make_plans(bare, split).items() if k in _families(config)}
        order = sorted(made, key=lambda name: (-made[name].share, name))  # the preferred one first
        plans = {name: made[name] for name in (order if config.algos else order[:1])}
        folders = {name: prepare.families(config)[name] for name in plans}
        for name, folder in folders.items():
            prepare.replace_tree(folder, workspace.templates / name)
        write_json(workspace.hpo / "datalist.json", plain_datalist(split))
        source = {**config_to_input(config), "datalist": str(workspace.hpo / "datalist.json")}
        write_yaml(workspace.hpo / "input.yaml", {**source, "dataroot": split.dataroot}, versioned=False)
        space = _space(config, folders).bound({name: plan.settings for name, plan in plans.items()})
        objectives = read_objectives(asked.objective, split.scored)
        slots = session.slots(asked.n_trials or TRIALS)
        clock = own = None
        if asked.time_limit or (config.hpo and session.clock is not None):
            half = session.clock.limit / 2 if session.clock is not None else 0.0  # of a run's time, where none is said
            clock = own = Clock(asked.time_limit or half, workspace.hpo / "clock.json")
        elif session.clock is not None:
            clock = session.clock
        sweeping = cls(session, split, plans, folders, space, objectives, slots, {}, clock, own)
        sweeping.budget = sweeping._trial_budget()
        return sweeping

    def _trial_budget(self) -> dict[str, Any]:
        """How long a trial trains, as hyper-parameters over the planned ones."""
        config, asked = self.session.config, self.session.config.hpo_params
        record = self.session.workspace.hpo / BUDGET_JSON
        unbound = dict.fromkeys(BUDGET)
        if asked.trial_steps:
            found = {**unbound, "num_iterations": asked.trial_steps}
        elif asked.trial_minutes:
            found = {**unbound, "max_seconds": round(60 * asked.trial_minutes, 1)}
        elif any(config.settings.get(key) for key in BUDGET):
            found = {}
        elif record.is_file():
            found = {key: value for key, value in read_json(record).items() if key in BUDGET}
        elif self.clock is not None:
            trainings = (asked.n_trials or TRIALS) * asked.trial_folds
            seconds = SHARE * self.clock.limit * len(self.slots) / max(len(self.slots), trainings) - START_SECONDS
            found = {**unbound, "max_seconds": round(max(SHORTEST, seconds), 1)}
        else:
            found = {}
        write_json(record, found)
        return found

    def preprocess(self) -> None:
        """The cases as the planned configurations see them, once for all trials that agree."""
        bundles = []
        for name in self.plans:
            home = self.session.workspace.hpo / "trials" / "default" / f"{name}_0"
            bundles.append(self._bundle(Asked(-1, name), 0, home))
        training.preprocess(self.session, bundles, self.split)

    def study_and_feed(self) -> None:
        config, asked, workspace = self.session.config, self.session.config.hpo_params, self.session.workspace
        study = open_study(
            asked.study,
            workspace.hpo / "journal.log",
            asked.storage,
            [objective.direction for objective in self.objectives],
            self._identity(),
            make_sampler(asked.sampler, config.seed, self.space.grid),
            make_pruner(_pruner(config, len(self.objectives)), STEPS * asked.trial_folds),
        )
        name_objectives(study, [objective.name for objective in self.objectives])
        limited = asked.n_trials is not None or self.clock is not None
        trials: float = asked.n_trials or (math.inf if limited else TRIALS)
        folds = self.split.num_fold
        self._say_where_the_plan_lies_outside()
        terms = Terms(trials, min(asked.trial_folds, folds), min(asked.race_folds, folds), self._in_time)
        self.feed = Sweep(study, self.space, self.objectives, workspace.hpo, self.make_job, terms, self.session.notify)

    def _say_where_the_plan_lies_outside(self) -> None:
        for family in self.plans:
            for name, (planned, there) in self.space.default_differs(family).items():
                message = f"{family}.{name} is planned as {planned}, outside of the space: Optuna is told {there} of it"
                self.session.notify(Event("warning", message))

    def _identity(self) -> dict[str, Any]:
        """What all trials of a study must share, or their values could not be compared."""
        asked, split = self.session.config.hpo_params, self.split
        folds = {case.id: case.fold for case in split.training}
        data = made_from(training=case_digests(split.training), folds=folds, held_out=case_digests(split.testing))
        plans = {name: {k: v for k, v in plan.settings.items() if k not in BUDGET} for name, plan in self.plans.items()}
        return {
            "data": fingerprint(data),
            "plan": fingerprint(made_from(**plans)),
            "families": ", ".join(self.plans),
            "objective": ", ".join(f"{o.name} {dict(o.weights) or ''}".strip() for o in self.objectives),
            "trial's budget": ", ".join(f"{k} {v}" for k, v in self.budget.items() if v) or "as planned",
            # trials are taken up again from their bundles, which are here
            **({"work_dir": str(self.session.workspace.root)} if asked.storage else {}),
            "trial's folds": asked.trial_folds,
            "trial's spacing": asked.trial_spacing,
        }

    def sentence(self) -> str:
        """What the sweep will do."""
        asked = self.session.config.hpo_params
        number = f"{asked.n_trials} trials" if asked.n_trials else "trials"
        limit = f" for {self.clock.left / 60:.0f} minutes" if self.clock is not None else ""
        budget = ", ".join(f"{key} {value}" for key, value in self.budget.items() if value) or "as long as planned"
        cases = f"{len(self.split.training)} cases to search by, {len(self.split.testing)} held out"
        return f"sweep: {number} of {', '.join(self.plans)} ({budget}){limit} over {len(self.slots)} slots; {cases}"

    def make_job(self, asked: Asked, fold: int) -> Job:
        """The bundle of a trial's training on a fold of the search, and its job."""
        bundle = self._bundle(asked, fold, self.feed.bundle(asked.number, fold))
        (job,) = training.training_jobs(self.session, [bundle], self.split)
        return replace(job, id=f"trial_{asked.number:04d}_{fold}")

    def _bundle(self, asked: Asked, fold: int, home: Path) -> Path:
        session, config, name = self.session, self.session.config, asked.family
        base = self.plans[name].settings
        further = {objective.metric for objective in self.objectives} - {None, "dice"}
        overrides = {**prepare.said_of(config, name, self.folders[name]), **self.budget}
        overrides |= {"scored_metrics": sorted(map(str, further)), "tolerance_mm": config.tolerance_mm}
        coarser = config.hpo_params.trial_spacing
        if coarser > 1:
            spacing = [coarser * side for side in base["resample_to_spacing"]]
            overrides |= {"resample": True, "resample_to_spacing": spacing}
        overrides |= asked.overrides
        machine = prepare.machine_for(session, self.slots)
        algo = load_algo(name, session.workspace.templates / name)
        plan = algo.make_plan(*prepare.found_statistics(session.workspace), self.split, machine, overrides)
        source = session.workspace.hpo / "input.yaml"
        return prepare.write_bundle(session, name, fold, plan, home, source)

    def starts(self) -> float:
        """Seconds that this call's trainings took until their first step."""
        found = [scores for (n, f), scores in self.feed.scores.items() if f"trial_{n:04d}_{f}" in self.started]
        return sum(float(scores.get("start_seconds", 0.0)) for scores in found)

    # time

    def at_start(self, job: Job) -> Job:
        """A training of a sweep whose time is limited is told when it must be over, come what may."""
        self.started.add(job.id)
        if self.clock is None:
            return job
        deadline = time.time() + self._left() - self._closing()
        return replace(job, argv=(*job.argv, "--deadline", f"{deadline:.1f}"))

    def _in_time(self, further: bool) -> bool:
        """Whether a training that starts now is over early enough; after a further trial a race must be possible."""
        if self.clock is None:
            return True
        self.clock.tick()
        race = self._typical() if further and self.feed.race.folds > self.feed.terms.folds else 0.0
        return self._left() > self._typical() + race + self._closing()

    def _left(self) -> float:
        clocks = [clock for clock in (self.clock, self.session.clock) if clock is not None]
        return min(clock.left for clock in clocks)

    def _typical(self) -> float:
        """Seconds of a training, its process and its scores included."""
        seconds = [found[JOB_SECONDS] for found in self.feed.scores.values() if JOB_SECONDS in found]
        guess = float(self.budget.get("max_seconds") or 0.0) + START_SECONDS
        return max(fmean(seconds), guess - START_SECONDS) if seconds else guess

    def _closing(self) -> float:
        """Seconds of judging: predictions of the cases held out by two ensembles, their scores, pictures."""
        a_case = [float(found["seconds_a_case"]) for found in self.feed.scores.values()]
        cases, folds = len(self.split.testing), self.feed.race.folds
        return 30.0 + 2 * cases * (0.5 + folds * (fmean(a_case) if a_case else 0.5) / len(self.slots))
