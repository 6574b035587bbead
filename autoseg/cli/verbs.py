"""The verbs of the command: keyword arguments are flags, the docstring is the help, the number returned the exit code.

They print what came out; torch and MONAI load inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoseg.cli.flags import load, read_scored
from autoseg.cli.outlet import unheard
from autoseg.cli.showing import make_screen, show_result, show_status, show_sweep

FOLLOW_SECONDS = 5.0


def run(*, dry_run: bool = False, tune: str | None = None, **flags: Any) -> int:
    """The one call: check, analyse, plan, train all folds in parallel, ensemble, predict, evaluate.

    dry_run: analyse and plan, say what would run, what is kept and why, and change nothing
    tune: search the hyper-parameters for so long before, such as 2h; a better configuration joins the ensemble
    """
    return show_result(_stage("run", {**flags, "tune": tune}, dry_run=dry_run))


def check(**flags: Any) -> int:
    """Read every file of the datalist once and say all that is wrong with the data; writes nothing."""
    found = _stage("check", flags)
    for warning in found.warnings:
        print(f"warning: {' '.join(str(warning).split())}")
    print(f"checked: no faults, {len(found.warnings)} warnings")
    return 0


def analyze(**flags: Any) -> int:
    """Check the data, collect its statistics and split it into folds."""
    print(f"statistics: {_stage('analyze', flags)}")
    return 0


def generate(**flags: Any) -> int:
    """Analyse, plan the hyper-parameters and write one bundle a family and fold."""
    for folder in _stage("generate", flags):
        print(f"bundle: {folder}")
    return 0


def train(*, dry_run: bool = False, **flags: Any) -> int:
    """Everything up to the leaderboard; what is trained already and unchanged is kept.

    dry_run: analyse and plan, say what would run, what is kept and why, and change nothing
    """
    looked = {"dry_run": True, "stop_after": "train"}
    return show_result(_stage("run", flags, **looked) if dry_run else _stage("train", flags))


def tune(
    *,
    n_trials: int | None = None,
    space: str | None = None,
    sampler: Any = None,
    pruner: Any = None,
    objective: Any = None,
    trial_minutes: float | None = None,
    trial_steps: int | None = None,
    trial_folds: int | None = None,
    trial_spacing: float | None = None,
    race_folds: int | None = None,
    held_out: float | None = None,
    storage: str | None = None,
    study: str | None = None,
    dry_run: bool = False,
    **flags: Any,
) -> int:
    """Search the hyper-parameters with Optuna; says whether the best trial beats the default on unseen cases.

    n_trials: of the study, those of earlier calls included (default: 30, or as many as time_limit allows)
    space: YAML file that narrows, widens or replaces what the families search
    sampler: tpe (default), tpe_multivariate, gp, cmaes, random, grid, qmc; or {name: tpe, n_startup_trials: 5}
    pruner: halving (default), none, median, percentile, hyperband, wilcoxon, threshold, patient; parameters likewise
    objective: dice, another metric, weights {label: weight}, or two such as dice,seconds (a case) or dice,memory
    trial_minutes: of training a trial (default: what time_limit allows 30 trials, else as planned)
    trial_steps: optimiser steps of a trial, instead of minutes
    trial_folds: on which every trial is trained (default: 1)
    trial_spacing: cases are so many times coarser than planned (default: 1)
    race_folds: on which a trial that leads is compared with the best one, case by case (default: 3)
    held_out: share of the patients that no trial sees (default: the last fold)
    storage: URL of Optuna's storage (default: hpo/journal.log in the work_dir)
    study: its name there (default: autoseg)
    dry_run: analyse and plan, say what would be searched, and change nothing
    """
    given = {**locals()}
    params = {key: value for key, value in given.items() if key not in ("flags", "dry_run") and value is not None}
    flags["hpo_params"] = params
    if dry_run:
        print(*_stage("tune_ahead", flags), "dry run: nothing was changed", sep="\n")
        return 0
    return show_sweep(_stage("tune", flags))


def ensemble(**flags: Any) -> int:
    """Choose members among the trained networks of a work_dir, predict the testing cases, evaluate."""
    return show_result(_stage("ensemble", flags))


def predict(*, input: str, output: str, work_dir: str = "./work_dir", uncertainty_maps: bool = False) -> int:
    """Predict new images by the ensemble of a finished run; writes one label file a case.

    input: an image, or a folder of images (channels as <case>_0000, <case>_0001, ...)
    output: folder of the predictions, and of doubt.json: what Dice is likely, and which cases to look at
    work_dir: folder of the run
    uncertainty_maps: also write maps of percent of doubt by voxel
    """
    from autoseg import pipeline

    with make_screen() as screen:
        predictions = pipeline.predict(work_dir, input, output, screen, uncertainty_maps)
    print(f"predictions: {len(predictions)} in {output}")
    return 0


def evaluate(
    *, predictions: str, references: str, output: str | None = None, labels: Any = None, tolerance_mm: float = 1.0
) -> int:
    """Score a folder of predictions against a folder of references, by case and label.

    predictions: folder of predicted label files
    references: folder of reference label files of the same cases
    output: JSON file to write; its CSV neighbour gets the table by case
    labels: names of the labels, {1: liver, 2: tumour}, or regions, {tumour: [1, 2]} (default: the values found)
    tolerance_mm: tolerance of the surface Dice in mm
    """
    from autoseg import pipeline
    from autoseg.report import tables

    names, regions = read_scored(labels)
    with make_screen() as screen:
        evaluation = pipeline.evaluate(predictions, references, output, screen, names, tolerance_mm, regions)
    make_screen().print(tables.evaluation_table(evaluation))
    if output is not None:
        print(f"evaluation: {output}")
    return 0


def datalist(
    source: str,
    *,
    output: str = "datalist.json",
    labels: str | None = None,
    testing: str | None = None,
    channels: list[str] | None = None,
    modality: str | None = None,
    patient_pattern: str | None = None,
    num_fold: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a datalist with folds from a Decathlon, nnU-Net or BIDS folder, or from a pattern of file names.

    source: the folder, or a pattern such as 'images/{case}_{channel}.nii.gz', with {patient} and * where they help
    output: the JSON file to write; paths below its folder are relative to it
    labels: pattern of the label files, such as 'labels/{case}.nii.gz'; in a BIDS tree their end (default: dseg or mask)
    testing: pattern of testing images
    channels: names of the channels in order, such as T1w,FLAIR (default: those that all cases have, sorted)
    modality: CT, MRI, PET, ... (default: what the folder says)
    patient_pattern: regular expression whose first group, in the file name, is the patient; folds keep patients whole
    num_fold: number of folds (default: 5, or as many as patients)
    seed: seed of the folds
    overwrite: replace another file in the output's place
    """
    from autoseg.datalist.sources import Wanted
    from autoseg.pipeline.listing import write_datalist

    with make_screen() as screen:
        listing = write_datalist(
            source, output, screen, wanted=Wanted(labels, testing, tuple(channels or ())), modality=modality,
            patient_pattern=patient_pattern, num_fold=num_fold, seed=seed, overwrite=overwrite,
        )  # fmt: skip
    found = listing.datalist
    labelled = sum(case.label is not None for case in found.testing)
    counts = [f"{len(found.training)} training" + (f" in {listing.folds} folds" if listing.folds else "")]
    counts += [f"{len(found.validation)} validation"] if found.validation else []
    counts += [f"{len(found.testing)} testing ({labelled} with labels)"]
    names = f" ({', '.join(listing.channels)})" if listing.channels else ""
    print(f"cases:    {', '.join(counts)}")
    print(f"channels: {len(listing.channels) or len(found.training[0].image)}{names}")
    print(f"labels:   {', '.join(f'{value} {name}' for value, name in found.labels.items())}")
    for name, values in found.regions.items():
        print(f"region:   {name} ({', '.join(map(str, values))})")
    print(f"datalist: {listing.path}{' (as it was)' if listing.unchanged else ''}")
    return 0


def status(*, work_dir: str = "./work_dir", json: bool = False, follow: bool = False) -> int:
    """Say where a run stands, from its files: jobs, leaderboard, members of the ensemble.

    work_dir: folder of the run
    json: print it as JSON
    follow: print it again every five seconds until no run is at work
    """
    import time

    from autoseg import pipeline

    while True:
        state = pipeline.status(work_dir)
        show_status(state, json)
        if not follow or state.get("run") is None:
            return 0
        print(flush=True)
        if unheard():
            return 0
        time.sleep(FOLLOW_SECONDS)


def logs(work_dir: str, job: str, *, lines: int = 40) -> int:
    """Print the last lines of what a job of a run has printed.

    work_dir: folder of the run
    job: its name, as `autoseg status` lists it
    lines: how many
    """
    from autoseg import pipeline

    for line in pipeline.job_log(work_dir, job, lines):
        print(line)
    return 0


def cancel(work_dir: str) -> int:
    """End the run at work in a folder as Ctrl-C does; the command that started it goes on from there later.

    work_dir: folder of the run
    """
    from autoseg import pipeline

    print(f"ended: process {pipeline.cancel(work_dir)}")
    return 0


def demo(*, work_dir: str = "work_dirs/demo", quick: bool = False, set: list[str] | None = None) -> int:
    """Generate a small data set and do the one call on it, in a few minutes on a CPU. Downloads nothing.

    work_dir: folder of the run; the data are made in its folder data
    quick: fewer folds and steps, to see that everything works
    set: a hyper-parameter as key=value, as for the verb run; repeats
    """
    from pathlib import Path

    from autoseg import pipeline
    from autoseg.config import load_config, parse_settings
    from autoseg.demo import DEMO, QUICK, make_demo_data
    from autoseg.workspace import Workspace

    chosen: dict[str, Any] = QUICK if quick else DEMO
    settings, family_settings = parse_settings(set or [])
    Workspace(work_dir).create()
    print("demo: the data are generated, not real: an ellipsoid organ with a nodule in simulated MRI")
    datalist = make_demo_data(Path(work_dir) / "data")
    flags = {**chosen, "settings": {**chosen["settings"], **settings}, "family_settings": family_settings or None}
    config = load_config({"modality": "MRI"}, work_dir=work_dir, datalist=str(datalist), **flags)
    with make_screen() as screen:
        result = pipeline.run(config, screen)
    return show_result(result)


def new_family(name: str, *, output: str = "families") -> int:
    """Write a network family that trains as it stands, to be changed into your own.

    name: letters and digits, such as mynet
    output: the folder to write it into; `--templates_path_or_url` names it later
    """
    from autoseg.bundles.templates import new_template

    folder = new_template(name, output)
    print(f"family: {folder}")
    print(f"change {folder / 'configs' / 'network.yaml'}, then: autoseg check-family {folder}")
    return 0


def check_family(folder: str) -> int:
    """Check a family's folder, then plan, train, predict, resume and export it on a small data set; a minute or two.

    folder: holds scripts/algo.py and configs/, as `autoseg new-family` writes it, or as MONAI's Auto3DSeg has it
    """
    from autoseg.pipeline.trying import check_family as check

    with make_screen() as screen:
        check(folder, screen)
    print(f"{folder} keeps the contract: train it by --templates_path_or_url and --algos")
    return 0


def _stage(verb: str, flags: Mapping[str, Any], **options: Any) -> Any:
    """Call a verb of the pipeline with the configuration of these flags, events going to the screen."""
    config = load(**flags)
    from autoseg import pipeline

    with make_screen() as screen:
        return getattr(pipeline, verb)(config, screen, **options)


VERBS: dict[str, Callable[..., int]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        run,
        check,
        analyze,
        generate,
        train,
        tune,
        ensemble,
        predict,
        evaluate,
        status,
        logs,
        cancel,
        datalist,
        new_family,
        check_family,
        demo,
    )
}
