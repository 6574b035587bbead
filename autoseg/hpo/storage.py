"""Where a sweep's trials are kept: Optuna's journal, or a database by its URL; and why one cannot be used."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autoseg.errors import Fault, InputError, one_line
from autoseg.workspace import patiently

RECORD = b'{"op_code":'  # how each line of Optuna's journal begins
CONNECT_SECONDS = 5
LOCK_SECONDS = 10  # a lock as old as this was left by a process that was killed: a write takes milliseconds
POSTGRESQL = "postgresql"
TIMED_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # those that know `connect_timeout`
logger = logging.getLogger(__name__)


def open_storage(journal: Path, storage: str | None) -> BaseStorage:
    """The database at the URL `storage`, else the file `journal`; what it raises, `refused` explains."""
    if storage is None:
        return _open_journal(journal)
    url, options = _connection(storage)
    return RDBStorage(url, engine_kwargs=options)


def refuse_unreachable(storage: str | None) -> None:
    """Raises `InputError` (field `storage`) where the database at this URL cannot be reached; makes no table there."""
    if storage is None:
        return
    with refused(shown(storage), storage):
        url, options = _connection(storage)
        engine = sqlalchemy.create_engine(url, **options)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()


@contextmanager
def refused(where: str, storage: str | None) -> Iterator[None]:
    """Whatever keeps a storage from being used becomes an `InputError` of the file or URL `where`."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        first = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # Optuna wraps SQLAlchemy's
        missing = first.name
        remedy = "pip install 'autoseg[postgresql]'" if missing == "psycopg" else "which is not installed"
        raise _unusable(where, f"needs the package {missing}: {remedy}") from None
    except (
        # a record of a journal that is none of Optuna's fails in any of these ways
        *(AssertionError, LookupError, TypeError, ValueError, AttributeError),
        *(OSError, RuntimeError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError),
    ) as error:
        raise _unusable(where, _reason(error, where, storage)) from None


def _unusable(where: str, message: str) -> InputError:
    return InputError([Fault(where, "storage", message)])


class _MendingLock(JournalFileOpenLock):
    """Before anything is appended, cuts off the part of a line that a killed writer or a full disk has left.

    Optuna would append to that part, and could not read the journal from then on.
    """

    def __init__(self, path: Path):
        super().__init__(str(path), grace_period=LOCK_SECONDS)
        self._path = path

    def acquire(self) -> bool:
        super().acquire()
        try:
            with open(self._path, "r+b") as file:
                journal = file.read()
                whole = journal.rfind(b"\n") + 1
                if whole < len(journal):
                    logger.warning("%s: the last line was torn and is cut off", self._path)
                    file.truncate(whole)
        except BaseException:
            self.release()
            raise
        return True


class _Journal(JournalFileBackend):
    """Optuna's journal, which waits for room where the disk is full."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        patiently(lambda: JournalFileBackend.append_logs(self, logs), Path(self._file_path))


def _open_journal(path: Path) -> BaseStorage:
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with open(path, "rb") as file:
            head = file.read(len(RECORD))
        if not RECORD.startswith(head):
            raise ValueError("is no journal of Optuna")
    # of Optuna's two locks, the one that needs no symbolic links; both are safe on NFS from version 3 on
    return JournalStorage(_Journal(str(path), lock_obj=_MendingLock(path)))


def _connection(url: str) -> tuple[str, dict[str, Any]]:
    """(URL with its driver, options) as SQLAlchemy takes them; ValueError for what is no URL."""
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ValueError("is no URL such as sqlite:///sweep.db or postgresql://user@host/database") from None
    if parsed.drivername == POSTGRESQL:  # which driver that means differs between SQLAlchemy 2.0 and 2.1
        parsed = parsed.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {}
    if parsed.get_driver_name() in TIMED_DRIVERS:
        options["pool_pre_ping"] = True  # hours may lie between two trials
        if "connect_timeout" not in parsed.query:
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    return parsed.render_as_string(hide_password=False), options


def shown(url: str) -> str:
    """The URL without its password; what is no URL is not shown at all, since it may hold one."""
    try:
        return _without_secrets(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return ""


def _without_secrets(url: str) -> sqlalchemy.URL:
    return sqlalchemy.make_url(url).difference_update_query(["password"])


def _reason(error: Exception, where: str, storage: str | None) -> str:
    """Why a storage cannot be used, on one line and without its password."""
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror}"
    if storage is None:
        return f"{Path(where).name} is damaged, or no journal of Optuna: {one_line(error)}"
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        url = sqlalchemy.make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return text
    for secret in filter(None, (url.password, url.query.get("password"))):
        text = re.sub(rf"(?<!\w){re.escape(str(secret))}(?!\w)", "***", text)
    return text
