"""SIGINT and SIGTERM, counted: they are heeded between two steps, so that no process is lost halfway to its record."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class SignalCounter:
    """`count`: the signals since `counting` began.

    Only where Python's own or the system's default stands, so that an application's handlers stay in force.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count from 0 on; the handlers that stood before stand again afterwards."""
        self.count = 0
        saved: dict[int, Any] = {}

        def count(number: int, frame: object) -> None:
            self.count += 1

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    saved[number] = signal.signal(number, count)
        try:
            yield
        finally:
            for signum, before in saved.items():
                signal.signal(signum, before)
