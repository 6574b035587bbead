"""Whether a network that nothing was held out from has learned at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from autoseg.engine.cache import CachedCase
from autoseg.engine.validation import box_around, recall_dice

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
    """Sees the labels with these indices, takes `wrong` for what it does not know, `nothing` for background."""

    def __init__(self, known: tuple[int, ...], wrong: int = 0, nothing: int = 0):
        super().__init__()
        self.known, self.wrong, self.nothing = known, wrong, nothing

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        index = image.round().long()
        unknown = ~torch.isin(index, torch.tensor([0, *self.known]))
        index = torch.where(unknown, self.wrong, torch.where(index == 0, self.nothing, index))
        return 10.0 * torch.nn.functional.one_hot(index[:, 0], 3).movedim(-1, 1).float()


def recalled(network: torch.nn.Module, cases: list[CachedCase]) -> float | None:
    return recall_dice(network, cases, SETTINGS, torch.device("cpu"), contextlib.nullcontext)


def test_a_box_lies_within_the_volume() -> None:
    assert box_around([0, 11, 3], [8, 8, 8], (20, 12, 6)) == (slice(0, 8), slice(4, 12), slice(0, 8))
    assert box_around([10, 6, 3], [8, 8, 1], (20, 12, 6)) == (slice(6, 14), slice(2, 10), slice(3, 4))


@pytest.mark.parametrize(("known", "dice"), [((1, 2), 1.0), ((1,), 0.5), ((), 0.0)])
def test_what_was_learned_is_recalled(tmp_path: Path, known: tuple[int, ...], dice: float) -> None:
    cases = [cached(tmp_path / str(number), two_labels((20, 20, 20))) for number in range(4)]
    assert recalled(Reader(known), cases) == dice


def test_one_label_everywhere_is_not_learned(tmp_path: Path) -> None:
    everywhere = recalled(Reader((), wrong=1, nothing=1), [cached(tmp_path / "a", two_labels((20, 20, 20)))])
    assert everywhere is not None and everywhere < 0.05


def test_labels_that_no_window_is_around_do_not_count(tmp_path: Path) -> None:
    label = two_labels((20, 20, 20))
    label[label == 2] = 0
    assert recalled(Reader((1,)), [cached(tmp_path / "a", label)]) == 1.0
    assert recalled(Reader((1,)), [cached(tmp_path / "b", np.zeros((9, 9, 9), np.uint8))]) is None


def test_regions_are_recalled_by_their_numbers(tmp_path: Path) -> None:
    class Regions(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([10 * (image > 0.5) - 5, 10 * (image > 1.5) - 5.0], 1)

    settings = {**SETTINGS, "regions": [[2, 5], [5]]}
    case = cached(tmp_path / "a", two_labels((20, 20, 20)))
    assert recall_dice(Regions(), [case, case], settings, torch.device("cpu"), contextlib.nullcontext) == 1.0
