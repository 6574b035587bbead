"""Jobs as processes of this machine, each in a session of its own, none of which outlives the orchestrator."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.execution.executor import Executor
from autoseg.records import Job

# Reads "+group" and "-group" lines; when the orchestrator dies, however it dies, its end of the pipe closes and the
# process groups still listed are killed. A parent-death signal would need code between fork and exec, which is not
# safe in a process with threads, and Linux.
_GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


@dataclass(eq=False)
class LocalProcess:
    """A started process: the leader of its own process group."""

    process: subprocess.Popen[bytes]
    exit_code: int | None = None
    reaped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    killer: threading.Timer | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing happens once it is gone (its number may be another's then)."""
        with self.lock:
            if not self.reaped:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, number)


class LocalExecutor(Executor[LocalProcess]):
    """Runs jobs by `subprocess`, argv as a list, without a shell."""

    def __init__(self, grace_seconds: float = 4.0):
        """`grace_seconds`: between SIGTERM and SIGKILL of a cancelled job; its slot is free within 5 s then."""
        self.grace_seconds = grace_seconds
        self._ended = threading.Event()
        self._running: set[LocalProcess] = set()
        self._guard: subprocess.Popen[str] | None = None
        self._guard_lock = threading.Lock()

    def start(self, job: Job, environment: Mapping[str, str], log: Path) -> LocalProcess:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._open_guard()
        with open(log, "ab") as output:
            process = subprocess.Popen(
                list(job.argv),
                cwd=job.cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        handle = LocalProcess(process)
        self._running.add(handle)
        self._tell_guard(f"+{process.pid}")
        threading.Thread(target=self._watch, args=(handle,), name=f"watch {job.id}", daemon=True).start()
        return handle

    def poll(self, handle: LocalProcess) -> int | None:
        return handle.exit_code

    def cancel(self, handle: LocalProcess) -> None:
        if handle.exit_code is not None or handle.killer is not None:
            return
        handle.signal(signal.SIGTERM)
        handle.killer = threading.Timer(self.grace_seconds, handle.signal, (signal.SIGKILL,))
        handle.killer.daemon = True
        handle.killer.start()

    def wait(self, seconds: float) -> None:
        self._ended.wait(seconds)
        self._ended.clear()

    def close(self) -> None:
        for handle in list(self._running):
            handle.signal(signal.SIGKILL)
        with self._guard_lock:
            if self._guard is not None and self._guard.stdin is not None:
                with contextlib.suppress(OSError):
                    self._guard.stdin.close()
                self._guard.wait()
            self._guard = None

    def _watch(self, handle: LocalProcess) -> None:
        """Wait for the process; what it left behind in its group must not hold the slot's GPU, so it is killed."""
        process = handle.process
        if hasattr(os, "waitid"):  # the group's number stays ours until the zombie is reaped
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        handle.signal(signal.SIGKILL)
        with handle.lock:
            handle.reaped = True
            code = process.wait()
        if handle.killer is not None:
            handle.killer.cancel()
        self._tell_guard(f"-{process.pid}")
        self._running.discard(handle)
        handle.exit_code = code
        self._ended.set()

    def _open_guard(self) -> None:
        with self._guard_lock:
            if self._guard is None or self._guard.poll() is not None:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    text=True,
                )

    def _tell_guard(self, line: str) -> None:
        with self._guard_lock:
            if self._guard is not None and self._guard.stdin is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._guard.stdin.write(line + "\n")
                    self._guard.stdin.flush()
