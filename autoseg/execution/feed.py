"""Where jobs come from one by one, and where it is decided which of them are not worth their slot any longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.records import Job, JobResult


class Feed:
    """What `Scheduler.run` asks for jobs as slots fall free, in its own thread; this one has none.

    Whatever they raise ends the run: what runs is cancelled, and the exception comes through.
    """

    def next(self) -> Job | None:
        """A further job for a free slot, of an id not used in this run; None: none at present, ask again."""
        return None

    def finished(self) -> bool:
        """Whether no further job will ever come."""
        return True

    def ended(self, job: Job, result: JobResult) -> None:
        """A job of the feed ended for good: done, failed, skipped or stopped, in this run or in an earlier one.

        It is told once a run, after the event that says so; not of a job that was cancelled with the run: given again
        to a later one, that job goes on.
        """

    def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
        """New validations of a job of the feed; a reason to end the job, or None.

        `progress`: the lines with a finite `mean_dice` that its metrics.jsonl has got since this was asked last, as
        they stand there; those of earlier tries under the same fingerprint included, and none twice in a run. What a
        try that goes on from a checkpoint does once more is new, if it did not come out the same. The last lines of
        a job are handed over before `ended` is called; of one that ended well, or in an earlier run, the answer then
        makes no difference.
        """
        return None
