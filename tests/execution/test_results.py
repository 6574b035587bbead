"""Finding the true error in a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.execution.results import describe_failure, is_done, log_tail, output_sizes, read_result
from autoseg.records import Job, JobResult

CHAINED = """epoch 1
Traceback (most recent call last):
  File "a.py", line 3, in <module>
FileNotFoundError: [Errno 2] No such file: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 3, in <module>
RuntimeError: Caught FileNotFoundError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "c.py", line 3
autoseg.errors.InputError: case_1: no label
[W] shutting down, no error in cleaning up
"""


@pytest.mark.parametrize(
    ("code", "text", "headline"),
    [
        (1, CHAINED, "autoseg.errors.InputError: case_1: no label"),
        (1, "Traceback (most recent call last):\n  x\nMyOddness: what\n", "MyOddness: what"),
        (1, "loading\nCUDA error: out of memory\nbye\n", "CUDA error: out of memory"),
        (2, "usage: x\nno such option\n", "no such option"),
        (1, "", "ended with exit code 1, without a word"),
        (-9, "step 5\n", "killed by SIGKILL (out of memory, or ended from outside): step 5"),
        (-11, "", "killed by SIGSEGV"),
        (-77, "", "killed by signal 77"),
    ],
)
def test_headline(tmp_path: Path, code: int, text: str, headline: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    got, error = describe_failure(code, log_tail(log))
    assert got == headline and error.splitlines()[0] == headline
    assert error.splitlines()[1:] == text.splitlines()


def test_tail_is_bounded_and_clean(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10**6 + b"\n\x1b[31mred\x1b[0m \x07bell\n 10%|#  |\r 50%|## |\r100%|###|\r\n\xffend\n\n\n")
    lines = log_tail(log)
    assert lines[-3:] == ["red bell", "100%|###|", "\ufffdend"]
    assert sum(map(len, lines)) < 10**5
    assert log_tail(log, start=10**6 + 1)[0] == "red bell"
    assert log_tail(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["", "[]", "3", '{"id": "a"}', '{"id": "a", "status": "done", "new_field": 1}', "{"])
def test_an_unreadable_result_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path) is None


def test_what_is_done_has_its_outputs_whole(tmp_path: Path) -> None:
    job = Job("a", ("x",), str(tmp_path), outputs=("model.pt", "cache"), fingerprint="f")
    (tmp_path / "cache").mkdir()
    (tmp_path / "model.pt").write_bytes(b"12345678")
    result = JobResult("a", "done", "f", sizes=output_sizes(job))
    assert is_done(job, result)
    assert is_done(job, JobResult("a", "done", "f")), "of a version that kept no sizes"
    (tmp_path / "model.pt").write_bytes(b"1234")
    assert not is_done(job, result)
    (tmp_path / "model.pt").unlink()
    assert not is_done(job, result)
