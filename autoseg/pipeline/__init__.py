"""The verbs of a run: check, analyze, generate, train, tune, ensemble, run; predict and evaluate for new data.

Each takes a checked `RunConfig` and a listener for events, reads the files of the stage before and writes its own.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.bundles.marks import bundle_settings
from autoseg.config import RunConfig, load_config
from autoseg.devices import detect_devices
from autoseg.errors import InputError, NoResultError
from autoseg.pipeline import prepare
from autoseg.pipeline.session import Notify, Session, open_session, silent
from autoseg.pipeline.watching import cancel, job_log, read_leaderboard, status
from autoseg.records import Case, Datalist, Event, JobResult, LeaderboardEntry
from autoseg.workspace import Workspace, read_json

if TYPE_CHECKING:
    from autoseg.analysis import CheckResult
    from autoseg.evaluation import Evaluation
    from autoseg.pipeline.dry import DryRun
    from autoseg.pipeline.judging import SweepResult
    from autoseg.pipeline.pace import Pace

__all__ = ["RunResult", "analyze", "cancel", "check", "ensemble", "evaluate", "generate", "job_log", "predict", "run"]
__all__ += ["status", "train", "tune", "tune_ahead"]


@dataclass(frozen=True)
class RunResult:
    """What a run ended with. `evaluation` is of the testing cases, None where they have no labels.

    `look_at`: ids of testing cases whose Dice is likely low. `dry`: what a dry run found, which ends with nothing else.
    `sweep`: what came of the one before the trainings.
    """

    work_dir: Path
    leaderboard: tuple[LeaderboardEntry, ...] = ()
    members: tuple[str, ...] = ()
    cross_validation: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    predictions: dict[str, Path] = field(default_factory=dict)
    look_at: tuple[str, ...] = ()
    failed: tuple[JobResult, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    dry: DryRun | None = None
    sweep: SweepResult | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 where a job failed and the result is valid all the same."""
        return 3 if self.failed or (self.sweep is not None and self.sweep.exit_code) else 0

    @property
    def paths(self) -> dict[str, Path]:
        """The files to look at, those that exist."""
        w = Workspace(self.work_dir)
        files = {
            "leaderboard": w.leaderboard_json,
            "cross-validation": w.cross_validation_json,
            "ensemble": w.ensemble_json,
            "predictions": w.ensemble_output,
            "doubt": w.doubt_json,
            "evaluation": w.evaluation_json,
            "evaluation table": w.evaluation_csv,
            "plan": w.plan_json,
            "sweep": w.hpo / "summary.json",
        }
        return {name: path for name, path in files.items() if path.exists()}


def check(config: RunConfig, notify: Notify | None = None) -> CheckResult:
    """Read every file once; raises InputError with all faults, returns the warnings. Writes nothing."""
    prepare.refuse_bad_input(config)
    _, _, checked = prepare.examine_data(config, detect_devices().cores, None, notify or silent)
    if checked.faults:
        raise InputError(checked.faults)
    return checked


def analyze(config: RunConfig, notify: Notify | None = None) -> Path:
    """Check and analyse; returns the path of datastats.yaml."""
    prepare.refuse_bad_input(config)
    with open_session(config, notify) as session:
        prepare.analyse(session)
        return Path(session.workspace.datastats_yaml)


def generate(config: RunConfig, notify: Notify | None = None) -> list[Path]:
    """Analyse, plan and write the bundles; returns their folders."""
    prepare.refuse_bad_input(config)
    with open_session(config, notify) as session:
        return _generate(session)[1]


def _generate(session: Session) -> tuple[Datalist, list[Path]]:
    """Datalist and bundles; Auto3DSeg's switches `analyze` and `algo_gen`, where false, take those that are there."""
    config, workspace = session.config, session.workspace
    if config.not_use_cache:
        prepare.forget(workspace, prepare.families(config))
    datalist = _analysed(session)
    if config.algo_gen is False:
        return datalist, prepare.standing_bundles(config, workspace, datalist)
    bundles = prepare.write_bundles(session, datalist, prepare.make_plans(session, datalist))
    session.stage(f"planning: {len(bundles)} bundles written, see {workspace.plan_json}")
    return datalist, bundles


def _analysed(session: Session) -> Datalist:
    """The datalist, its data analysed now, or as `analyze: false` says in an earlier call."""
    if session.config.analyze is not False:
        return prepare.analyse(session)
    prepare.refuse_missing(session.workspace.datastats_yaml, "analyze")
    return prepare.stored_datalist(session.workspace)


def train(config: RunConfig, notify: Notify | None = None) -> RunResult:
    """Everything up to the leaderboard; what is already there and unchanged is kept."""
    return run(config, notify, stop_after="train")


def tune(config: RunConfig, notify: Notify | None = None) -> SweepResult:
    """Search the hyper-parameters, compare the best configuration with the default on cases that no trial has seen.

    The same command goes on where an earlier one was cut off. Raises InputError before a trial starts where something
    is wrong, NoResultError where every trial failed.
    """
    from autoseg.pipeline import tuning  # and Optuna

    tuning.refuse_bad_sweep(config)
    with open_session(config, notify, timed=True) as session:
        return tuning.sweep(session, _analysed(session))


def tune_ahead(config: RunConfig, notify: Notify | None = None) -> list[str]:
    """What `tune` would search, and how, in lines; nothing in the work_dir changes but the cache of the analysis."""
    from autoseg.pipeline import tuning

    tuning.refuse_bad_sweep(config)
    return tuning.look_ahead(config, notify or silent)


def ensemble(config: RunConfig, notify: Notify | None = None) -> RunResult:
    """Choose members among what is trained in the work_dir, predict the testing cases, evaluate."""
    started = time.monotonic()
    with open_session(config, notify) as session:
        prepare.refuse_missing(session.workspace.leaderboard_json, "train")
        datalist = prepare.stored_datalist(session.workspace)
        board = read_leaderboard(session.workspace)
        result = RunResult(session.workspace.root, board, labels=datalist.scored)
        return _ensemble(session, datalist, result, started)


def run(
    config: RunConfig,
    notify: Notify | None = None,
    dry_run: bool = False,
    stop_after: str | None = None,
    ensemble_method: Any = None,
) -> RunResult:
    """The one call: check, analyse, plan, train all folds in parallel, ensemble, predict, evaluate.

    With `dry_run` the data are analysed, and the result's `dry` says what would run and what would be kept; nothing in
    the work_dir changes but the analysis kept in its cache. `ensemble_method`, an AlgoEnsemble of MONAI, chooses the
    members instead of the configured method. Raises InputError (bad input, nothing spent) and NoResultError (nothing
    valid came out).
    """
    started = time.monotonic()
    _refuse_bad_run(config)
    if dry_run:
        from autoseg.pipeline.dry import look_ahead

        ahead = look_ahead(config, notify or silent, only_training=stop_after == "train", method=ensemble_method)
        work_dir = Workspace(config.work_dir).root
        return RunResult(work_dir, labels=ahead.labels, dry=ahead, seconds=time.monotonic() - started)
    with open_session(config, notify, timed=config.train is not False) as session:
        sweep = _tune_first(session) if config.hpo and config.train is not False else None
        datalist, bundles = _generate(session)
        if config.train is False:
            return RunResult(session.workspace.root, labels=datalist.scored, seconds=time.monotonic() - started)
        planned, board, failed = _train(session, datalist, bundles)
        folds = read_json(session.workspace.cross_validation_json)["families"]
        result = RunResult(session.workspace.root, board, cross_validation=folds, failed=failed, labels=datalist.scored)
        result = replace(result, sweep=sweep)
        if stop_after == "train" or config.ensemble is False:
            return _finished(session, result, started)
        return _ensemble(session, datalist, result, started, ensemble_method, planned)


def _refuse_bad_run(config: RunConfig) -> None:
    if not config.hpo:
        return prepare.refuse_bad_input(config)
    from autoseg.pipeline import tuning

    tuning.refuse_bad_sweep(config)


def _tune_first(session: Session) -> SweepResult | None:
    """The sweep that comes before the trainings; a configuration that is better joins them as a family of its own.

    One that comes to nothing costs its time, not the run: None.
    """
    from autoseg.pipeline import tuning

    try:
        result = tuning.sweep(session, _analysed(session), reuse=True)
    except NoResultError as error:
        session.notify(Event("warning", f"the sweep came to nothing, and the families are trained as planned: {error}"))
        return None
    if result.better and result.overrides:
        session.config = tuning.with_variant(session.config, result.family, result.overrides)
        session.stage(f"{session.config.tuned} is trained beside the families as planned")
    return result


def _train(
    session: Session, datalist: Datalist, bundles: list[Path]
) -> tuple[Pace, tuple[LeaderboardEntry, ...], tuple[JobResult, ...]]:
    """Preprocess, choose what fits the time, train; a collapsed network once more. (pace, leaderboard, failed jobs).

    Leaderboard and ensemble.json are brought up to date whenever a training ends: from the first one on, a run that is
    cut off can predict.
    """
    from autoseg.pipeline import choosing, collapse, pace, searching, training

    training.preprocess(session, bundles, datalist)
    searching.forget_stale(session, bundles, datalist)
    training.forget_stale(session, training.training_jobs(session, bundles, datalist))
    planned = pace.pace(session, bundles, datalist)
    searching.search_architectures(session, planned.bundles, datalist, planned.search)

    def so_far(results: dict[str, JobResult]) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the interim files, not the run
            board = training.write_leaderboard(session, results, planned.bundles)
            choosing.keep_members_so_far(session, board)

    results = training.train(session, planned.bundles, datalist, planned.deadlines, so_far, planned.windows)
    board = training.write_leaderboard(session, results, planned.bundles)
    again = collapse.reseed_collapsed(session, planned.bundles, datalist, board, results, planned.seconds_left)
    if again:  # beside those that are done, and are kept; what failed is not tried once more
        first = {name: result for name, result in results.items() if name not in again}
        kept = [b for b in planned.bundles if b.name in again or results[b.name].status == "done"]
        more = training.train(
            session,
            kept,
            datalist,
            planned.for_more(again),
            lambda results: so_far({**first, **results}),
            planned.windows,
        )
        results = {**first, **more}
        board = training.write_leaderboard(session, results, planned.bundles)
    return planned, board, training.failures(results)


def _ensemble(
    session: Session,
    datalist: Datalist,
    result: RunResult,
    started: float,
    method: Any = None,
    planned: Pace | None = None,
) -> RunResult:
    from autoseg.pipeline import choosing, predicting

    without_validation = all(math.isnan(entry.mean_dice) for entry in result.leaderboard)
    chosen = choosing.pick_members(
        session, datalist, result.leaderboard, unvalidated_ok=without_validation, method=method, planned=planned
    )
    predictions: dict[str, Path] = {}
    failed: tuple[JobResult, ...] = ()
    looked: tuple[str, ...] = ()
    evaluation = None
    if datalist.testing:
        session.stage(f"prediction: {len(datalist.testing)} testing cases")
        made = predicting.predict_cases(session, predicting.asked_of_testing(session, datalist, chosen))
        predictions, failed = made.predictions, made.failed
        looked = predicting.doubt_predictions(session, session.workspace, made, session.workspace)
        evaluation = predicting.evaluate_testing(session, datalist, predictions)
    complete = replace(
        result,
        members=chosen.members,
        predictions=predictions,
        look_at=looked,
        evaluation=evaluation,
        failed=(*result.failed, *failed),
    )
    return _finished(session, complete, started)


def _finished(session: Session, result: RunResult, started: float) -> RunResult:
    result = replace(result, seconds=time.monotonic() - started)
    best = max((e.mean_dice for e in result.leaderboard if not math.isnan(e.mean_dice)), default=math.nan)
    facts = {"best_mean_dice": best, "members": result.members, "seconds": result.seconds}
    facts["retries"] = session.retries
    if result.evaluation is not None:
        facts["test_mean_dice"] = result.evaluation.mean_dice
    retries = {0: "", 1: ", one job tried again"}.get(session.retries, f", jobs tried again {session.retries} times")
    session.notify(Event("result", f"done in {result.seconds / 60:.1f} minutes{retries}", facts))
    return result


def predict(
    work_dir: str | Path,
    input: str | Path,
    output: str | Path,
    notify: Notify | None = None,
    uncertainty_maps: bool = False,
) -> dict[str, Path]:
    """Predict new images (a file or a folder) by a finished run's ensemble; writes <output>/<case>.nii.gz.

    Beside them doubt.json, which says what Dice is likely and what to look at; with `uncertainty_maps` percent of doubt
    by voxel, <output>/uncertainty/<case>.nii.gz.
    """
    from autoseg.pipeline import predicting

    workspace = Workspace(work_dir)
    members = predicting.trained_members(workspace)
    settings = bundle_settings(members[0])
    cases = predicting.input_cases(input, int(settings["image_files"]))
    target = Workspace(output)
    target.create()
    combination = predicting.trained_combination(workspace)
    config = load_config(None, check_paths=False, work_dir=str(workspace.root))

    def into(case: Case) -> Path:
        return target.root / f"{case.id}.nii.gz"

    asked = predicting.Asked(members, cases, into, "predict_new", combination, uncertainty_maps)
    with open_session(config, notify) as session:
        made = predicting.predict_cases(session, asked)
        predicting.doubt_predictions(session, workspace, made, target)
    return made.predictions


def evaluate(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    notify: Notify | None = None,
    labels: dict[int, str] | None = None,
    tolerance_mm: float = 1.0,
    regions: Sequence[Sequence[int]] = (),
) -> Evaluation:
    """Score a folder of predictions against a folder of references; writes `output` (JSON) and its CSV neighbour.

    `labels` and `regions` as in `evaluation.evaluate_pairs`.
    """
    from autoseg.evaluation import evaluate_folder, write_evaluation

    evaluation = evaluate_folder(
        predictions,
        references,
        labels=labels,
        tolerance_mm=tolerance_mm,
        workers=detect_devices().cores,
        notify=notify or silent,
        regions=regions,
    )
    if output is not None:
        path = Path(output)
        write_evaluation(evaluation, path, path.with_suffix(".csv"))
    return evaluation
