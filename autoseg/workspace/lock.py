"""Who is at work in a work_dir: one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from autoseg.errors import Fault, InputError, WorkspaceInUseError
from autoseg.workspace import Workspace


class RunLock:
    """Holds `run.lock` while a run writes the work_dir. The kernel frees it when its process dies, however it dies."""

    def __init__(self, workspace: Workspace, purpose: dict[str, Any]):
        self.workspace, self.purpose = workspace, purpose
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        self.workspace.create()
        self.workspace.refuse_links()
        path = self.workspace.lock_file
        file = open(path, "a+", encoding="utf-8")  # held until __exit__
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise _in_use(self.workspace, holder) from None
        except OSError as error:
            file.close()
            message = f"cannot be locked: {error.strerror}"
            raise InputError([Fault(str(self.workspace.root), "work_dir", message)]) from error
        file.truncate(0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), **self.purpose}
        file.write(json.dumps(holder))
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def lock_holder(workspace: Workspace) -> dict[str, Any] | None:
    """Who holds a work_dir (pid, host, started, ...), as far as it is written there; None where nobody does."""
    try:
        with open(workspace.lock_file, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
            return None
    except OSError:
        return None


def refuse_in_use(workspace: Workspace) -> None:
    """WorkspaceInUseError where a run is at work in the work_dir; writes nothing."""
    holder = lock_holder(workspace)
    if holder is not None:
        raise _in_use(workspace, holder)


def _in_use(workspace: Workspace, holder: Mapping[str, Any]) -> WorkspaceInUseError:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started", 0)))
    message = f"in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}, started {started}"
    return WorkspaceInUseError([Fault(str(workspace.root), "work_dir", message)])


def _holder(file: IO[str]) -> dict[str, Any]:
    """What the holder wrote of itself, as far as it is of the kind that a holder writes."""
    file.seek(0)
    kinds: dict[str, Any] = {"pid": int, "host": str, "started": (int, float)}
    try:
        said = dict(json.loads(file.read() or "{}"))
    except (TypeError, ValueError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, kinds.get(key, object))}
