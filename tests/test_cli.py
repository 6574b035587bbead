"""The command: words against signatures, values as they were typed, exit codes, help that loads nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoseg import cli
from autoseg.cli.words import parameters, parse_words, positional
from autoseg.datalist.sources import Wanted
from autoseg.errors import Fault, InputError, NoResultError
from autoseg.pipeline import RunResult
from autoseg.pipeline.dry import DryRun
from autoseg.pipeline.standing import Outlook
from autoseg.records import Case, Datalist, JobResult, LeaderboardEntry


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The pipeline's verbs replaced by ones that only note what they were called with."""
    heard: list[SimpleNamespace] = []
    answers: dict[str, Any] = {
        "run": RunResult(Path("w")),
        "train": RunResult(Path("w")),
        "ensemble": RunResult(Path("w")),
        "check": SimpleNamespace(faults=(), warnings=(Fault("a.nii.gz", "label", "rare"),)),
        "analyze": Path("w/datastats.yaml"),
        "generate": [Path("w/segresnet_0")],
        "predict": {"a": Path("o/a.nii.gz")},
        "job_log": ["step 1", "step 2"],
        "cancel": 4711,
        "status": {
            **{"work_dir": "w", "jobs": {"j": {"status": "done"}}, "leaderboard": [], "members": ["segresnet_0"]},
            **{"stage": "training", "time": {"limit": 900.0, "spent": 74.0}, "bytes": 3 * 2**20},
        },
    }

    def fake(name: str) -> Any:
        def verb(*given: Any, **options: Any) -> Any:
            heard.append(SimpleNamespace(verb=name, given=given, options=options))
            return answers[name]

        return verb

    for name in answers:
        monkeypatch.setattr(f"autoseg.pipeline.{name}", fake(name))
    return heard


@pytest.fixture
def datalist(odd_path: Path) -> Path:
    """A datalist whose images exist, if only as names."""
    for name in ("a.nii.gz", "b.nii.gz"):
        (odd_path / name).touch()
    path = odd_path / "datalist, ü.json"
    entry = {"image": "a.nii.gz", "label": "b.nii.gz"}
    path.write_text(json.dumps({"training": [entry], "labels": {"0": "background", "1": "x"}}), "utf-8")
    return path


def run_flags(datalist: Path, *more: str) -> list[str]:
    return ["run", "--datalist", str(datalist), "--modality", "MRI", "--work_dir", str(datalist.parent / "w"), *more]


def test_run_reaches_the_pipeline_with_its_configuration(calls: list, datalist: Path) -> None:
    words = run_flags(datalist, "--num_fold=3", "--algos", "segresnet", "--not_use_cache", "--minutes", "2.5")
    assert cli.main(words) == 0
    (call,) = calls
    config = call.given[0]
    assert config.datalist == str(datalist)
    assert (config.num_fold, config.algos, config.not_use_cache, config.minutes) == (3, ("segresnet",), True, 2.5)
    assert call.options == {"dry_run": False}
    assert callable(call.given[1])


def test_dashes_and_underscores_are_the_same(calls: list, datalist: Path) -> None:
    assert cli.main([*run_flags(datalist), "--num-fold", "2"]) == 0
    assert calls[0].given[0].num_fold == 2


def test_class_names_are_a_list_and_set_repeats(calls: list, datalist: Path) -> None:
    settings = ["--set", "learning_rate=1e-4", "--set=roi_size=[32,32,16]", "--set", "segresnet.init_filters=8"]
    assert cli.main(run_flags(datalist, "--class_names", "left kidney, tumour", *settings)) == 0
    config = calls[0].given[0]
    assert config.class_names == ("left kidney", "tumour")
    assert config.settings == {"learning_rate": 1e-4, "roi_size": [32, 32, 16]}
    assert config.family_settings == {"segresnet": {"init_filters": 8}}


def test_settings_from_a_file(calls: list, datalist: Path, tmp_path: Path) -> None:
    file = tmp_path / "more settings.yaml"
    file.write_text("num_epochs: 2\n", "utf-8")
    assert cli.main(run_flags(datalist, "--set", f"@{file}")) == 0
    assert calls[0].given[0].settings == {"num_epochs": 2}


def test_class_names_may_be_regions() -> None:
    known = parameters(cli.VERBS["run"], cli.Flags)
    regions = [{"name": "WT", "index": [1, 2, 3]}, {"name": "TC", "index": [2, 3]}]
    text = "[{name: WT, index: [1,2,3]}, {name: TC, index: [2, 3]}]"
    assert parse_words(["--class_names", text], known)["class_names"] == regions
    for text in ("left kidney, tumour", "no", "organ #2", "a: b: c", "50 %"):
        assert parse_words([f"--class_names={text}"], known)["class_names"] == text


def test_allow_skip(calls: list, datalist: Path) -> None:
    assert cli.main(run_flags(datalist, "--allow_skip", "false")) == 0
    assert calls[0].given[0].allow_skip is False


def test_words_without_dashes_fill_positional_parameters() -> None:
    def verb(first: str, second: int = 2, *, third: bool = False) -> int:
        return 0

    known = parameters(verb, verb)
    assert positional(known) == ["first", "second"]
    assert parse_words(["a b", "--third", "7"], known) == {"first": "a b", "second": 7, "third": True}
    assert parse_words(["7", "--first=x"], known) == {"first": "x", "second": 7}
    with pytest.raises(InputError) as caught:
        parse_words(["a", "b", "c", "--fourth"], known)
    assert [fault.field for fault in caught.value.faults] == ["--fourth", "SECOND", "c"]


def test_datalist_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[Any, Any]] = []
    case = Case("a", ("a_t1.nii", "a_t2.nii"), "a.nii", 0)
    written = Datalist("d.json", ".", (case, case), (), (case,), {1: "x", 3: "y"}, 2, {"whole": (1, 3)})
    listing = SimpleNamespace(path="d.json", datalist=written, channels=("t1", "t2"), folds=2, unchanged=True)

    def write_datalist(source: str, output: str, notify: Any, **options: Any) -> Any:
        heard.append(((source, output), options))
        return listing

    monkeypatch.setattr("autoseg.pipeline.listing.write_datalist", write_datalist)
    words = [
        "--labels",
        "l/{case}.nii",
        "d/{case}_{channel}.nii",
        "--channels",
        "t1, t2",
        "--num-fold=2",
        "--overwrite",
    ]
    assert cli.main(["datalist", *words]) == 0
    ((given, options),) = heard
    assert given == ("d/{case}_{channel}.nii", "datalist.json")
    assert options["wanted"] == Wanted("l/{case}.nii", None, ("t1", "t2"))
    assert (options["num_fold"], options["overwrite"]) == (2, True)
    out = capsys.readouterr().out
    for line in (
        "2 training in 2 folds, 1 testing (1 with labels)",
        "2 (t1, t2)",
        "1 x, 3 y",
        "whole (1, 3)",
        "as it was",
    ):
        assert line in out


@pytest.mark.parametrize("value", ["a,b", "1e5", "007", "it's [x]", 'say "no"', "(1, 2)", "None", "True", "-", "ü\\n"])
def test_text_stays_as_it_was_typed(calls: list, value: str) -> None:
    assert cli.main(["predict", "--input", value, f"--output={value}", "--work_dir", value]) == 0
    assert calls[0].given[:3] == (value, value, value)


def test_configuration_as_a_json_object(calls: list, datalist: Path) -> None:
    given = json.dumps({"modality": "ct", "datalist": str(datalist), "dataroot": str(datalist.parent)})
    assert cli.main(["check", "--input", given]) == 0
    assert calls[0].given[0].modality == "CT"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], ["rnu", "'run'"]),
        (["--datalist", "x", "run"], ["the verb comes first"]),
        (["run", "--datalits", "x", "--modallity", "y"], ["'--datalist'", "'--modality'"]),
        (["run", "--num_fold", "three"], ["--num_fold: 'three' is not a whole number"]),
        (["run", "--num_fold", "2.5"], ["--num_fold: '2.5' is not a whole number"]),
        (["run", "--minutes", "nan"], ["--minutes: 'nan' is not a number"]),
        (["run", "--modality"], ["--modality: needs a value"]),
        (["run", "--modality", "--datalist", "x"], ["--modality: needs a value"]),
        (["run", "--seed", "1", "--seed", "2"], ["--seed: given twice"]),
        (["run", "datalist.json"], ["datalist.json: not a flag"]),
        (["run", "--train_on_all=maybe"], ["--train_on_all: 'maybe' is neither true nor false"]),
        (["predict", "--input", "x"], ["--output: is needed"]),
        (["datalist", "--seed", "1"], ["SOURCE: is needed"]),
        (["datalist", "a", "b", "c"], ["b: 2 words too many beside SOURCE", "quote"]),
        (["datalist", "--source", "a", "b"], ["b: 1 word too many beside SOURCE"]),
        (["predict", "--input", "x", "--output", "y", "--num_fold", "1"], ["--num_fold: unknown flag"]),
        (["evaluate", "--predictions", "p", "--references", "r", "--labels", "liver"], ["--labels: 'liver'"]),
        (["evaluate", "--predictions", "p", "--references", "r", "--labels", "{1: [x"], ["--labels: "]),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(
    calls: list, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert not calls
    assert all(part in error for part in said), error
    assert all(line.startswith("error: ") for line in error.splitlines())


def test_all_faults_of_the_words_at_once(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--datalits", "x", "--num_fold", "three", "y", "--seed"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_faults_of_the_configuration_at_once(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--datalist", "/none.json", "--modality", "CTT", "--num_fold", "0"]) == 2
    error = capsys.readouterr().err
    assert not calls
    assert len(error.splitlines()) >= 2
    assert "CTT" in error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            InputError([Fault("d.json", "fold", "missing"), Fault("e", "", "torn\nfile")]),
            2,
            "error: d.json: fold: missing",
        ),
        (NoResultError("no training ended well"), 4, "error: no training ended well"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (RuntimeError("boom\nline"), 4, "internal error: RuntimeError: boom line (run with --debug"),
    ],
)
def test_exit_codes_of_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def verb(*_: Any) -> None:
        raise error

    monkeypatch.setattr("autoseg.pipeline.status", verb)
    assert cli.main(["status", "--work_dir", "w"]) == code
    captured = capsys.readouterr().err
    assert said in captured
    assert "Traceback" not in captured
    assert len(captured.splitlines()) == (2 if isinstance(error, InputError) else 1)
    assert cli.main(["status", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_termination_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.pipeline.status", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["status"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_result_with_failed_jobs_is_shown_and_gives_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], datalist: Path
) -> None:
    work_dir = datalist.parent / "w"
    work_dir.mkdir()
    (work_dir / "leaderboard.json").write_text("{}", "utf-8")
    result = RunResult(
        work_dir,
        leaderboard=(LeaderboardEntry("segresnet", 0, "done", 0.8765, {"1": 0.8765}),),
        members=("segresnet_0",),
        failed=(JobResult("segresnet_1", "failed", log="w/jobs/segresnet_1/log.txt"),),
        labels={1: "organ"},
    )
    monkeypatch.setattr("autoseg.pipeline.run", lambda *_, **__: result)
    assert cli.main(run_flags(datalist)) == 3
    out, err = capsys.readouterr()
    assert "0.8765" in out
    assert "organ" in out
    assert str(work_dir / "leaderboard.json") in out
    assert "segresnet_1" in err


def test_dry_run_of_train_says_what_would_run(
    calls: list, datalist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    families = {"segresnet": {"skip": None, "settings": {"roi_size": {"value": [8, 8, 8], "reason": "why"}}}}
    jobs = (Outlook("segresnet_0", "kept", "done"), Outlook("segresnet_1", "runs anew", "learning_rate 1 -> 2"))
    result = RunResult(datalist.parent / "w", dry=DryRun(jobs, families, notes=("time_limit: not known yet",)))
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr("autoseg.pipeline.run", lambda *_, **options: heard.append(options) or result)
    words = run_flags(datalist)
    assert cli.main(["train", *words[1:], "--dry_run"]) == 0
    assert heard == [{"dry_run": True, "stop_after": "train"}]
    out = capsys.readouterr().out
    for said in (
        "roi_size",
        "segresnet_0",
        "runs anew",
        "learning_rate 1 -> 2",
        "not known yet",
        "nothing was changed",
    ):
        assert said in out
    assert not calls


@pytest.mark.parametrize(
    ("verb", "said"), [("check", "a.nii.gz: label: rare"), ("analyze", "datastats.yaml"), ("generate", "segresnet_0")]
)
def test_stages_say_what_they_made(
    calls: list, datalist: Path, capsys: pytest.CaptureFixture[str], verb: str, said: str
) -> None:
    assert cli.main([verb, *run_flags(datalist)[1:]]) == 0
    assert [call.verb for call in calls] == [verb]
    assert said in capsys.readouterr().out


def test_status_as_lines_and_as_json(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--work_dir", "w"]) == 0
    shown = capsys.readouterr().out
    assert all(line in shown for line in ("stage: training", "time: 1:14 of 15:00", "disk: 3 MiB", "job j: done"))
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"] == ["segresnet_0"]


def test_status_is_followed_until_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"work_dir": "w", "jobs": {}, "leaderboard": [], "members": [], "stage": None, "time": None, "bytes": 0}
    holder = {"pid": 7, "host": "h"}
    states = iter([{**state, "run": holder}, {**state, "run": holder}, {**state, "run": None}])
    monkeypatch.setattr("autoseg.pipeline.status", lambda _: next(states))
    monkeypatch.setattr("autoseg.cli.verbs.FOLLOW_SECONDS", 0.0)
    assert cli.main(["status", "--follow"]) == 0
    assert capsys.readouterr().out.count("process 7 on h") == 2 and next(states, None) is None


def unread() -> int:
    """The end to write to of a pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_following_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"work_dir": "w", "jobs": {}, "leaderboard": [], "members": [], "stage": None, "time": None, "bytes": 0}
    asked: list[str] = []
    monkeypatch.setattr(
        "autoseg.pipeline.status", lambda work_dir: asked.append(work_dir) or {**state, "run": {"pid": 7, "host": "h"}}
    )
    monkeypatch.setattr("autoseg.cli.verbs.FOLLOW_SECONDS", 0.0)
    with os.fdopen(unread(), "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert cli.main(["status", "--work_dir", "w", "--follow"]) == 0
    assert asked == ["w"]


def test_a_run_outlives_whoever_reads_what_it_prints(monkeypatch: pytest.MonkeyPatch, datalist: Path) -> None:
    """`autoseg run ... 2>&1 | head`: print's lines and rich's; the run goes on to its result."""
    from autoseg.cli.showing import make_screen

    printed: list[int] = []

    def talkative(*_: Any, **__: Any) -> RunResult:
        for number in range(50):
            print("a line", number)
            print("a complaint", file=sys.stderr, flush=True)
            make_screen().print("a line of rich's")
            printed.append(number)
        return RunResult(datalist.parent / "w", failed=(JobResult("segresnet_1", "failed"),))

    monkeypatch.setattr("autoseg.pipeline.run", talkative)
    with os.fdopen(unread(), "w", 1) as stream, os.fdopen(unread(), "w", 1) as errors:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", errors)
        assert cli.main(run_flags(datalist)) == 3
    assert printed == list(range(50))


def test_help_into_a_closed_pipe_is_no_error() -> None:
    writing = unread()
    done = subprocess.run(
        [sys.executable, "-m", "autoseg", "--help"], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert done.returncode == 0 and done.stderr == b""


class Gone(io.StringIO):
    """A terminal that was closed: what a disowned process writes there is an input/output error."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_closed_terminal_and_no_output_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Gone(), None):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        assert cli.main(["--version"]) == 0
        assert cli.main(["nonsense"]) == 2
        assert sys.stdout is stream


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_under_the_output_is_said() -> None:
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "autoseg", "--version"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode != 0 and b"No space left" in done.stderr


def test_logs_and_cancel(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["logs", "w", "segresnet_0", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "step 1\nstep 2\n"
    assert cli.main(["cancel", "w"]) == 0
    assert "4711" in capsys.readouterr().out
    assert [call.given for call in calls] == [("w", "segresnet_0", 2), ("w",)]
    assert cli.main(["logs", "w"]) == 2


def test_demo_makes_its_data_and_runs(calls: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir = tmp_path / "demo, ü"
    assert cli.main(["demo", "--quick", "--work_dir", str(work_dir), "--set", "roi_size=[16,16,16]"]) == 0
    config = calls[0].given[0]
    assert config.datalist == str(work_dir / "data" / "datalist.json")
    assert config.settings["roi_size"] == [16, 16, 16]
    assert "num_iterations" in config.settings
    assert "generated" in capsys.readouterr().out


def test_help_names_every_flag_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name, verb in cli.VERBS.items():
        assert cli.main([name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown = {line.split()[0]: line for line in lines if line.startswith("  ")}
        known = parameters(verb, cli.Flags)
        words = positional(known)
        assert set(shown) == {name.upper() if name in words else f"--{name}" for name in known}
        assert lines[0] == " ".join(["usage: autoseg", name, *map(str.upper, words), "[--flag value ...]"])
        undocumented = [flag for flag, line in shown.items() if not line[33:].strip()]
        assert not undocumented, f"{name}: {undocumented}"


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("autoseg 0.")
    assert cli.main([]) == 0
    assert "usage: autoseg VERB" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "--datalits", "x"], ["datalist"]])
def test_help_and_refusals_load_nothing_heavy(words: list[str]) -> None:
    heavy = ("torch", "monai", "numpy", "scipy", "nibabel", "rich")
    code = f"import sys; from autoseg.cli import main; main({words!r}); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "autoseg", "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nonsense: no such verb")
