"""What a training says while it runs: metrics.jsonl, progress.yaml, TensorBoard's files, in the bundle's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from autoseg.engine.checkpoints import forget_after
from autoseg.records import to_plain
from autoseg.workspace import append_line, patiently, write_yaml

SCALARS = ("loss", "learning_rate", "mean_dice")


def write_line(path: Path, line: Mapping[str, Any]) -> None:
    """A line of JSON at the end of a file, waiting for room where the disk is full."""
    patiently(lambda: append_line(path, json.dumps(to_plain(dict(line)))), path)


class Journal:
    """Lines of metrics.jsonl, and the scalars among them for TensorBoard while it is open (`with journal.open(step)`);
    progress.yaml, the validations so far.

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
        """A line, and its scalars."""
        if not self.kept:
            return
        write_line(self.path, line)
        for key in SCALARS:
            if key in line:
                self._board.add_scalar(key, line[key], line["step"])
        for label, value in line.get("dice", {}).items():
            self._board.add_scalar(f"dice/{label}", value, line["step"])

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """progress.yaml, by which MONAI's Auto3DSeg knows the score."""
        if self.kept:
            path = self.root / "progress.yaml"
            patiently(lambda: write_yaml(path, list(history), versioned=False), path)
