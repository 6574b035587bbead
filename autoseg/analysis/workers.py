"""Worker processes that examine cases in parallel, from the parent's side.

Plain subprocesses rather than multiprocessing: its spawn and forkserver run the caller's main module again, which
breaks scripts without a `__main__` guard and loads torch into every worker where that script imports it; and a
worker that dies breaks its whole pool, so that the case that killed it is not known.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from typing import IO, Any

from autoseg.analysis.case import failed_case
from autoseg.analysis.report import CaseReport
from autoseg.records import Case, from_plain, to_plain

BOOT = "import sys; sys.path[:] = sys.argv[1:]; from autoseg.analysis.worker import main; main()"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")}


def examine_in_parallel(
    cases: Sequence[Case], workers: int, command: Sequence[str] | None = None
) -> Generator[tuple[int, CaseReport], None, None]:
    """(index, report) of each case as it is done. No process outlives the iteration, however it ends."""
    crew = _Crew(cases, command or (sys.executable, "-c", BOOT, *(os.path.abspath(p) for p in sys.path)))
    threads = [threading.Thread(target=crew.work, daemon=True) for _ in range(min(workers, len(cases)))]
    try:
        for thread in threads:
            thread.start()
        for _ in cases:
            yield crew.results.get()
    finally:
        crew.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class _Crew:
    """The queue of cases, the answers, and every living worker process; one thread drives each."""

    def __init__(self, cases: Sequence[Case], command: Sequence[str]):
        self.cases, self.command = cases, list(command)
        self.results: queue.SimpleQueue[tuple[int, CaseReport]] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(cases)):
            self._waiting.put(index)
        self._lock = threading.Lock()
        self._living: set[subprocess.Popen[str]] = set()
        self._closed = False

    def work(self) -> None:
        worker: _Worker | None = None
        while not self._closed:
            try:
                index = self._waiting.get_nowait()
            except queue.Empty:
                break
            case = self.cases[index]
            try:
                worker = worker or self._start()
                if worker is None:
                    return
                report = worker.examine(case)
            except Exception as error:  # a report is owed for every case, or the iteration never ends
                report = failed_case(case, f"cannot be examined: {type(error).__name__}: {error}")
                self._retire(worker)
                worker = None
            self.results.put((index, report))
        self._retire(worker)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._living:
                process.kill()

    def _start(self) -> _Worker | None:
        with self._lock:
            if self._closed:
                return None
            worker = _Worker(self.command)
            self._living.add(worker.process)
            return worker

    def _retire(self, worker: _Worker | None) -> None:
        if worker is not None:
            worker.stop()
            with self._lock:
                self._living.discard(worker.process)


class WorkerDiedError(Exception):
    """The process ended without an answer; says how."""


class _Worker:
    """One process. In a session of its own: Ctrl-C reaches the parent, which ends its workers itself."""

    def __init__(self, command: list[str]):
        with contextlib.ExitStack() as undo:
            self._errors: IO[Any] = undo.enter_context(tempfile.TemporaryFile())
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
            undo.pop_all()  # from here on `stop` closes it

    def examine(self, case: Case) -> CaseReport:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(to_plain(case)) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            raise WorkerDiedError(self._last_words())
        return from_plain(CaseReport, json.loads(answer))

    def _last_words(self) -> str:
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"the process that read it was ended by {name}{memory}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process that read it ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def stop(self) -> None:
        """Ends by end of input; kills what does not listen."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()
