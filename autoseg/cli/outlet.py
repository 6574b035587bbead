"""Standard output that nobody reads any more is no reason to end a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

GONE = (errno.EPIPE, errno.EIO)  # a pipe's reader, a terminal


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
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.lost = True  # what the stream still holds, and what follows, goes nowhere
            with contextlib.suppress(OSError):
                place, nowhere = self.stream.fileno(), os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, place)
                os.close(nowhere)


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Standard output and errors as outlets, where there are some."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and cast(TextIO, Outlet(stream)) for stream in before)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # closed; a full disk is told of when Python ends
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.stdout, sys.stderr = before


def unheard() -> bool:
    """Whether what is printed is lost."""
    return bool(getattr(sys.stdout, "lost", False))
