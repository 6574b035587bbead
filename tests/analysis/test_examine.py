"""Parallel, cached and bounded: what `examine` does around the reading of a case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from autoseg.analysis import CaseReport, examine, examining
from autoseg.analysis.workers import BOOT, examine_in_parallel
from autoseg.records import Case, Event, from_plain, to_plain

WriteCase = Callable[..., Case]  # see conftest.py
REPOSITORY = str(Path(__file__).resolve().parents[2])


def read_and_cached(events: list[Event]) -> tuple[int, int]:
    assert events[-1].kind == "result"
    return events[-1].facts["read"], events[-1].facts["cached"]


def run(cases: list[Case], cache: Path | None, workers: int = 1) -> tuple[list[CaseReport], tuple[int, int]]:
    events: list[Event] = []
    reports = examine(cases, workers=workers, cache_dir=cache, notify=events.append)
    done = [event.facts["done"] for event in events if event.kind == "progress"]
    assert done[-1] == len(cases) and done == sorted(done)
    return reports, read_and_cached(events)


def test_a_case_added_is_the_only_one_read(
    write_case: WriteCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = examining.examine_case
    monkeypatch.setattr(examining, "examine_case", lambda case: (read.append(case.id), original(case))[1])
    cases = [write_case(f"c{i}") for i in range(3)]
    first, counts = run(cases[:2], tmp_path / "cache")
    assert counts == (2, 0) and sorted(read) == ["c0", "c1"]
    second, counts = run(cases, tmp_path / "cache")
    assert counts == (1, 2) and sorted(read) == ["c0", "c1", "c2"]
    assert second[:2] == first  # what comes from the cache is what was read, to the last digit


def test_a_changed_file_and_a_torn_cache_file_are_read_again(write_case: WriteCase, tmp_path: Path) -> None:
    cases, cache = [write_case(f"c{i}") for i in range(3)], tmp_path / "cache"
    before, _ = run(cases, cache)
    write_case("c0", image=np.ones((12, 10, 8), np.int16))
    kept = sorted(cache.glob("*.json"))
    assert len(kept) == 3
    after, counts = run(cases, cache)
    assert counts == (1, 2) and after[0] != before[0] and after[1:] == before[1:]
    for path, content in zip(kept, ('{"case": "c', "[1, 2]", json.dumps({"case": "c2"})), strict=True):
        path.write_text(content)
    again, counts = run(cases, cache)
    assert counts[0] >= 2 and again == after


def test_an_unreadable_case_is_tried_again(write_case: WriteCase, tmp_path: Path) -> None:
    case = write_case("c")
    content = Path(case.image[0]).read_bytes()
    Path(case.image[0]).write_bytes(content[:40])
    reports, _ = run([case], tmp_path / "cache")
    assert reports[0].faults and run([case], tmp_path / "cache")[1] == (1, 0)


def test_reports_pass_through_json_unchanged(write_case: WriteCase) -> None:
    (report,), _ = run([write_case("c", image=np.ones((12, 10, 8), np.float32))], None)
    assert from_plain(CaseReport, json.loads(json.dumps(to_plain(report)))) == report


def test_processes_give_what_one_process_gives(
    write_case: WriteCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = [write_case(f"c{i}") for i in range(4)]
    Path(cases[2].image[0]).write_bytes(b"torn")
    alone, _ = run(cases, None)
    monkeypatch.setattr(examining, "FEW_BYTES", 0)
    together, counts = run(cases, tmp_path / "cache", workers=2)
    assert together == alone and counts == (4, 0)
    assert not psutil.Process().children()


FAKE = """
import sys; sys.path.insert(0, {root!r})
import os, signal, time
import autoseg.analysis.worker as worker
real = worker.examine_case
def examine_case(case):
    {body}
    return real(case)
worker.examine_case = examine_case
worker.main()
"""


def fake_worker(body: str) -> list[str]:
    return [sys.executable, "-c", FAKE.format(root=REPOSITORY, body=body)]


def test_a_worker_that_dies_is_the_fault_of_its_case_alone(write_case: WriteCase) -> None:
    cases = [write_case(f"c{i}") for i in range(5)]
    body = "case.id == 'c1' and os.kill(os.getpid(), signal.SIGKILL); case.id == 'c3' and sys.exit('no such luck')"
    reports = dict(examine_in_parallel(cases, 2, fake_worker(body)))
    messages = {cases[index].id: [fault.message for fault in report.faults] for index, report in reports.items()}
    assert [messages[name] for name in ("c0", "c2", "c4")] == [[], [], []]
    assert len(messages["c1"]) == 1 and "SIGKILL" in messages["c1"][0]
    assert len(messages["c3"]) == 1 and "no such luck" in messages["c3"][0]
    assert not psutil.Process().children()


def test_workers_that_never_start_are_faults_not_a_hang(write_case: WriteCase) -> None:
    cases = [write_case(f"c{i}") for i in range(2)]
    for command in ([sys.executable, "-c", "raise SystemExit('broken')"], ["/no/such/program"]):
        reports = dict(examine_in_parallel(cases, 2, command))
        assert len(reports) == 2 and all(report.faults for report in reports.values())


def test_leaving_early_ends_the_workers(write_case: WriteCase) -> None:
    cases = [write_case(f"c{i}") for i in range(4)]
    answers = examine_in_parallel(cases, 2, fake_worker("case.id == 'c0' or time.sleep(60)"))
    assert next(answers)[0] == 0
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < 10 and not psutil.Process().children()


SCRIPT = """
# without a guard on __main__, as scripts and notebooks have it
import json, sys
from autoseg.analysis import examining, workers
from autoseg.records import Case, from_plain
examining.FEW_BYTES = 0
if "hang" in sys.argv:
    workers.BOOT = workers.BOOT.replace("main()", "import time; time.sleep(60)")
cases = [from_plain(Case, plain) for plain in json.loads(sys.argv[1])]
print("started", flush=True)
reports = examining.examine(cases, workers=2, cache_dir=None, notify=lambda event: print(event.kind, flush=True))
print(json.dumps([[report.case, len(report.faults)] for report in reports]))
assert "torch" not in sys.modules and "monai" not in sys.modules
"""


def script(tmp_path: Path, cases: list[Case], *words: str) -> subprocess.Popen[str]:
    path = tmp_path / "my script.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    command = [sys.executable, str(path), json.dumps(to_plain(cases)), *words]
    return subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_script_without_main_guard_and_without_torch(write_case: WriteCase, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file in the current folder was taken for a library')")
    script_folder = tmp_path / "scripts"
    script_folder.mkdir()
    process = script(script_folder, [write_case(f"c{i}") for i in range(3)])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1]) == [["c0", 0], ["c1", 0], ["c2", 0]]
    assert output.count("started") == 1


def test_ctrl_c_leaves_no_worker(write_case: WriteCase, tmp_path: Path) -> None:
    """The workers never answer; SIGINT reaches only the parent."""
    process = script(tmp_path, [write_case(f"c{i}") for i in range(3)], "hang")
    try:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while len(parent.children()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = parent.children()
        assert len(workers) == 2
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode != 0 and "KeyboardInterrupt" in errors
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert alive == []
    finally:
        process.kill()


def test_workers_do_not_look_into_the_current_folder() -> None:
    assert BOOT.startswith("import sys; sys.path[:] = sys.argv[1:];")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, autoseg.analysis; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
