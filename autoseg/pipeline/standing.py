"""Where a job stands before a run: done and kept, to go on, or to run, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import InputError
from autoseg.execution.results import is_done, missing_outputs, read_result
from autoseg.pipeline.clock import last_line
from autoseg.pipeline.inputs import changes
from autoseg.records import Job, JobResult, from_plain
from autoseg.workspace import read_json

KEPT, GOES_ON, RUNS, ANEW = "kept", "goes on", "runs", "runs anew"
CHECKPOINT = "models/checkpoint.pt"
UNNAMED = "its record does not say what it was made from"
SCORES = "scores.json"  # written at the end, from what the checkpoint's training left


@dataclass(frozen=True)
class Outlook:
    """What a run does with a job: `fate` is kept, goes on, runs (for the first time) or runs anew."""

    id: str
    fate: str
    reason: str


def outlook(job: Job, folder: Path, edited: list[str] | None = None, goes_on_from: str = CHECKPOINT) -> Outlook:
    """The fate of a job whose records lie in `folder`, and which goes on from a file of its own folder.

    `edited`: how the bundle that stands there differs from the one to be written; None where it does not.
    """
    result = read_result(folder)
    checkpoint = (Path(job.cwd) / goes_on_from).is_file()
    if result is None:
        goes_on = checkpoint and edited is None
        return Outlook(job.id, GOES_ON if goes_on else RUNS, "its record is lost" if goes_on else "never run")
    if edited is not None or result.fingerprint != job.fingerprint:
        return Outlook(job.id, ANEW, "; ".join(_changed(job, result, folder) or edited or [UNNAMED]))
    if result.status == "done":
        missing = missing_outputs(job)
        if is_done(job, result):
            return Outlook(job.id, KEPT, "done, and nothing changed")
        if not missing:
            return Outlook(job.id, GOES_ON if checkpoint else ANEW, "an output is cut off")
        goes_on = checkpoint and missing == (SCORES,)
        return Outlook(job.id, GOES_ON if goes_on else ANEW, f"missing: {', '.join(missing)}")
    how = "failed before" if result.status == "failed" else "interrupted"
    why = f": {result.error.splitlines()[0]}" if result.status == "failed" and result.error else ""
    where = _reached(job) if checkpoint else ""
    return Outlook(job.id, GOES_ON if checkpoint else ANEW, f"{how}{where}{why}")


def is_stale(job: Job, folder: Path) -> bool:
    """Whether what a job left in its own folder was made from other inputs, by the record in `folder`."""
    result = read_result(folder)
    return result is not None and result.fingerprint != job.fingerprint


def _changed(job: Job, result: JobResult, folder: Path) -> list[str]:
    """How the job's inputs differ from those it was run with; [] where the record of these is none, or of another."""
    try:
        record = from_plain(Job, read_json(folder / "job.json"))
    except (InputError, ValueError, TypeError, AttributeError):
        return []
    if not record.inputs or record.fingerprint != result.fingerprint:
        return []
    if record.inputs == job.inputs and record.fingerprint != job.fingerprint:  # mappings are equal in any order
        return ["the order of its cases changed"]
    return changes(record.inputs, job.inputs)


def _reached(job: Job) -> str:
    """' at step 400 of 1000', or what is known of it, by the last line of a checkpoint, with a score or without."""
    last = last_line(Path(job.cwd) / job.progress) if job.progress else {}
    if not last:
        return ""
    steps = f" of {last['num_iterations']}" if last.get("num_iterations") else ""
    return f" at step {last.get('step')}{steps}, after {float(last.get('seconds') or 0.0):.0f} s"
