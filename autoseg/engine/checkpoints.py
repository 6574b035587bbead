"""Checkpoints: tensors and plain numbers only, written whole or not at all, read without executing anything.

And metrics.jsonl taken back to where a checkpoint stands.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import torch

from autoseg.engine.memory import out_of_memory
from autoseg.workspace import atomic_file, patiently


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename: a kill leaves the old checkpoint intact, and so does a full disk, which is waited on."""

    def write() -> None:
        with atomic_file(path, "wb") as file:
            torch.save(state, file)

    patiently(write, path)


class DamagedError(ValueError):
    """A file of weights that was cut off, or holds what is no tensor."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; `weights_only` refuses anything but tensors and plain containers.

    DamagedError where it is none; OSError and errors of memory come through: another try may be luckier.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types; EINVAL where the file is short
        if out_of_memory(error) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        # not torch's own words, which advise to read it in a way that runs it
        message = f"{path.name} is cut off, or holds what is no tensor: nothing of it was run"
        raise DamagedError(f"{message} ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path.name} holds a {type(state).__name__}, no weights by name")
    return state


def before(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept, should that one be damaged."""
    return path.with_name(f"{path.stem}_before{path.suffix}")


def keep_before(path: Path) -> None:
    """Make the checkpoint at `path` the one before; at no moment is there none."""
    if path.is_file():
        os.replace(path, before(path))


def forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that will be written again, and those that are none, as a torn last one."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            if json.loads(line).get("step", 0) <= step:
                kept.append(line + "\n")
    with atomic_file(metrics) as file:
        file.writelines(kept)


def random_states() -> dict[str, Any]:
    """torch's random states; patches need none, they are a function of their number."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` gave; GPU states only where as many GPUs are visible."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
