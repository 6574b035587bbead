"""What a sweep gains, and how busy it keeps the slots: on a table of learning curves, and for real, on hippocampus.

    .venv/bin/python benchmarks/sweep.py table     about 55 minutes: trains 61 configurations, writes sweep_table.csv
    .venv/bin/python benchmarks/sweep.py replay    a few minutes: regret against cost of every method, on that table
    .venv/bin/python benchmarks/sweep.py real      an hour: default and best trial on cases that no trial has seen
    .venv/bin/python benchmarks/sweep.py slots     about 10 minutes: the share of the slots' time that trials take

`replay` holds where the default sampler and pruner reach random search's final score at half its cost or less, `slots`
where at least 0.9 of the slots' time is in trials; exit code 1 otherwise. Costs are in full trials: seconds of the
slots by the mean seconds of a training of the table, start-up included. What a replay can say: see replay.py.
`table` goes on where it was killed, by the same command; so does `real`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from hippocampus_data import DATA, missing
from machine import machine
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from replay import CURVE, FAMILY, PLAN, SCORES, TEMPLATE, bind, reaches, read_table, replay

from autoseg import __version__
from autoseg.config.sweep import SweepConfig
from autoseg.hpo.space import read_space
from autoseg.pipeline.tuning import PRUNER
from autoseg.workspace import Workspace, atomic_file, parse_yaml, read_json, read_yaml

TABLE = Path(__file__).parent / "sweep_table.csv"
PRUNERS = ("median", "percentile", "halving", "hyperband")
BASELINE = ("random", "none")
WANTED_COST, WANTED_BUSY = 0.5, 0.9
A_TENTH = 10  # costs are looked at in tenths of a full trial
VALID = (0, 3)  # exit codes of a sweep whose result is valid: 3 where some trial failed
ENDS = ("job_done", "job_stopped", "job_failed")


def main() -> int:
    """Run one of the four; see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, work in {"table": make_table, "replay": replay_all, "real": for_real, "slots": keep_busy}.items():
        one = verbs.add_parser(verb, description=work.__doc__)
        one.set_defaults(work=work)
        if verb == "replay":
            one.add_argument("--seeds", type=int, default=20)
            one.add_argument("--budget", type=float, default=30.0, help="of a sweep, in full trials")
            help_ = "another method, such as '{name: tpe, n_startup_trials: 5}' median"
            one.add_argument("--also", nargs=2, action="append", default=[], metavar=("SAMPLER", "PRUNER"), help=help_)
        else:
            one.add_argument("--work_dir", type=Path, default=Path("work_dirs/sweep") / verb)
            one.add_argument("--data", type=Path, default=DATA)
        if verb in ("table", "replay"):
            one.add_argument("--table", type=Path, default=TABLE)
        if verb == "table":
            one.add_argument("--n_trials", type=int, default=61, help="the default configuration among them")
            one.add_argument("--trial_minutes", type=float, default=1.5)
        if verb == "real":
            one.add_argument("--time_limit", default="60m")
    given = parser.parse_args()
    if "data" in given and missing(given.data):
        return 1
    code: int = given.work(given)
    return code


def tune(given: argparse.Namespace, *flags: str) -> Workspace:
    """The work_dir of an `autoseg tune` of the data set; ends the benchmark where it has no valid result."""
    argv = [sys.executable, "-m", "autoseg", "tune", "--datalist", str(given.data / "datalist.json")]
    argv += ["--modality", "MRI", "--algos", FAMILY, "--work_dir", str(given.work_dir), *flags]
    code = subprocess.run(argv, check=False).returncode
    if code not in VALID:
        raise SystemExit(f"the sweep ended with exit code {code}")
    return Workspace(given.work_dir)


# the table


def make_table(given: argparse.Namespace) -> int:
    """Train the default configuration and random ones, each on one core, and write how they learned."""
    random = ("--sampler", "random", "--pruner", "none", "--race_folds", "1")
    flags = ("--n_trials", str(given.n_trials), "--trial_minutes", f"{given.trial_minutes:g}", *random)
    workspace = tune(given, *flags)
    study = optuna.load_study(
        study_name=SweepConfig.study, storage=JournalStorage(JournalFileBackend(str(workspace.hpo / "journal.log")))
    )
    trials = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    if not trials or trials[0].number:
        raise SystemExit("the default configuration, which is trial 0, is not done")
    entries = read_space({FAMILY: TEMPLATE}).entries[FAMILY]
    names = [*entries, *{e.fields["multiple"] for some in entries.values() for e in some if "multiple" in e.fields}]
    settings = read_yaml(_bundle(workspace, 0) / "configs" / "hyper_parameters.yaml")
    plan = {name: settings[name] for name in names}
    with atomic_file(given.table) as file:
        for line in (
            f"made by: python benchmarks/sweep.py {shlex.join(sys.argv[1:])}",
            f"that is: autoseg tune --modality MRI --algos {FAMILY} {' '.join(flags)}, on Task04_Hippocampus",
            f"on {time.strftime('%Y-%m-%d')}, autoseg {__version__}, {machine()}",
            f"{len(trials)} trials done, {len(study.trials) - len(trials)} failed and left out",
            "dice_10 to dice_100: after so many per cent of its training (as before where there was no validation)",
            "final: at the original geometry; seconds: of the process, its start-up and the scores at its end included",
            f"{PLAN}{json.dumps(plan)}",
        ):
            file.write(f"# {line}\n")
        writer = csv.DictWriter(file, ["number", *bind(plan)[1], *SCORES], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(workspace, trial) for trial in trials)
    final = [trial.values[0] for trial in trials]
    print(f"{given.table}: {len(trials)} trials; Dice of the default {final[0]:.4f}, of the best {max(final):.4f}")
    return 0


def row(workspace: Workspace, trial: FrozenTrial) -> dict[str, Any]:
    """A trial's line of the table. Its learning curve is what the sweep has read of its metrics.jsonl for Optuna."""
    curve, latest = {}, None
    for tenth, column in enumerate(CURVE, 1):
        latest = trial.intermediate_values.get(tenth, latest)
        curve[column] = "" if latest is None else f"{latest:.5f}"
    start = float(read_json(_bundle(workspace, trial.number) / "scores.json")["start_seconds"])
    trained = float(trial.user_attrs["seconds"])
    seconds = float(read_json(workspace.job(f"trial_{trial.number:04d}_0") / "result.json")["seconds"])
    seconds = max(seconds, start + trained)  # of one that was killed and went on, the job knows the last process only
    scores = {"final": f"{trial.values[0]:.5f}", "start_seconds": start, "train_seconds": trained}
    return {"number": trial.number, **trial.params, **curve, **scores, "seconds": round(seconds, 1)}


def _bundle(workspace: Workspace, number: int) -> Path:
    return workspace.hpo / "trials" / f"{number:04d}" / f"{FAMILY}_0"


# the replay


def replay_all(given: argparse.Namespace) -> int:
    """Replay sweeps of several methods on the table, over some seeds, and print their regret against their cost.

    Regret: the best final Dice of the table less the best one of the trials done so far.
    """
    if not given.table.exists():
        print(f"{given.table} is not there: it is made by `table`", file=sys.stderr)
        return 1
    table = read_table(given.table)
    default = (SweepConfig().sampler, PRUNER)
    methods = [BASELINE, (default[0], "none"), *((default[0], pruner) for pruner in PRUNERS), default]
    methods = [*unique(methods), *((parse_yaml(sampler), parse_yaml(pruner)) for sampler, pruner in given.also)]
    costs = np.arange(round(A_TENTH * given.budget) + 1) / A_TENTH
    quarters = [round(share * (len(costs) - 1)) for share in (0.25, 0.5, 0.75, 1.0)]
    print(f"{given.table.name}: {len(table.rows)} trials, {table.full:.0f} s each; Dice of the default ", end="")
    print(f"{table.rows[min(table.rows)].final:.4f}, of the best {table.best:.4f}")
    print(f"mean of {given.seeds} seeds; budget: {given.budget:g} full trials, on 2 slots\n")
    print("| sampler, pruner | regret at 25 % | 50 % | 75 % | 100 % | as good as random | begun | pruned |")
    print("| --- " * 8 + "|")
    score, cost = math.nan, math.inf
    for method in methods:
        outcome = replay(table, *method, given.seeds, costs)
        if method == BASELINE:
            score = float(outcome.scores[-1])
        at = reaches(outcome, score, costs)
        if method == default:
            cost = at
        regret = " | ".join(f"{max(0.0, table.best - outcome.scores[place]):.4f}" for place in quarters)
        name = ", ".join(map(str, method)) + (" (default)" if method == default else "")
        print(f"| {name} | {regret} | {share(at)} | {outcome.begun:.1f} | {outcome.pruned:.1f} |", flush=True)
    print(
        f"\nsweep: the default reaches random search's final Dice, {score:.4f}, at {share(cost)} of its cost ", end=""
    )
    print(f"(wanted: at most {share(WANTED_COST)})")
    return 0 if cost <= WANTED_COST else 1


def share(cost: float) -> str:
    return "more than 100 %" if math.isinf(cost) else f"{100 * cost:.0f} %"


def unique(methods: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for method in methods:
        if method not in found:
            found.append(method)
    return found


# for real


def for_real(given: argparse.Namespace) -> int:
    """A sweep of default settings under a time limit; print what it found on cases that no trial has seen."""
    workspace = tune(given, "--time_limit", given.time_limit)
    summary = read_json(workspace.hpo / "summary.json")
    gain = summary["gain"]
    if gain is None:
        print(f"sweep: {summary['sentence']}")
        return 1
    print(f"default: Dice {summary['default']:.4f}; trial {summary['winner']}: {summary['best']:.4f}; ", end="")
    print(f"gain {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] over {gain['n']} unseen cases")
    print("trials: " + ", ".join(f"{count} {how}" for how, count in summary["trials"].items()))
    print(said(*slot_shares(workspace)))
    print(f"sweep: {summary['sentence']}")
    return 0


def keep_busy(given: argparse.Namespace) -> int:
    """A sweep of 12 trials of a minute, none ended early; how much of the slots' time is in trials."""
    if given.work_dir.exists():
        print(f"{given.work_dir} is there already, and what is done would not be done again", file=sys.stderr)
        return 1
    flags = ("--n_trials", "12", "--trial_minutes", "1", "--pruner", "none", "--race_folds", "1")
    shares = slot_shares(tune(given, *flags))
    print(f"sweep: {said(*shares)} (wanted: at least {WANTED_BUSY:.0%} in trials)")
    return 0 if shares[0] >= WANTED_BUSY else 1


def slot_shares(workspace: Workspace) -> tuple[float, float, int]:
    """(share of the slots' time in trainings, in their start, slots), from the first one's start to the last one's end.

    The start: of a process, until the first step of its training, which the trainings that were done have recorded; of
    the others their mean is taken. It is part of the first share.
    """
    open_: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    devices = set()
    with open(workspace.events_jsonl, encoding="utf-8") as file:
        events = [json.loads(line) for line in file]
    for event in (e for e in events if str(e["facts"].get("id", "")).startswith("trial_")):
        if event["kind"] == "job_started":
            devices.add(event["facts"]["device"])
            open_[event["facts"]["id"]] = event["time"]
        elif event["kind"] in ENDS and event["facts"]["id"] in open_:
            spans.append((open_.pop(event["facts"]["id"]), event["time"]))
    whole = len(devices) * (max(end for _, end in spans) - min(begin for begin, _ in spans))
    starts = [float(read_json(path)["start_seconds"]) for path in workspace.hpo.glob("trials/*/*/scores.json")]
    return sum(end - begin for begin, end in spans) / whole, fmean(starts) * len(spans) / whole, len(devices)


def said(busy: float, start_up: float, slots: int) -> str:
    return f"{busy:.1%} of the time of {slots} slots in trials, of which {start_up:.1%} in their start-up"


if __name__ == "__main__":
    raise SystemExit(main())
