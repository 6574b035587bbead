"""From the datalist to bundles: check, analyse, split into folds, plan, write. Nothing is trained here."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.analysis import CheckResult, check_reports, discovered_labels, examine, label_counts, summarize
from autoseg.bundles.marks import bundle_weights, same_files
from autoseg.config import RunConfig, config_to_input
from autoseg.datalist import load_datalist, make_folds, plain_datalist, with_regions
from autoseg.errors import Fault, Faults, InputError, all_faults, nearest, one_line
from autoseg.pipeline.inputs import Inputs, bundle_changes, bundle_parts, setting_texts
from autoseg.pipeline.session import Session
from autoseg.pipeline.starting import refuse_bad_start, start_from_weights, start_reasons, try_weights
from autoseg.planning import Machine, Plan, normalize_modes, read_statistics
from autoseg.planning.budget import search_faults, share_out
from autoseg.planning.plan import pair_faults
from autoseg.records import Datalist, Event, Slot
from autoseg.workspace import Workspace, read_keys, read_yaml, write_json, write_yaml


def read_datalist(config: RunConfig) -> Datalist:
    """The datalist as configured; every fault of it at once."""
    datalist = load_datalist(
        config.datalist,
        config.dataroot,
        class_names=config.class_names,
        sigmoid=config.sigmoid,
        train_on_all=config.train_on_all,
        patient_pattern=config.patient_pattern,
        num_fold=config.num_fold,
    )
    if config.refit and datalist.validation:
        message = "the datalist has a validation list: every network is trained on all training cases, leave it out"
        raise InputError([Fault("", "refit", message)])
    return datalist


def refuse_bad_input(config: RunConfig) -> None:
    """Families, settings and datalist: all their faults at once, before the work_dir is touched. Loads no torch."""
    all_faults(lambda: check_settings(config), lambda: _check_weights(config), lambda: read_datalist(config))


def _check_weights(config: RunConfig) -> None:
    try:
        folders = ours(families(config))
    except InputError:  # which `check_settings` tells
        return
    refuse_bad_start(config, folders)


def with_later_faults(error: InputError, refuse: Callable[[RunConfig], None] = refuse_bad_input) -> InputError:
    """A configuration's faults and, as far as it could be read, those of families, settings, datalist: of `refuse`."""
    if not isinstance(error.partial, RunConfig):
        return error
    try:
        refuse(error.partial)
    except InputError as later:
        known = {fault.field for fault in error.faults}
        return InputError([*error.faults, *(f for f in later.faults if f.field not in known)])
    return error


def families(config: RunConfig) -> dict[str, Path]:
    """Folders of the families to consider, by name: those named, else all that there are."""
    from autoseg.bundles.templates import available_templates, find_templates

    folder = config.templates_path_or_url
    found = find_templates(config.algos or tuple(available_templates(folder)), folder)
    if config.tuned is not None:
        found[config.tuned] = Workspace(config.work_dir).variants / config.tuned
    return found


def ours(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the families that are no templates written for MONAI's Auto3DSeg."""
    from autoseg.bundles.contract import is_foreign

    return {name: folder for name, folder in folders.items() if not is_foreign(folder)}


def check_settings(config: RunConfig) -> None:
    """The families are there and know the hyper-parameters that are set for them."""
    from autoseg.bundles.templates import available_templates, same_kind, template_settings

    faults = Faults()
    try:
        folders = families(config)
    except InputError as error:
        faults.extend(error.faults)
        folders = available_templates()
    known = {name: template_settings(folder) for name, folder in ours(folders).items()}
    foreign = folders.keys() - known.keys()  # they take what they know themselves
    every = {key for settings in known.values() for key in settings}
    for key, value in config.settings.items():
        if key not in every and not foreign:
            faults.add("", f"--set {key}", f"no bundle knows this hyper-parameter{nearest(key, every)}")
        for own in known.values():
            if not same_kind(value, own.get(key)):
                faults.add("", f"--set {key}", f"{value!r} is not of the kind of its default, {own[key]!r}")
                break
    for family, settings in config.family_settings.items():
        if family in foreign:
            continue
        if family not in known:
            faults.add("", f"--set {family}.", f"this family is not among the algos{nearest(family, known)}")
            continue
        for key, value in settings.items():
            if key not in known[family]:
                hint = nearest(key, known[family])
                faults.add("", f"--set {family}.{key}", f"no such hyper-parameter of {family}{hint}")
            elif not same_kind(value, known[family][key]):
                message = f"{value!r} is not of the kind of its default, {known[family][key]!r}"
                faults.add("", f"--set {family}.{key}", message)
    limited = bool(config.minutes or config.time_limit)
    for family, own in known.items():
        for key, message in search_faults({**own, **said_of(config, family, folders[family])}, limited):
            faults.add("", f"--set {family}.{key}", message)
    faults.raise_if_any()


def examine_data(
    config: RunConfig, workers: int, cache: Path | None, notify: Any
) -> tuple[Datalist, list[Any], CheckResult]:
    """(datalist, one report a case, what is wrong). Reads every file once; raises nothing about the images."""
    datalist = read_datalist(config)
    cases = (*datalist.training, *datalist.validation, *datalist.testing)
    reports = examine(cases, workers=workers, cache_dir=cache, notify=notify)
    if not datalist.labels:
        datalist = replace(datalist, labels=discovered_labels(reports))
        datalist = with_regions(datalist) if config.sigmoid else datalist
    checked = check_reports(datalist, reports)
    faults = (*checked.faults, *_unfit_configuration(config, datalist, reports))
    return datalist, reports, replace(checked, faults=faults)


def _unfit_configuration(config: RunConfig, datalist: Datalist, reports: Sequence[Any]) -> list[Fault]:
    """What the configuration says of channels and labels that the data have not."""
    faults = Faults()
    channels = [report.extras.channels for report in reports if report.extras is not None]
    if channels:
        try:
            normalize_modes(config.modality, config.normalization, max(set(channels), key=channels.count))
        except InputError as error:
            faults.extend(error.faults)
    faults.extend(pair_faults(config.mirror_pairs or (), sorted(datalist.labels)))
    return faults.items


def analyse(session: Session, cache: Path | None = None) -> Datalist:
    """Check and analyse the data; writes input.yaml, datalist.json (with folds) and datastats*.yaml.

    `cache`: where reports on cases are kept, if not in the work_dir's own.
    """
    config, workspace = session.config, session.workspace
    session.stage("analysis: reading every case")
    cache = cache or workspace.cache / "analysis"
    datalist, reports, checked = examine_data(config, session.devices.cores, cache, session.notify)
    for warning in checked.warnings:
        session.notify(Event("warning", str(warning)))
    if config.check and checked.faults:
        raise InputError(checked.faults)
    datalist = make_folds(datalist, label_counts(reports), config.num_fold, config.seed)
    labelled = {case.id for case in (*datalist.training, *datalist.validation)}
    stats, by_case = summarize([r for r in reports if r.case in labelled], labels=datalist.labels)
    write_json(workspace.datalist_json, plain_datalist(datalist))
    source = {**config_to_input(config), "datalist": str(workspace.datalist_json), "dataroot": datalist.dataroot}
    write_yaml(workspace.input_yaml, source, versioned=False)
    write_yaml(workspace.datastats_yaml, stats, versioned=False)
    write_yaml(workspace.datastats_by_case_yaml, by_case, versioned=False)
    folds = f"{datalist.num_fold} fold{'s' if datalist.num_fold != 1 else ''}"
    counts = f"{len(datalist.training)} training, {len(datalist.testing)} testing"
    names = f"{'regions' if datalist.regions else 'labels'} {', '.join(datalist.scored.values())}"
    session.stage(f"analysis: {counts} cases, {folds}, {names}")
    return datalist


def make_plans(session: Session, datalist: Datalist) -> dict[str, Plan]:
    """A plan a family, written to plan.json with the reason of every value; what does not suit is left out.

    A family that the user named is kept whatever speaks against it. InputError where none is left.
    """
    from autoseg.bundles import load_algo
    from autoseg.bundles.foreign import plan_foreign

    folders = families(session.config)
    own = ours(folders)
    start_from_weights(session, own)
    config, workspace = session.config, session.workspace
    networks = len(config.folds(datalist))
    slots = session.slots(len(folders) * session.trainings(networks, datalist.num_fold))
    machine = machine_for(session, slots)
    found = found_statistics(workspace)

    def planned(name: str) -> Plan:
        config, folder = session.config, folders[name]
        if name not in own:
            return plan_foreign(name, folder, workspace, datalist, config.said(name))
        plan = load_algo(name, folder).make_plan(*found, datalist, machine, said_of(config, name, folder))
        plan.reasons |= start_reasons(config, name)
        return plan

    plans = {name: planned(name) for name in folders}
    kept, left_out = _part(session, plans)
    for name in try_weights(session, {name: plan for name, plan in kept.items() if name in own}, folders):
        plans[name] = kept[name] = planned(name)
    _set_budgets(session, kept, {name: folder for name, folder in own.items() if name in kept}, networks, len(slots))
    written = {
        name: {
            "skip": left_out.get(name),
            "share": plan.share,
            "settings": {k: {"value": v, "reason": plan.reasons[k]} for k, v in plan.settings.items()},
        }
        for name, plan in plans.items()
    }
    write_json(workspace.plan_json, {"machine": machine, "families": written})
    if not kept:
        raise InputError(Fault("", "algos", f"{name} does not suit: {reason}") for name, reason in left_out.items())
    return kept


def _part(session: Session, plans: Mapping[str, Plan]) -> tuple[dict[str, Plan], dict[str, str]]:
    """(the plans that are kept, why the others are left out); says what speaks against a family."""
    config, kept, left_out = session.config, dict[str, Plan](), dict[str, str]()
    for name, plan in plans.items():
        asked = bool(config.algos) or name == config.tuned
        against = plan.skip or plan.spare
        wanted = asked or not (plan.on_request or (against and config.allow_skip))
        if wanted:
            kept[name] = plan
        else:
            left_out[name] = str(against or plan.on_request)
        if against:
            fate = "is trained because it was asked for" if wanted else "is left out"
            session.notify(Event("warning", f"{name} {fate}: {against}"))
    return kept, left_out


def machine_for(session: Session, slots: Sequence[Slot]) -> Machine:
    """What plans are made for: the smallest of the slots."""
    smallest = min(s.memory for s in slots), min(s.cpus for s in slots)
    return Machine(session.devices.kind, *smallest)


def said_of(config: RunConfig, name: str, folder: Path) -> dict[str, Any]:
    """What the user sets of a family of ours, and what the weights ask for that it starts from."""
    from autoseg.bundles import template_settings

    known = template_settings(folder)
    said = {**config.said(name), **config.starts.get(name, {})}
    return {key: value for key, value in said.items() if key in known}


def found_statistics(workspace: Workspace) -> tuple[dict[str, Any], dict[str, Any]]:
    """datastats.yaml, of which planning can read what it needs (an `InputError` otherwise), and input.yaml."""
    path = workspace.datastats_yaml
    found: dict[str, Any] = read_yaml(path)
    try:
        read_statistics(found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = f"no statistics as `analyze` writes them: {one_line(error)}"
        raise InputError([Fault(str(path), "", message)]) from error
    return found, read_yaml(workspace.input_yaml)


def _set_budgets(
    session: Session, plans: Mapping[str, Plan], own: Mapping[str, Path], networks: int, slots: int
) -> None:
    """Put the time there is into the plans of our `own` families, by name with their folders."""
    from autoseg.bundles import template_settings

    config = session.config
    settings = {name: {**template_settings(folder), **plans[name].settings} for name, folder in own.items()}
    for name in plans:
        if name in own and config.time_limit:
            plans[name].set("time_limit", config.time_limit, "of the whole run, as given")
        elif name not in own and config.minutes:
            session.notify(Event("warning", f"{name} ends as its own settings say: minutes mean nothing to it"))
        if name not in own and config.refit:
            session.notify(Event("warning", f"{name} is trained on folds alone: a foreign template must validate"))
    if config.minutes:
        share_out(60.0 * config.minutes, plans, settings, networks, slots)


def write_bundles(session: Session, datalist: Datalist, plans: Mapping[str, Plan]) -> list[Path]:
    """A bundle a (family, fold); one whose files would be the same is left as it stands, results and all."""
    from autoseg.bundles.contract import is_foreign
    from autoseg.bundles.foreign import write_foreign

    workspace = session.workspace
    bundles = []
    folders = families(session.config)
    for name, plan in plans.items():
        home = workspace.templates / name
        replace_tree(folders[name], home)
        foreign = is_foreign(home)
        remove = functools.partial(_remove_bundle, session, now={"settings": setting_texts(plan.settings)})
        for number, fold in enumerate(session.config.folds(datalist, foreign)):
            if foreign:
                bundles.append(write_foreign(name, fold, workspace, datalist, plan, remove))
                continue
            others = max(0, number - datalist.num_fold)  # of those on all cases, which their seeds tell apart
            seeded = replace(plan, settings={**plan.settings, "seed": plan.settings["seed"] + others})
            bundles.append(write_bundle(session, name, fold, seeded))
    shutil.rmtree(workspace.cache / "drafts", ignore_errors=True)
    return bundles


def write_bundle(
    session: Session, name: str, fold: int, plan: Plan, target: Path | None = None, source: Path | None = None
) -> Path:
    """One bundle of ours at `target`, in the work_dir by default; `source`: its input.yaml, if not the work_dir's."""
    from monai.auto3dseg import algo_to_json

    from autoseg.bundles import load_algo

    logging.getLogger("monai.apps.auto3dseg.bundle_gen").setLevel(logging.WARNING)  # the stage says it
    workspace = session.workspace
    algo = load_algo(name, workspace.templates / name)
    algo.set_data_stats(str(workspace.datastats_yaml))
    algo.set_data_source(str(source or workspace.input_yaml))
    target = target or workspace.bundle(name, fold)
    draft = workspace.cache / "drafts" / target.name
    cache = workspace.cache / "preprocessed"
    algo.export_to_disk(str(draft.parent), draft.name, fold=fold, plan=plan, home=target, cache=cache)
    if same_files(draft, target):
        shutil.rmtree(draft)
    else:
        _remove_bundle(session, target, bundle_parts(draft))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(target)
    algo.output_path = str(target)
    try:
        read_keys(target / "algo_object.json", "_target_")
    except InputError:  # there is none yet, or MONAI was killed while it wrote it
        algo_to_json(algo, template_path=str(workspace.templates))
    return target


def _remove_bundle(session: Session, bundle: Path, now: Inputs) -> None:
    """Make room for a bundle of other inputs, those of `now`; of a trained one it is said what has changed."""
    if bundle_weights(bundle).is_file():
        changed = bundle_changes(bundle, now)
        message = f"{bundle.name} is replaced and trained anew: {'; '.join(changed)}"
        session.notify(Event("warning", message, {"changed": changed}))
    shutil.rmtree(bundle, ignore_errors=True)


def standing_bundles(config: RunConfig, workspace: Workspace, datalist: Datalist) -> list[Path]:
    """The bundles that an earlier call wrote; InputError with the first one that is not there."""
    planned = read_keys(workspace.plan_json, "families")[0] if workspace.plan_json.exists() else {}
    left_out = {name for name, plan in planned.items() if plan["skip"] and not config.algos}
    folders = {name: folder for name, folder in families(config).items() if name not in left_out}
    foreign = folders.keys() - ours(folders).keys()
    bundles = list[Path]()
    asked = datalist.num_fold + (config.refit or 0)  # others were not written where no time was limited
    for name in folders:
        own = [workspace.bundle(name, fold) for fold in config.folds(datalist, name in foreign)]
        for bundle in own[:asked]:
            refuse_missing(bundle, "generate")
        bundles += filter(Path.exists, own)
    return bundles


def stored_datalist(workspace: Workspace) -> Datalist:
    """The run's own copy, with its folds."""
    return load_datalist(workspace.datalist_json, read_yaml(workspace.input_yaml)["dataroot"])


def forget(workspace: Workspace, algos: Iterable[str]) -> None:
    """Delete what earlier runs left: caches, results of jobs, the families' bundles."""
    bundles = [path.parent for name in algos for path in workspace.root.glob(f"{name}_*/algo_object.json")]
    for path in (workspace.cache, workspace.jobs, *bundles):
        shutil.rmtree(path, ignore_errors=True)


def replace_tree(source: Path, target: Path) -> None:
    """A copy of a template's folder in place of what stands at `target`."""
    if source.resolve() != target.resolve():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def refuse_missing(path: Path, verb: str) -> None:
    """A stage's file that the verb before should have written."""
    if not path.exists():
        raise InputError([Fault(str(path), "", f"not there: `autoseg {verb}` writes it")])
