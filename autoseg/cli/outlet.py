"""Standard output that nobody reads any more is no reason to end a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Outlet:
    """A text stream that goes on where its reader is gone (`autoseg run ... | head`); what is written then is lost."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost = False

    def write(self, text: str) -> int:
        """As the stream does; returns the characters taken, lost ones included."""
        with self._losing():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream does."""
        with self._losing():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.lost = True  # what the stream still holds, and what follows, goes nowhere
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Standard output and errors as outlets."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Outlet(stream)) for stream in before)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def unheard() -> bool:
    """Whether what is printed is lost."""
    return bool(getattr(sys.stdout, "lost", False))
