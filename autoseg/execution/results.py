"""Evidence of what a job did: its `result.json`, its outputs, and the true error in its log."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from autoseg.errors import InputError
from autoseg.records import Job, JobResult, from_plain
from autoseg.workspace import read_json

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit|Faults?|Timeout)(?::.*)?$")
_SPOKEN = re.compile(r".*\b(?:error|fatal|killed|aborted|segmentation fault)\b.*", re.IGNORECASE)


def read_result(folder: Path) -> JobResult | None:
    """The `result.json` of a job's folder; None where there is none that can be read."""
    try:
        return from_plain(JobResult, read_json(folder / "result.json"))
    except (InputError, ValueError, TypeError, AttributeError):
        return None


def missing_outputs(job: Job) -> tuple[str, ...]:
    """Those of the job's outputs that do not exist."""
    return tuple(output for output in job.outputs if not (Path(job.cwd) / output).exists())


def output_sizes(job: Job) -> dict[str, int]:
    """Bytes of those of the job's outputs that are files."""
    paths = {output: Path(job.cwd) / output for output in job.outputs}
    return {output: path.stat().st_size for output, path in paths.items() if path.is_file()}


def is_done(job: Job, result: JobResult | None) -> bool:
    """A job is done if its result carries the present fingerprint and its outputs are whole; nothing else says so."""
    return (
        result is not None
        and result.status == "done"
        and result.fingerprint == job.fingerprint
        and not missing_outputs(job)
        and result.sizes.items() <= output_sizes(job).items()
    )


def log_tail(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log, read from byte `start` on, without terminal codes and overdrawn progress bars."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(min(start, end), end - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    cleaned = [_CONTROLS.sub("", _ESCAPES.sub("", line)).rstrip() for line in lines]
    while cleaned and not cleaned[-1]:
        cleaned.pop()
    return cleaned


def describe_failure(exit_code: int, lines: list[str]) -> tuple[str, str]:
    """(headline, error): one line that names the true error, and it followed by the log's last lines.

    The headline is the last exception that the log names after a traceback, else the last line that speaks of an
    error, else how the process ended.
    """
    headline = _headline(lines)
    if exit_code < 0:
        ended = f"killed by {_signal_name(-exit_code)}"
        if exit_code == -signal.SIGKILL:
            ended += " (out of memory, or ended from outside)"
        headline = f"{ended}: {headline}" if headline else ended
    headline = headline or f"ended with exit code {exit_code}, without a word"
    return headline, "\n".join([headline, *lines[-TAIL_LINES:]])


def _headline(lines: list[str]) -> str:
    traceback = max((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), default=None)
    if traceback is not None:
        ends = [line for line in lines[traceback + 1 :] if _EXCEPTION.match(line)]
        own = [line for line in lines[traceback + 1 :] if line and not line[0].isspace()]
        if ends or own:
            return ends[-1] if ends else own[0]
    for pattern in (_EXCEPTION, _SPOKEN):
        spoken = [line.strip() for line in lines if pattern.match(line)]
        if spoken:
            return spoken[-1]
    return lines[-1].strip() if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
