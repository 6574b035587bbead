"""A full disk is no error of a run: what was to be written waits until there is room. The one home of that patience."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = ("No space left on device", "Disk quota exceeded")
PAUSE_SECONDS = 2.0
SAID_SECONDS = 60.0
LITTLE = 4 * 2**20  # bytes: with less a process that died without a word died of it
logger = logging.getLogger(__name__)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that the disk or a quota is full; torch raises its own on top."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def says_full(text: str) -> bool:
    """Whether the words of a process say so."""
    return any(words in text for words in WORDS)


def room(folder: Path) -> int:
    """Bytes free where a folder lies, or is to lie."""
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(folder).free


def patiently(
    write: Callable[[], T],
    path: Path,
    *,
    say: Callable[[str], None] = logger.warning,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """What `write` returns; while the disk of `path` is full, say so once a minute and try again.

    `write` must leave nothing half-written behind. Other errors come through, and so does what `pause` raises.
    """
    said = -SAID_SECONDS
    while True:
        try:
            return write()
        except (OSError, RuntimeError) as error:
            if not is_full(error):
                raise
        if time.monotonic() - said >= SAID_SECONDS:
            said = time.monotonic()
            say(f"the disk of {path} is full: waiting for room")
        pause(PAUSE_SECONDS)
