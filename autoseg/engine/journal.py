"""What a training says while it runs: metrics.jsonl and TensorBoard's files, in the bundle's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from autoseg.engine.checkpoints import forget_after
from autoseg.records import to_plain
from autoseg.workspace import append_line, patiently

SCALARS = ("loss", "learning_rate", "mean_dice")


class Journal:
    """Lines of metrics.jsonl, and the scalars among them for TensorBoard while it is open (`with journal.open(step)`).

    One that is not `kept` writes nothing.
    """

    def __init__(self, root: Path, kept: bool = True):
        self.root, self.kept, self.path = root, kept, root / "metrics.jsonl"
        self._board: Any = None

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps, which will be written again."""
        if self.kept:
            forget_after(self.path, step)

    def open(self, step: int) -> Journal:
        """From this step on."""
        from torch.utils.tensorboard import SummaryWriter

        if self.kept:
            self._board = SummaryWriter(str(self.root / "tensorboard"), purge_step=step)
        return self

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    @property
    def is_open(self) -> bool:
        return self._board is not None

    def write(self, line: Mapping[str, Any]) -> None:
        """A line, waiting for room where the disk is full."""
        if not self.kept:
            return
        patiently(lambda: append_line(self.path, json.dumps(to_plain(dict(line)))), self.path)
        for key in SCALARS:
            if key in line:
                self._board.add_scalar(key, line[key], line["step"])
        for label, value in line.get("dice", {}).items():
            self._board.add_scalar(f"dice/{label}", value, line["step"])
