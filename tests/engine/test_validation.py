"""Whether a network that nothing was held out from has learned at all."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from autoseg.engine.cache import CachedCase
from autoseg.engine.validation import recall_dice, window_around

SETTINGS: dict[str, Any] = {
    "label_values": [0, 2, 5],
    "roi_size": [8, 8, 8],
    "slice_axis": None,
    "sw_batch_size": 1,
    "validation_overlap": 0.0,
}


def cached(folder: Path, label: npt.NDArray[np.uint8]) -> CachedCase:
    """A case whose image is its label."""
    folder.mkdir()
    np.save(folder / "image.npy", label[None].astype(np.float16))
    np.save(folder / "label.npy", label)
    places = np.argwhere(label)
    np.save(folder / "places.npy", np.column_stack([label[label > 0], places]).astype(np.int32))
    return CachedCase(folder.name, folder)


def two_labels(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    label = np.zeros(shape, np.uint8)
    label[:3, :3, :3], label[-4:, -4:, -4:] = 1, 2
    return label


class Reader(torch.nn.Module):
    """Sees the labels with these indices, and takes `wrong` for what it does not know."""

    def __init__(self, known: tuple[int, ...], wrong: int = 0):
        super().__init__()
        self.known, self.wrong = known, wrong

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        index = image.round().long()
        unknown = ~torch.isin(index, torch.tensor([0, *self.known]))
        index = torch.where(unknown, self.wrong, index)
        return 10.0 * torch.nn.functional.one_hot(index[:, 0], 3).movedim(-1, 1).float()


def recalled(network: torch.nn.Module, cases: list[CachedCase]) -> float:
    return recall_dice(network, cases, SETTINGS, torch.device("cpu"), contextlib.nullcontext)


def test_a_window_is_within_the_volume_and_shows_each_label_in_turn(tmp_path: Path) -> None:
    case = cached(tmp_path / "a", two_labels((20, 12, 6)))
    windows = [window_around(case, number, [8, 8, 8]) for number in range(3)]
    assert [piece.label.shape for piece in windows] == [(8, 8, 6)] * 3
    assert all(np.array_equal(piece.image[0], piece.label) for piece in windows)
    assert [set(np.unique(piece.label)) for piece in windows] == [{0, 1}, {0, 2}, {0, 1}]


@pytest.mark.parametrize(("known", "dice"), [((1, 2), 1.0), ((1,), 0.5), ((), 0.0)])
def test_what_was_learned_is_recalled(tmp_path: Path, known: tuple[int, ...], dice: float) -> None:
    cases = [cached(tmp_path / str(number), two_labels((20, 20, 20))) for number in range(4)]
    assert recalled(Reader(known), cases) == dice


def test_labels_that_a_window_does_not_show_do_not_count(tmp_path: Path) -> None:
    assert recalled(Reader((1,), wrong=1), [cached(tmp_path / "a", two_labels((20, 20, 20)))]) == 1.0
    assert math.isnan(recalled(Reader((1,)), [cached(tmp_path / "b", np.zeros((9, 9, 9), np.uint8))]))


def test_regions_are_recalled_by_their_numbers(tmp_path: Path) -> None:
    class Regions(Reader):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([10 * (image > 0.5) - 5, 10 * (image > 1.5) - 5.0], 1)

    settings = {**SETTINGS, "regions": [[2, 5], [5]]}
    case = cached(tmp_path / "a", two_labels((20, 20, 20)))
    assert recall_dice(Regions(()), [case, case], settings, torch.device("cpu"), contextlib.nullcontext) == 1.0
