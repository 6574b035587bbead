"""The command `autoseg`: words of the shell -> one pipeline verb -> exit code. Only this room prints or exits.

A verb is a function; its keyword arguments are its flags and its docstring is its help. fire calls it, but only
after the words were checked against the signature here: fire alone would run a verb before it refuses an unknown
flag, keep only the last of a repeated one and make a tuple of `a,b`. torch and MONAI load inside the verbs.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autoseg._version import __version__
from autoseg.cli.words import parameters, parse_words, read_object, summary, verb_help
from autoseg.errors import AutosegError, Fault, InputError, nearest

if TYPE_CHECKING:
    from autoseg.config import RunConfig
    from autoseg.pipeline import RunResult
    from autoseg.report.screen import Screen

INTERRUPTED, INTERNAL = 130, 4
HELP = ("--help", "-h")
USAGE = f"""autoseg {__version__}: from labelled volumes and a datalist to an evaluated ensemble of networks

usage: autoseg VERB [--flag value ...]

verbs:
{{verbs}}

`autoseg VERB --help` lists the flags of a verb. `--debug` with any verb shows tracebacks; `--version` is the version.
exit codes: 0 done; 2 what was given is wrong; 3 done, with failed jobs; 4 no valid result; 130 interrupted"""


def configuration(
    *,
    work_dir: str | None = None,
    input: str | None = None,
    datalist: str | None = None,
    dataroot: str | None = None,
    modality: str | None = None,
    algos: list[str] | None = None,
    num_fold: int | None = None,
    train_on_all: bool | None = None,
    class_names: list[str] | None = None,
    patient_pattern: str | None = None,
    mirror_pairs: Any = None,
    normalization: str | None = None,
    minutes: float | None = None,
    max_parallel: int | None = None,
    seed: int | None = None,
    set: list[str] | None = None,
    templates_path_or_url: str | None = None,
    ensemble_method: str | None = None,
    n_best: int | None = None,
    ensemble_mode: str | None = None,
    tolerance_mm: float | None = None,
    check: bool | None = None,
    not_use_cache: bool | None = None,
) -> RunConfig:
    """The run configuration that the flags and the input file name; a flag wins over the file.

    work_dir: folder of the run (default: ./work_dir)
    input: YAML or JSON file with configuration keys, or the keys themselves as a JSON object
    datalist: Auto3DSeg's JSON: training (image, label, fold), validation, testing
    dataroot: folder that the datalist's paths are relative to (default: the datalist's folder)
    modality: CT, MRI, PET, ...
    algos: network families, separated by commas (default: segresnet)
    num_fold: number of folds to train (default: as many as the datalist names, else 5)
    train_on_all: one network, trained on every case, with no cross-validation
    class_names: names of the labels 1, 2, ..., separated by commas
    patient_pattern: regular expression whose first group, in the file name, is the patient; folds keep patients whole
    mirror_pairs: label values that are left and right of one another, such as [[1, 2]]
    normalization: how intensities are scaled, where the modality does not say it
    minutes: time for the whole training stage (default: as the planner counts steps)
    max_parallel: at most so many jobs at once
    seed: seed of folds, networks and patches
    set: a hyper-parameter as key=value, of one family as family.key=value, or @file.yaml; repeats
    templates_path_or_url: folder of algorithm templates (default: those that come with autoseg)
    ensemble_method: AlgoEnsembleBestByFold, AlgoEnsembleBestN or AlgoEnsembleAll
    n_best: members of AlgoEnsembleBestN
    ensemble_mode: mean (of probabilities) or vote
    tolerance_mm: tolerance of the surface Dice in mm
    check: false trains although the check found faults
    not_use_cache: do everything anew, whatever the work_dir holds
    """
    flags = {name: value for name, value in locals().items() if name not in ("set", "input")}
    from autoseg.config import parse_settings

    settings, family_settings = parse_settings(set or [])
    source: Any = input
    if input is not None and input.lstrip().startswith("{"):
        source = read_object("--input", input)
    return _load(source, **flags, settings=settings or None, family_settings=family_settings or None)


def _load(source: Any, **flags: Any) -> RunConfig:
    """The configuration; where it has faults, those that later checks would find are said with them."""
    from autoseg.config import load_config

    try:
        return load_config(source, **flags)
    except InputError as error:
        from autoseg.pipeline.prepare import with_later_faults

        raise with_later_faults(error) from None


def run(*, dry_run: bool = False, **flags: Any) -> int:
    """The one call: check, analyse, plan, train all folds in parallel, ensemble, predict, evaluate.

    dry_run: plan, write the bundles and stop before anything is trained
    """
    return _show_result(_stage("run", flags, dry_run=dry_run), dry_run)


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

    dry_run: plan, write the bundles and stop before anything is trained
    """
    return _show_result(_stage("run", flags, dry_run=True) if dry_run else _stage("train", flags), dry_run)


def ensemble(**flags: Any) -> int:
    """Choose members among the trained networks of a work_dir, predict the testing cases, evaluate."""
    return _show_result(_stage("ensemble", flags))


def predict(*, input: str, output: str, work_dir: str = "./work_dir") -> int:
    """Predict new images by the ensemble of a finished run; writes one label file a case.

    input: an image, or a folder of images (channels as <case>_0000, <case>_0001, ...)
    output: folder of the predictions
    work_dir: folder of the run
    """
    from autoseg import pipeline

    with _screen() as screen:
        predictions = pipeline.predict(work_dir, input, output, screen)
    print(f"predictions: {len(predictions)} in {output}")
    return 0


def evaluate(
    *, predictions: str, references: str, output: str | None = None, labels: Any = None, tolerance_mm: float = 1.0
) -> int:
    """Score a folder of predictions against a folder of references, by case and label.

    predictions: folder of predicted label files
    references: folder of reference label files of the same cases
    output: JSON file to write; its CSV neighbour gets the table by case
    labels: value and name of the labels, such as {1: liver, 2: tumour} (default: the values found)
    tolerance_mm: tolerance of the surface Dice in mm
    """
    from autoseg import pipeline
    from autoseg.report import tables

    with _screen() as screen:
        evaluation = pipeline.evaluate(
            predictions, references, output, screen, labels=_label_names(labels), tolerance_mm=tolerance_mm
        )
    _screen().print(tables.evaluation_table(evaluation))
    if output is not None:
        print(f"evaluation: {output}")
    return 0


def status(*, work_dir: str = "./work_dir", json: bool = False) -> int:
    """Say where a run stands, from its files: jobs, leaderboard, members of the ensemble.

    work_dir: folder of the run
    json: print it as JSON
    """
    from json import dumps

    from autoseg import pipeline
    from autoseg.records import to_plain
    from autoseg.report import tables

    state = pipeline.status(work_dir)
    if json:
        print(dumps(to_plain(state), indent=1, ensure_ascii=False))
        return 0
    print(f"run: {state['work_dir']}")
    for name, job in state["jobs"].items():
        print(f"job {name}: {job['status']}" + (f" ({job['error']})" if job.get("error") else ""))
    if state["leaderboard"]:
        _screen().print(tables.leaderboard_table(state["leaderboard"], state.get("labels")))
    print(f"ensemble: {', '.join(state['members']) or 'none yet'}")
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
    with _screen() as screen:
        result = pipeline.run(config, screen)
    return _show_result(result)


def _stage(verb: str, flags: Mapping[str, Any], **options: Any) -> Any:
    """Call a verb of the pipeline with the configuration of these flags, events going to the screen."""
    config = configuration(**flags)
    from autoseg import pipeline

    with _screen() as screen:
        return getattr(pipeline, verb)(config, screen, **options)


def _screen() -> Screen:
    from rich.console import Console

    from autoseg.report.screen import Screen

    # a log or a pipe has no width of its own; tables need more than the 80 columns that rich takes then
    return Screen(Console(width=None if sys.stdout.isatty() else 110))


def _show_result(result: RunResult, dry_run: bool = False) -> int:
    """Print what came out, and where it is; returns the exit code."""
    from autoseg.report import tables
    from autoseg.workspace import read_json

    screen = _screen()
    if dry_run:
        screen.print(tables.plan_table(read_json(result.paths["plan"])["families"]))
        print("dry run: nothing was trained; the same command without --dry_run trains")
    if result.leaderboard:
        screen.print(tables.leaderboard_table(result.leaderboard, result.labels))
    if result.cross_validation:
        screen.print(tables.cross_validation_table(result.cross_validation, result.labels))
    if result.evaluation is not None:
        screen.print(tables.evaluation_table(result.evaluation, result.labels))
    if result.members:
        print(f"ensemble of {', '.join(result.members)}")
    for name, path in result.paths.items():
        print(f"{name + ':':<18} {path}")
    for job in result.failed:
        print(f"failed: {job.id} ({job.status}), log: {job.log}", file=sys.stderr)
    return result.exit_code


def _label_names(labels: Any) -> dict[int, str] | None:
    """`{1: liver}`, `[1, 2]` or `1` as value -> name; raises InputError where a value is no whole number."""
    if labels is None:
        return None
    named = labels if isinstance(labels, dict) else {v: v for v in (labels if isinstance(labels, list) else [labels])}
    if not all(isinstance(value, int) for value in named):
        raise InputError(
            [Fault("", "--labels", f"{labels!r}: values are whole numbers, as in {{1: liver, 2: tumour}}")]
        )
    return {value: str(name) for value, name in named.items()}


VERBS: dict[str, Callable[..., int]] = {
    verb.__name__: verb for verb in (run, check, analyze, generate, train, ensemble, predict, evaluate, status, demo)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. `argv` is what stands after `autoseg`."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; a user can do nothing about them
    try:
        with _terminated_as_interrupt():
            return dispatch(words)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        lines, code = _explain(error)
        print(*lines, sep="\n", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[list[str], int]:
    """What a person reads of an error, a line a fault, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted: the same command goes on where this one stopped"], INTERRUPTED
    if isinstance(error, InputError):
        return [f"error: {' '.join(str(fault).split())}" for fault in error.faults], error.exit_code
    if isinstance(error, AutosegError):
        return [f"error: {error}"], error.exit_code
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return [f"internal error: {reason} (run with --debug for the traceback)"], INTERNAL


def dispatch(words: Sequence[str]) -> int:
    """Find the verb, check the words against its signature, and let fire call it."""
    if words[:1] == ["--version"]:
        print(f"autoseg {__version__}")
        return 0
    wants_help = not words or any(word in HELP for word in words)
    name = next((word for word in words if word not in HELP), None)
    if name is not None and name not in VERBS:
        hint = "the verb comes first" if name.startswith("-") else f"no such verb{nearest(name, VERBS)}"
        raise InputError([Fault("", name, f"{hint}; `autoseg --help` lists the verbs")])
    if name is None or wants_help:
        print(usage() if name is None else verb_help(name, VERBS[name], configuration))
        return 0
    given = parse_words(words[1:], parameters(VERBS[name], configuration))
    import fire

    # every value goes through fire's own parser, as a Python literal that it cannot read otherwise
    command = [f"--{flag}={value!r}" for flag, value in given.items()]
    code: int = fire.Fire(VERBS[name], command=command, name=f"autoseg {name}", serialize=lambda _: None)
    return code


def usage() -> str:
    """What `autoseg --help` prints."""
    return USAGE.format(verbs="\n".join(f"  {name:<10} {summary(verb)}" for name, verb in VERBS.items()))


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, so that its jobs end with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
