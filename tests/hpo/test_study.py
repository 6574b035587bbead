"""Studies: where they are kept, whose they are, what suggests and what prunes."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoseg.errors import InputError
from autoseg.hpo import storage as storage_module
from autoseg.hpo import study as module
from autoseg.hpo.study import check_combination, make_pruner, make_sampler, open_study, points_left
from autoseg.workspace import patiently

MINE = {"space": "a1", "data": "b2", "folds": [0, 1]}
GRID = {"kind": ["a", "b"], "rate": [0.1, 0.5]}


def opened(tmp_path: Path, storage: str | None = None, **changed: Any) -> optuna.Study:
    given = {
        "name": "sweep",
        "journal": tmp_path / "hpo" / "journal.log",
        "storage": storage,
        "directions": ["maximize"],
        "identity": MINE,
        "sampler": make_sampler("random", 0, dict),
        "pruner": make_pruner("none"),
    }
    return open_study(**(given | changed))


def suggest(trial: optuna.Trial) -> float:
    return trial.suggest_float("rate", 0.01, 1, log=True) + (trial.suggest_categorical("kind", ["a", "b"]) == "a")


def tried(study: optuna.Study, number: int, steps: int = 4) -> list[dict[str, Any]]:
    """Asks and tells `number` trials, reporting on the way where there is one objective; their parameters."""
    asked = []
    for _ in range(number):
        trial = study.ask()
        value = suggest(trial)
        asked.append(dict(trial.params))
        pruned = False
        for step in range(1, steps + 1) if len(study.directions) == 1 else ():
            trial.report(value * step / steps, step)
            pruned = pruned or trial.should_prune()
        values = [value] if len(study.directions) == 1 else [value, 1.0]
        study.tell(trial, **({"state": TrialState.PRUNED} if pruned else {"values": values}))
    return asked


def faults(call: Any, *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = [str(fault) for fault in caught.value.faults]
    assert all("\n" not in line for line in text)
    return text


# --- where it is kept ---


def test_a_study_goes_on_and_does_not_suggest_its_first_points_again(tmp_path: Path) -> None:
    first = tried(opened(tmp_path), 3)
    study = opened(tmp_path)
    assert [trial.params for trial in study.trials] == first
    again = tried(study, 3)
    assert not [point for point in again if point in first]


def test_a_torn_last_line_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried(opened(tmp_path), 2)
    journal = tmp_path / "hpo" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    with caplog.at_level(logging.WARNING):
        study = opened(tmp_path)
    assert "torn" in caplog.text
    tried(study, 1)
    assert [trial.state for trial in opened(tmp_path).trials] == [TrialState.COMPLETE] * 3


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    journal = tmp_path / "hpo" / "journal.log"
    journal.parent.mkdir()
    journal.write_bytes(b'{"op_code":0,"work')
    tried(opened(tmp_path), 1)
    assert len(opened(tmp_path).trials) == 1


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    real, failed = os.fsync, []

    def full_once(descriptor: int) -> None:
        if not failed:
            failed.append(True)
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, size - 5)
            raise OSError(28, os.strerror(28))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_once)
    monkeypatch.setattr(storage_module, "patiently", partial(patiently, pause=lambda seconds: None))
    tried(study, 1)
    assert failed
    assert len(opened(tmp_path).trials) == 1


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "LOCK_SECONDS", 3)
    tried(opened(tmp_path), 1)
    (tmp_path / "hpo" / "journal.log.lock").touch()
    began = time.monotonic()
    assert len(opened(tmp_path).trials) == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a journal\n", "no journal"),
        (b"no newline", "no journal"),
        (b'{"op_code":99,"worker_id":"x"}\n' * 2, "damaged"),
        (b'{"op_code":0,"wor{"op_code":0}\n{"op_code":0}\n', "damaged"),
        (b'{"op_code":0}\n', "damaged"),
        (b'{"op_code":[]}\n', "damaged"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    journal = tmp_path / "hpo" / "journal.log"
    journal.parent.mkdir()
    journal.write_bytes(content)
    (line,) = faults(opened, tmp_path)
    assert line.startswith(f"{journal}: storage: ") and reason in line
    assert journal.read_bytes() == content


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hpo").touch()
    assert "storage: cannot be opened: " in faults(opened, tmp_path)[0]
    assert "Is a directory" in faults(opened, tmp_path, journal=tmp_path)[0]


def test_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sweep.db"
    tried(opened(tmp_path, url), 2)
    assert len(opened(tmp_path, url).trials) == 2
    assert "folds [0, 1], and now it is [0]" in faults(opened, tmp_path, url, identity={**MINE, "folds": [0]})[0]
    assert not (tmp_path / "hpo").exists()


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("sqlite:///{tmp_path}/text.db", "file is not a database"),
        ("sweep.db", "is no URL such as"),
        ("mysql+pymysql://me:hush-hush@127.0.0.1/db", "needs the package pymysql"),
        ("postgresql://me:hush-hush@127.0.0.1:1/db", "refused"),
        ("postgresql://127.0.0.1:1/db?user=me&password=hush-hush", "refused"),
        ("postgresql://me:hush-hush@127.0.0.1:port/db", "port"),
        ("postgers://me:hush-hush@127.0.0.1/db", "postgers"),
        ("redis://127.0.0.1", "redis"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused(tmp_path: Path, storage: str, reason: str) -> None:
    (tmp_path / "text.db").write_text("text " * 1000)
    if "postgresql" in storage:
        pytest.importorskip("psycopg", reason="psycopg is not installed")
    began = time.monotonic()
    (line,) = faults(opened, tmp_path, storage.format(tmp_path=tmp_path))
    assert ": storage: " in line or line.startswith("storage: ")
    assert reason in line and "hush" not in line
    assert time.monotonic() - began < 10


def test_a_missing_driver_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'autoseg[postgresql]'" in faults(opened, tmp_path, "postgresql://me@127.0.0.1/db")[0]


def test_optunas_own_tool_reads_the_journal(tmp_path: Path) -> None:
    tried(opened(tmp_path), 2)
    command = [sys.executable, "-c", "import sys; from optuna.cli import main; sys.exit(main())"]
    journal = str(tmp_path / "hpo" / "journal.log")
    done = subprocess.run(
        [*command, "trials", "--storage", journal, "--study-name", "sweep", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert '"COMPLETE"' in done.stdout and '"rate"' in done.stdout


def test_optuna_says_only_warnings_and_they_are_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)  # as Optuna begins: others may have changed it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried(opened(tmp_path), 1)
        logging.getLogger("optuna.test").warning("heard")
    assert capfd.readouterr() == ("", "")
    assert {record.message for record in caplog.records} == {"heard"}


# --- whose it is ---


def test_another_identity_is_refused_difference_by_difference(tmp_path: Path) -> None:
    tried(opened(tmp_path), 1)
    other = {"space": "c3", "folds": (0, 1), "images": "x" * 100}
    lines = faults(opened, tmp_path, identity=other)
    assert len(lines) == 3 and all(": study: 'sweep' was made with " in line for line in lines)
    assert "space a1, and now it is c3" in lines[0]
    assert "data b2, and now it is nothing" in lines[1]
    assert "images nothing, and now it is xxx" in lines[2] and lines[2].endswith("xxx...")
    assert len(opened(tmp_path).trials) == 1


def test_other_directions_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (line,) = faults(opened, tmp_path, directions=["maximize", "minimize"])
    assert "directions ['maximize']" in line


def test_somebody_elses_study_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/theirs.db"
    theirs = optuna.create_study(storage=url, study_name="sweep", direction="maximize")
    opened(tmp_path, url)  # an empty one is what a call leaves that was killed before it said whose it is
    theirs = optuna.create_study(storage=url, study_name="theirs", direction="maximize")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    assert "not made by autoseg" in faults(opened, tmp_path, url, name="theirs")[0]


# --- what suggests ---

WITH_PARAMETERS: list[Any] = [
    *module.SAMPLERS,
    {"name": "tpe", "n_startup_trials": 2},
    {"name": "cmaes", "with_margin": True},
    {"name": "gp", "n_startup_trials": 2},
]


@pytest.mark.parametrize("spec", WITH_PARAMETERS, ids=str)
def test_every_sampler_suggests_the_same_by_the_same_seed(tmp_path: Path, spec: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = [
            tried(opened(tmp_path / str(n), sampler=make_sampler(spec, seed, lambda: GRID)), 4)
            for n, seed in enumerate((1, 1, 2))
        ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_grid_is_asked_for_once_each_also_after_the_default_and_a_restart(tmp_path: Path) -> None:
    study = opened(tmp_path, sampler=make_sampler("grid", 0, lambda: GRID))
    study.enqueue_trial({"kind": "a", "rate": 0.3})
    asked = tried(study, 3)
    study = opened(tmp_path, sampler=make_sampler("grid", 0, lambda: GRID))
    while points_left(study):
        asked += tried(study, 1)
    assert len(asked) == 5
    assert {(point["kind"], point["rate"]) for point in asked[1:]} == {(k, r) for k in "ab" for r in (0.1, 0.5)}


def test_points_are_left_to_every_other_sampler(tmp_path: Path) -> None:
    assert points_left(opened(tmp_path))


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ("tpee", "sampler", "(did you mean 'tpe'?)"),
        (None, "sampler", "None is none of tpe"),
        ({"n_startup_trials": 3}, "sampler", "None is none of tpe"),
        ({"name": "tpe", "n_startup_trails": 3}, "sampler.n_startup_trails", "(did you mean 'n_startup_trials'?)"),
        ({"name": "tpe", "n_startup_trials": "3"}, "sampler.n_startup_trials", "must be int, not '3'"),
        ({"name": "tpe", "n_startup_trials": True}, "sampler.n_startup_trials", "must be int, not True"),
        ({"name": "tpe", "n_ei_candidates": 0}, "sampler.n_ei_candidates", "at least 1"),
        ({"name": "tpe", "prior_weight": 2.0}, "sampler", "deprecated"),
        ({"name": "tpe", "gamma": 3}, "sampler.gamma", "unknown to 'tpe'"),
        ({"name": "qmc", "qmc_type": "soble"}, "sampler", "sobol"),
        ({"name": "grid", "search_space": {}}, "sampler.search_space", "unknown to 'grid'"),
    ],
)
def test_a_wrong_sampler_is_refused(spec: Any, field: str, message: str) -> None:
    (line,) = faults(make_sampler, spec, 0, dict)
    assert line.startswith(f"{field}: ") and message in line


def test_a_sampler_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "pip install 'autoseg[sweeps]'" in faults(make_sampler, "cmaes", 0, dict)[0]


# --- what prunes ---

PRUNERS: list[Any] = [
    *(name for name in module._pruners(10) if name != "threshold"),
    {"name": "threshold", "lower": 0.2},
    {"name": "patient", "pruner": {"name": "median", "n_startup_trials": 0}, "patience": 2},
    {"name": "percentile", "percentile": 25},
]


@pytest.mark.parametrize("spec", PRUNERS, ids=str)
def test_every_pruner_sees_trials_through(tmp_path: Path, spec: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = opened(tmp_path, pruner=make_pruner(spec))
        tried(study, 12, steps=10)
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("spec", ["median", "percentile", "halving", "hyperband", "wilcoxon"])
def test_a_bad_trial_is_pruned_and_a_good_one_is_not(tmp_path: Path, spec: str) -> None:
    study = opened(tmp_path, pruner=make_pruner(spec))
    for value in [0.6, 0.7, 0.65, 0.75, 0.62] * 2:
        trial = study.ask()
        for step in range(1, 11):
            trial.report(value, step)
            trial.should_prune()  # halving notes here what a trial had when it was asked about
        study.tell(trial, value)
    last = []
    for value in (0.1, 0.9):
        trial = study.ask()
        for step in range(1, 11):
            trial.report(value, step)
            if trial.should_prune():
                break
        last.append(step)
        study.tell(trial, value)
    assert last[0] < 10 and last[1] == 10
    assert spec not in ("median", "percentile") or last[0] == 3  # two steps are let be


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ("medain", "pruner", "(did you mean 'median'?)"),
        ({"name": "percentile", "percentile": 200}, "pruner", "between 0 and 100"),
        ({"name": "median", "n_warmup_steps": 11}, "pruner.n_warmup_steps", "at most 10"),
        ({"name": "halving", "min_resource": "no"}, "pruner", "auto"),
        ({"name": "hyperband", "reduction_factor": 1}, "pruner.reduction_factor", "at least 2"),
        ({"name": "none", "patience": 1}, "pruner.patience", "unknown to 'none', which has none"),
        ({"name": "patient", "wrapped_pruner": 1}, "pruner.wrapped_pruner", "unknown"),
        ({"name": "patient", "pruner": "medain"}, "pruner", "(did you mean 'median'?)"),
        ("threshold", "pruner", "lower or upper"),
    ],
)
def test_a_wrong_pruner_is_refused(spec: Any, field: str, message: str) -> None:
    (line,) = faults(make_pruner, spec)
    assert line.startswith(f"{field}: ") and message in line


def test_a_combination_is_refused_with_all_its_faults() -> None:
    check_combination("tpe", {"name": "percentile", "percentile": 10.0}, 1)
    check_combination("grid", "none", 2)
    lines = faults(check_combination, {"name": "cmaes", "popsize": 1}, {"name": "median", "n_warmup_steps": -1}, 2)
    assert [line.split(":")[0] for line in lines] == ["sampler.popsize", "sampler", "pruner", "pruner"]
    assert "'median' cannot do 2 objectives; those that can: none" in lines[3]


@pytest.mark.parametrize("name", [name for name, method in module.SAMPLERS.items() if method.objectives > 1])
def test_samplers_with_two_objectives(tmp_path: Path, name: str) -> None:
    check_combination(name, "none", 2)
    sampler = make_sampler(name, 0, lambda: GRID)
    study = opened(tmp_path, directions=["maximize", "minimize"], sampler=sampler)
    assert len(tried(study, 4)) == 4


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def postgresql() -> Iterator[tuple[str, int]]:
    """(password, port) of a server of our own on 127.0.0.1; the user and the database are called `postgres`."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        pytest.skip("PostgreSQL's server is not installed")
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # which the server refuses to run as
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="autoseg-postgresql-"))  # pytest's own is closed to other users
    try:
        (folder / "password").write_text("hush-hush\n")
        for path in (folder, folder / "password") if user else ():
            os.chown(path, user["user"], user["group"])
        options = ["-D", "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile=password", "--no-sync"]
        initdb = [found, *options, "-E", "UTF8", "--locale=C"]
        subprocess.run(initdb, cwd=folder, check=True, capture_output=True, timeout=120, **user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = ["-D", "data", "-k", str(folder), "-p", str(port), "-h", "127.0.0.1", "-F"]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                [str(Path(found).with_name("postgres")), *arguments], cwd=folder, stdout=log, stderr=log, **user
            )
        try:
            until = time.monotonic() + 60
            while "ready to accept connections" not in (folder / "log").read_text("utf-8", "replace"):
                if server.poll() is not None or time.monotonic() > until:
                    pytest.fail((folder / "log").read_text("utf-8", "replace"))
                time.sleep(0.1)
            yield "hush-hush", port
        finally:
            server.send_signal(signal.SIGINT)  # it sends its clients away; at SIGTERM it would wait for them
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_postgresql(tmp_path: Path, postgresql: tuple[str, int]) -> None:
    password, port = postgresql
    url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    asked = tried(opened(tmp_path, url), 3)
    study = opened(tmp_path, url)
    assert [trial.params for trial in study.trials] == asked
    (line,) = faults(opened, tmp_path, url, identity={**MINE, "space": "z9"})
    assert "space a1, and now it is z9" in line and password not in line


@pytest.mark.parametrize("wrong", ["postgres:wrong-one@127.0.0.1:{port}/postgres", "postgres@127.0.0.1:{port}/none"])
def test_postgresql_refuses_and_is_not_asked_for_long(tmp_path: Path, postgresql: tuple[str, int], wrong: str) -> None:
    began = time.monotonic()
    (line,) = faults(opened, tmp_path, "postgresql://" + wrong.format(port=postgresql[1]))
    assert ": storage: " in line and "wrong-one" not in line
    assert time.monotonic() - began < 10
