"""The verb tune: a sweep over hyper-parameters, its trials trainings over the same slots as those of a run."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg._version import __version__
from autoseg.bundles import load_algo
from autoseg.bundles.marks import bundle_settings, family_and_fold
from autoseg.bundles.pretrained import FIELD as PRETRAINED
from autoseg.config import RunConfig, config_to_input
from autoseg.datalist import plain_datalist
from autoseg.errors import Fault, Faults, InputError, all_faults
from autoseg.hpo.objectives import Objective, read_objectives
from autoseg.hpo.space import BoundSpace, SearchSpace, read_space
from autoseg.hpo.split import search_split
from autoseg.hpo.storage import refuse_unreachable
from autoseg.hpo.study import check_combination, forget_study, make_pruner, make_sampler, name_objectives, open_study
from autoseg.hpo.sweep import STEPS, Asked, Sweep, Terms
from autoseg.hpo.variant import write_variant
from autoseg.pipeline import prepare, training
from autoseg.pipeline.allowance import BUDGET, TERMS, TRIALS, Allowance
from autoseg.pipeline.clock import Clock, ending
from autoseg.pipeline.inputs import case_digests, fingerprint
from autoseg.pipeline.judging import SweepResult, finished, judge, write_summary
from autoseg.pipeline.pace import planned_steps
from autoseg.pipeline.session import Notify, Session, shadow_session
from autoseg.pipeline.starting import shape_settings
from autoseg.planning import Machine, Plan
from autoseg.records import Datalist, Event, Job, Slot, to_plain
from autoseg.workspace import Workspace, patiently, write_json, write_yaml

WHOLE = 0.9  # of the seconds granted: a training with less was cut short
PRUNER = "halving"


def refuse_bad_sweep(config: RunConfig) -> None:
    """Everything that is wrong with the input, the sweep's part included, at once; the work_dir is not touched."""
    asked = config.hpo_params
    objectives = len(asked.objective) if isinstance(asked.objective, list) else 1
    all_faults(
        lambda: prepare.refuse_bad_input(config),
        lambda: _check_cases(config),
        lambda: check_combination(asked.sampler, _pruner(config, objectives), objectives, STEPS * asked.trial_folds),
        lambda: _check_folds(config),
        lambda: _check_space(config),
        lambda: _check_switches(config),
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
    all_faults(
        lambda: read_objectives(asked.objective, datalist.scored or None),
        lambda: search_split(datalist, asked.held_out, config.seed),
    )


def _check_space(config: RunConfig) -> None:
    """The space of the families that may be tuned; of a callable's it is known later which one is preferred."""
    folders = _families(config)
    if not callable(config.hpo_params.space) or config.algos or len(folders) == 1:
        _space(config, folders)


def _check_switches(config: RunConfig) -> None:
    if config.hpo and config.algo_gen is False:
        message = "false keeps the bundles that are there, and a sweep before the trainings may add some"
        raise InputError([Fault("", "algo_gen", message)])


def _check_folds(config: RunConfig) -> None:
    pruner = config.hpo_params.pruner
    names = [pruner["name"], pruner.get("pruner")] if isinstance(pruner, Mapping) else [pruner]
    if "wilcoxon" in (str(name).lower() for name in names) and config.hpo_params.trial_folds == 1:
        message = "wilcoxon compares trials after each of their folds: give trial_folds, 2 or more"
        raise InputError([Fault("", "pruner", message)])


def _families(config: RunConfig) -> dict[str, Path]:
    """Template folders of the families that can be tuned; of foreign ones it is not known what they can be told."""
    folders = prepare.families(config)
    ours = prepare.ours(folders)
    faults = Faults()
    for name in (name for name in folders if (config.algos or not ours) and name not in ours):
        faults.add("", "algos", f"{name} cannot be tuned: its template is written for MONAI's Auto3DSeg")
    faults.raise_if_any()
    return ours


def _space(config: RunConfig, folders: Mapping[str, Path]) -> SearchSpace:
    fixed = {name: set(prepare.said_of(config, name, folder)) for name, folder in folders.items()}
    for name in (name for name in folders if config.starts.get(name, {}).get(PRETRAINED)):
        fixed[name] |= shape_settings(folders[name])
    return read_space(folders, config.hpo_params.space, fixed)


def _pruner(config: RunConfig, objectives: int) -> Any:
    """The pruner asked for, or the default, which two objectives have not."""
    return config.hpo_params.pruner or (PRUNER if objectives == 1 else "none")


def sweep(session: Session, datalist: Datalist, *, reuse: bool = False) -> SweepResult:
    """Do the sweep in the session's work_dir, whose data are analysed.

    `reuse`: one that has ended, for the same data and on the same terms, is not continued: its result counts.
    """
    started = time.monotonic()
    if session.config.not_use_cache:
        _forget(session)
    work = _Sweeping.prepare(session, datalist)
    with ending(work.allowance.own):
        work.open_study()
        if reuse and (result := finished(session, work.key)) is not None:
            session.stage(f"sweep kept: {result.sentence}")
            return result
        work.preprocess()
        session.stage(work.sentence())
        before = time.monotonic()
        results = training.run_jobs(session, [], work.slots, work.at_start, feed=work.feed)
        took = [results[name].seconds for name in work.started if name in results]
        whole = max(1e-9, len(work.slots) * (time.monotonic() - before))
        result = judge(session, work.feed, work.split)
        busy, start_up = sum(took) / whole, work.starts() / whole
        result = replace(result, seconds=time.monotonic() - started, busy=busy, start_up=start_up)
        write_summary(result, work.feed, work.key)
        return result


def _forget(session: Session) -> None:
    """Delete what earlier sweeps left: their study, trials and jobs."""
    asked, workspace = session.config.hpo_params, session.workspace
    if asked.storage is not None:
        forget_study(asked.study, asked.storage)
    for path in (workspace.hpo, *workspace.jobs.glob("trial_*"), *workspace.jobs.glob("held_out_*")):
        shutil.rmtree(path, ignore_errors=True)


def look_ahead(config: RunConfig, notify: Notify) -> list[str]:
    """Analyse and plan, and say in lines what a sweep would do. Of the work_dir only the analysis' cache may grow."""
    with shadow_session(config, notify) as (session, real):
        if config.time_limit:
            session.clock = Clock(config.time_limit, session.workspace.clock_json)
        if (real.hpo / TERMS).is_file():
            session.workspace.hpo.mkdir()
            shutil.copyfile(real.hpo / TERMS, session.workspace.hpo / TERMS)
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
    folders: dict[str, Path]  # templates of the families
    plans: dict[str, Plan]
    machine: Machine
    space: BoundSpace
    objectives: tuple[Objective, ...]
    slots: tuple[Slot, ...]
    allowance: Allowance
    started: set[str] = field(default_factory=set)  # jobs of this call
    feed: Sweep = field(init=False)

    @classmethod
    def prepare(cls, session: Session, datalist: Datalist) -> _Sweeping:
        """Split the cases, plan the families as a run does, bind the search space to the plans. Nothing is kept yet.

        Where no family is named, the preferred one is tuned: trials spread over several find less in each.
        """
        config, asked = session.config, session.config.hpo_params
        split = search_split(datalist, asked.held_out, config.seed)
        bare = replace(session, config=replace(config, time_limit=None, minutes=None), clock=None)
        made = prepare.make_plans(bare, replace(split, num_fold=datalist.num_fold))
        session.config = config = replace(config, starts=bare.config.starts)
        ours, all_of_them = _families(config), len(prepare.families(config))
        order = sorted((name for name in made if name in ours), key=lambda name: (-made[name].share, name))
        plans = {name: made[name] for name in (order if config.algos else order[:1])}
        folders = {name: ours[name] for name in plans}
        space = _space(config, folders)
        folds = min(asked.trial_folds, split.num_fold), min(asked.race_folds, split.num_fold)
        slots = session.slots(asked.n_trials or TRIALS)
        return cls(
            session=session,
            split=split,
            folders=folders,
            plans=plans,
            machine=prepare.machine_for(session, session.slots(all_of_them * len(bare.config.folds(datalist)))),
            space=space.bound({name: plan.settings for name, plan in plans.items()}),
            objectives=read_objectives(asked.objective, split.scored),
            slots=slots,
            allowance=Allowance(session, slots, split.testing, *folds),
        )

    def open_study(self) -> None:
        """The study, if it is one of these data and terms; only then what trials are made from is written."""
        config, asked, workspace = self.session.config, self.session.config.hpo_params, self.session.workspace
        workspace.hpo.mkdir(exist_ok=True)
        study = open_study(
            asked.study,
            workspace.hpo / "journal.log",
            asked.storage,
            [objective.direction for objective in self.objectives],
            self.identity,
            make_sampler(asked.sampler, config.seed, self.space.grid),
            make_pruner(_pruner(config, len(self.objectives)), STEPS * asked.trial_folds),
        )
        there = len(list(workspace.hpo.glob("trials/*/trial.json")))
        if there and not study.get_trials(deepcopy=False):
            message = f"there are {there} trials in the work_dir, and none in the study: it was moved, or is another"
            raise InputError([Fault(str(workspace.hpo), "storage", f"{message}; delete {workspace.hpo} to begin anew")])
        name_objectives(study, [objective.name for objective in self.objectives])
        self.allowance.keep()
        for name, folder in self.folders.items():
            prepare.replace_tree(folder, workspace.templates / name)
        write_json(workspace.hpo / "datalist.json", plain_datalist(self.split))
        source = {**config_to_input(config), "datalist": str(workspace.hpo / "datalist.json")}
        write_yaml(workspace.hpo / "input.yaml", {**source, "dataroot": self.split.dataroot}, versioned=False)
        self._say_where_the_plan_lies_outside()
        unbound = self.allowance.clock is not None or str(asked.sampler) == "grid"
        trials: float = asked.n_trials or (math.inf if unbound else TRIALS)
        allowed = self.allowance
        terms = Terms(trials, allowed.folds, allowed.race_folds, allowed.in_time, self._whole)
        self.feed = Sweep(study, self.space, self.objectives, workspace.hpo, self.make_job, terms, self.session.notify)
        allowed.scores = self.feed.scores

    def _say_where_the_plan_lies_outside(self) -> None:
        for family in self.plans:
            for name, (planned, there) in self.space.default_differs(family).items():
                message = f"{family}.{name} is planned as {planned}, outside of the space: Optuna is told {there} of it"
                self.session.notify(Event("warning", message))

    def preprocess(self) -> None:
        """The cases as the planned configurations see them, once for all trials that agree."""
        homes = {name: self.session.workspace.hpo / "trials" / "default" / f"{name}_0" for name in self.plans}
        bundles = [self._bundle(Asked(-1, name), 0, home) for name, home in homes.items()]
        training.preprocess(self.session, bundles, self.split)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What all trials of a study must share, or their values could not be compared."""
        asked, split, config = self.session.config.hpo_params, self.split, self.session.config
        folds = {case.id: case.fold for case in split.training}
        data = {"training": case_digests(split.training), "folds": folds, "held_out": case_digests(split.testing)}
        plans = {name: {k: v for k, v in plan.settings.items() if k not in BUDGET} for name, plan in self.plans.items()}
        for plan in (plan for plan in plans.values() if plan.get(PRETRAINED)):
            plan[PRETRAINED] = Path(plan[PRETRAINED]).name  # of its content, wherever the work_dir is moved to
        budgets = {name: self._budget_of(plan.settings) for name, plan in self.plans.items()}
        found = {
            "version": __version__,
            "data": fingerprint(data),
            "plan": fingerprint(to_plain(plans)),
            "families": ", ".join(self.plans),
            "objective": ", ".join(f"{o.name} {dict(o.weights) or ''}".strip() for o in self.objectives),
            "trial's budget": "; ".join(dict.fromkeys(budgets.values())),
            "trial's folds": asked.trial_folds,
            "trial's spacing": asked.trial_spacing,
        }
        if any(objective.metric == "surface_dice" for objective in self.objectives):
            found["tolerance_mm"] = config.tolerance_mm
        # trials are taken up again from their bundles, which are in this folder, wherever it is moved to
        return {**found, **({"folder": self.allowance.token} if asked.storage else {})}

    def _budget_of(self, planned: Mapping[str, Any]) -> str:
        known = {key: {**planned, **self.allowance.budget}.get(key) for key in BUDGET}
        return ", ".join(f"{key} {value}" for key, value in known.items() if value)

    @functools.cached_property
    def key(self) -> str:
        """Of the data and terms: a sweep of the same key has the same result."""
        asked = vars(self.session.config.hpo_params)
        return fingerprint({"identity": self.identity, "asked": {**asked, "space": self.space.plain()}})

    def sentence(self) -> str:
        """What the sweep will do."""
        asked, clock = self.session.config.hpo_params, self.allowance.clock
        number = f"{asked.n_trials} trials" if asked.n_trials else "trials"
        limit = f" for {clock.left / 60:.0f} minutes" if clock is not None else ""
        budgets = "; ".join(dict.fromkeys(self._budget_of(plan.settings) for plan in self.plans.values()))
        cases = f"{len(self.split.training)} cases to search by, {len(self.split.testing)} held out"
        return f"sweep: {number} of {', '.join(self.plans)} ({budgets}){limit} over {len(self.slots)} slots; {cases}"

    def make_job(self, asked: Asked, fold: int) -> Job:
        """The bundle of a trial's training on a fold of the search, and its job."""
        home = self.feed.bundle(asked.number, fold)
        bundle = patiently(lambda: self._bundle(asked, fold, home), home)
        alone = replace(self.session, clock=None, config=replace(self.session.config, multigpu=False))  # a slot a trial
        (job,) = training.training_jobs(alone, [bundle], self.split)
        inputs = {**job.inputs, "study": {"token": self.allowance.token}}
        name = f"trial_{asked.number:04d}_{fold}"
        return replace(job, id=name, inputs=inputs, fingerprint=fingerprint(inputs))

    def _bundle(self, asked: Asked, fold: int, home: Path) -> Path:
        session, config, name = self.session, self.session.config, asked.family
        further = {objective.metric for objective in self.objectives} - {None, "dice"}
        said = prepare.said_of(config, name, self.folders[name])
        overrides = {**said, **self.allowance.budget, "scored_metrics": sorted(map(str, further))}
        overrides |= {"tolerance_mm": config.tolerance_mm, "probabilities_gb": 0.0}
        coarser = config.hpo_params.trial_spacing
        if coarser > 1:
            spacing = [coarser * side for side in self.plans[name].settings["resample_to_spacing"]]
            overrides |= {"resample": True, "resample_to_spacing": spacing}
        overrides |= asked.overrides
        algo = load_algo(name, session.workspace.templates / name)
        plan = algo.make_plan(*prepare.found_statistics(session.workspace), self.split, self.machine, overrides)
        return prepare.write_bundle(session, name, fold, plan, home, session.workspace.hpo / "input.yaml")

    def _whole(self, bundle: Path, scores: Mapping[str, Any]) -> bool:
        """Whether a training had all of its budget: one that a deadline cut short says nothing beside others."""
        settings, fold = bundle_settings(bundle), family_and_fold(bundle)[1]
        steps, seconds = planned_steps(settings, len(self.split.split(fold)[0])), settings["max_seconds"]
        by_time = bool(seconds) and float(scores.get("seconds", 0.0)) >= WHOLE * float(seconds)
        return by_time or int(scores.get("steps", 0)) >= steps > 0

    def at_start(self, job: Job) -> Job:
        """A training of a sweep whose time is limited is told when it must be over, come what may."""
        self.started.add(job.id)
        if self.allowance.clock is None:
            return job
        return replace(job, argv=(*job.argv, "--deadline", f"{self.allowance.deadline():.1f}"))

    def starts(self) -> float:
        """Seconds that this call's trainings took until their first step."""
        found = [scores for (n, f), scores in self.feed.scores.items() if f"trial_{n:04d}_{f}" in self.started]
        return sum(float(scores.get("start_seconds", 0.0)) for scores in found)
