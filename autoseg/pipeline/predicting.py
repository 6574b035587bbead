"""From the members of an ensemble to predictions and their scores: prediction jobs, doubt, evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoseg.bundles.marks import bundle_weights
from autoseg.datalist import case_id, find_images, unreadable
from autoseg.datalist.formats import IMAGE_ENDINGS
from autoseg.engine.combination import Combination
from autoseg.ensemble.doubt import DEFINITION, DoubtRule, doubts
from autoseg.errors import Fault, InputError, one_line
from autoseg.evaluation import Evaluation, evaluate_pairs, write_evaluation
from autoseg.pipeline.choosing import Ensemble
from autoseg.pipeline.inputs import case_digests, fingerprint, made_from
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import run_jobs
from autoseg.records import Case, Datalist, Event, Job, JobResult, Resources, Slot, to_plain
from autoseg.workspace import Workspace, read_json, read_keys, restored, uncertainty_path, write_json

MOST_NAMED = 5  # cases to look at that are named on the screen


class Asked(NamedTuple):
    """Cases to predict by the ensemble of `bundles`, each into its `output`; `label` begins the names of the jobs.

    Without a `combination` all members count alike; `with_maps`: with maps of doubt.
    """

    bundles: Sequence[Path]
    cases: Sequence[Case]
    output: Callable[[Case], Path]
    label: str
    combination: Combination | None = None
    with_maps: bool = False


class Made(NamedTuple):
    """What a prediction made: files by case id, the jobs that failed, by case id and label what Dice is expected."""

    predictions: dict[str, Path]
    failed: tuple[JobResult, ...]
    expected: dict[str, dict[str, float | None]]


def _slots(session: Session, cases: Sequence[Case]) -> tuple[Slot, ...]:
    """One process a GPU; on a CPU one with all cores, for windows spread over threads by themselves."""
    return session.slots(len(cases)) if session.devices.gpus else session.whole_machine()


def asked_of_testing(session: Session, datalist: Datalist, ensemble: Ensemble) -> Asked:
    """The predictions of the testing cases that a run makes."""
    workspace = session.workspace
    bundles = [workspace.named_bundle(name) for name in ensemble.members]

    def output(case: Case) -> Path:
        return workspace.prediction(case.id)

    maps = session.config.uncertainty_maps
    return Asked(bundles, datalist.testing, output, "predict", ensemble.combination, maps)


def prediction_jobs(session: Session, asked: Asked) -> list[tuple[Job, dict[str, Any]]]:
    """Jobs that predict what is asked, spread over the slots, each with what its spec.json is to hold."""
    workspace, (bundles, cases, output, label, given, with_maps) = session.workspace, asked
    combination = given or Combination(session.config.ensemble_mode)
    slots = _slots(session, cases)
    shards = [list(cases[i :: len(slots)]) for i in range(min(len(slots), len(cases)))]
    jobs = []
    for number, shard in enumerate(shards):
        job_id = f"{label}_{number}"
        folder = workspace.job(job_id)
        spec = {
            "bundles": [str(b) for b in bundles],
            "cases": shard,
            "outputs": {case.id: str(output(case)) for case in shard},
            "combination": combination,
            "scratch": str(workspace.cache / "scratch"),
            "results": str(folder / "predictions.json"),
            "progress": str(folder / "metrics.jsonl"),
            "uncertainty": with_maps,
        }
        files = [output(case) for case in shard]
        maps = [uncertainty_path(path) for path in files] if with_maps else []
        weights = {os.path.relpath(b, workspace.root): bundle_weights(b).stat().st_mtime_ns for b in bundles}
        usual = to_plain(Combination())
        how = {key: value for key, value in to_plain(combination).items() if key == "mode" or value != usual[key]}
        how["outputs"] = fingerprint({"outputs": spec["outputs"]})
        if maps:  # else those of an earlier ensemble would pass for this one's
            how["uncertainty"] = "true"
        inputs = made_from(members=weights, ensemble=how, testing=case_digests(shard))
        job = Job(
            id=job_id,
            argv=(sys.executable, "-m", "autoseg.ensemble", "predict", str(folder / "spec.json")),
            cwd=str(folder),
            outputs=("predictions.json", *map(str, (*files, *maps))),
            inputs=inputs,
            fingerprint=fingerprint(inputs),
            resources=Resources(gpus=1 if session.devices.gpus else 0, cpus=session.devices.cores),
            cost=len(shard),
            progress="metrics.jsonl",
        )
        jobs.append((job, spec))
    return jobs


def predict_cases(session: Session, asked: Asked) -> Made:
    """Predict what is asked."""
    jobs = []
    for job, spec in prediction_jobs(session, asked):
        Path(job.cwd).mkdir(parents=True, exist_ok=True)
        write_json(Path(job.cwd) / "spec.json", spec)
        jobs.append(job)
    results = run_jobs(session, jobs, _slots(session, asked.cases))
    predictions: dict[str, Path] = {}
    expected: dict[str, dict[str, float | None]] = {}
    left_out: list[str] = []
    for job in jobs:
        answer = Path(job.cwd) / "predictions.json"
        found = read_json(answer) if answer.exists() else {"predictions": {}, "errors": {}}
        predictions |= {case: Path(path) for case, path in found["predictions"].items() if Path(path).exists()}
        expected |= found.get("expected", {})
        for case, error in found["errors"].items():
            session.notify(Event("warning", f"{case} could not be predicted: {error}"))
        left_out += found.get("left_out", [])
    for message in dict.fromkeys(left_out):  # every job says of a broken member that it is
        session.notify(Event("warning", message))
    return Made(predictions, tuple(r for r in results.values() if r.status != "done"), expected)


def doubt_predictions(session: Session, workspace: Workspace, made: Made, target: Workspace) -> tuple[str, ...]:
    """doubt.json of `target`: the Dice predicted of every case, by the rule in ensemble.json of `workspace`.

    Returns the ids of the cases to look at, which are said; nothing where no rule could be learned.
    """
    plain = read_json(workspace.ensemble_json).get("doubt")
    if not plain or plain.get("definition") != DEFINITION or not made.expected:
        target.doubt_json.unlink(missing_ok=True)
        return ()
    rule = restored(DoubtRule, plain, workspace.ensemble_json)
    found = doubts(rule, made.expected)
    write_json(target.doubt_json, {"look_below": rule.look_below, "n_cases": rule.n_cases, "cases": found})
    looked = [one for one in found if one.look]
    if looked:
        named = ", ".join(f"{one.case} ({one.mean_dice:.2f})" for one in looked[:MOST_NAMED])
        more = f" and {len(looked) - MOST_NAMED} more" if len(looked) > MOST_NAMED else ""
        message = f"look at {len(looked)} of {len(found)} cases, whose Dice is likely low: {named}{more}"
        session.stage(f"{message} ({target.doubt_json})")
    return tuple(one.case for one in looked)


def evaluate_testing(session: Session, datalist: Datalist, predictions: Mapping[str, Path]) -> Evaluation | None:
    """Scores of the testing cases that have labels; writes evaluation.json and evaluation.csv."""
    evaluation = evaluated(session, datalist, predictions)
    if evaluation is not None:
        write_evaluation(evaluation, session.workspace.evaluation_json, session.workspace.evaluation_csv)
    return evaluation


def evaluated(session: Session, datalist: Datalist, predictions: Mapping[str, Path]) -> Evaluation | None:
    """Scores of those testing cases that have labels and were predicted; None where there is none."""
    pairs = [
        (case.id, str(predictions[case.id]), case.label)
        for case in datalist.testing
        if case.label and case.id in predictions
    ]
    if not pairs:
        return None
    session.stage(f"evaluation: {len(pairs)} testing cases")
    return evaluate_pairs(
        pairs,
        labels=datalist.scored,
        regions=list(datalist.regions.values()),
        tolerance_mm=session.config.tolerance_mm,
        workers=session.devices.cores,
        notify=session.notify,
    )


def trained_members(workspace: Workspace) -> tuple[Path, ...]:
    """The ensemble's members, as ensemble.json names them; faults where there are none or their weights are gone."""
    if not workspace.ensemble_json.exists():
        raise InputError(
            [
                Fault(
                    str(workspace.root), "work_dir", "holds no finished run (no ensemble.json): `autoseg run` makes one"
                )
            ]
        )
    names = read_keys(workspace.ensemble_json, "members")[0]
    if not isinstance(names, list) or not names:
        raise InputError([Fault(str(workspace.ensemble_json), "members", "is not a list of bundles")])
    bundles = [workspace.named_bundle(name) for name in names]
    faults = [
        Fault(str(bundle), "", "a member of the ensemble, but its weights are gone")
        for bundle in bundles
        if not bundle_weights(bundle).is_file()
    ]
    if faults:
        raise InputError(faults)
    return tuple(bundles)


def trained_combination(workspace: Workspace) -> Combination:
    """How the ensemble's members answer together, as ensemble.json says."""
    path = workspace.ensemble_json
    try:
        return Combination.of(read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError([Fault(str(path), "", f"does not say how members answer: {one_line(error)}")]) from error


def input_cases(source: str | Path, files_a_case: int) -> list[Case]:
    """The images to predict: one file or DICOM folder, or every image (DICOM folders too) of a folder.

    Where a case has several files, they are named <case>_0000, <case>_0001, ... (nnU-Net's naming). Raises InputError
    with every image that no reader can read and every case that has not all its files.
    """
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise InputError([Fault(str(path), "input", "no such file or folder")])
    files = find_images(path)
    if not files:
        raise InputError([Fault(str(path), "input", f"holds no image ({', '.join(IMAGE_ENDINGS)}, DICOM folders)")])
    reasons = {file: unreadable(str(file)) for file in files}
    faults = [Fault(str(file), "input", reason) for file, reason in reasons.items() if reason]
    if faults:
        raise InputError(faults)
    groups: dict[str, list[Path]] = {}
    for file in files:
        stem = case_id(str(file))
        head, _, tail = stem.rpartition("_")
        numbered = files_a_case > 1 and len(tail) == 4 and tail.isdigit() and head
        groups.setdefault(head if numbered else stem, []).append(file)
    faults = [
        Fault(str(group[0]), "input", f"case {name} has {len(group)} of {files_a_case} files: <case>_0000, ...")
        for name, group in groups.items()
        if len(group) != files_a_case
    ]
    if faults:
        raise InputError(faults)
    return [Case(id=name, image=tuple(str(f) for f in group)) for name, group in groups.items()]
