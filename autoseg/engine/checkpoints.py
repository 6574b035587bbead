"""Checkpoints: tensors and plain numbers only, written whole or not at all, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autoseg.workspace import atomic_file, patiently


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename: a kill leaves the old checkpoint intact, and so does a full disk, which is waited on."""

    def write() -> None:
        with atomic_file(path, "wb") as file:
            torch.save(state, file)

    patiently(write, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; `weights_only` refuses anything but tensors and plain containers."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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
