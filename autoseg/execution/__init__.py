"""Jobs as data, executors that start them, and the scheduler that spreads them over slots."""

from autoseg.execution.executor import Executor
from autoseg.execution.fake import FakeExecutor, FakeRun
from autoseg.execution.feed import Feed
from autoseg.execution.local import LocalExecutor
from autoseg.execution.results import is_done, read_result
from autoseg.execution.scheduler import Scheduler

__all__ = ["Executor", "FakeExecutor", "FakeRun", "Feed", "LocalExecutor", "Scheduler", "is_done", "read_result"]
