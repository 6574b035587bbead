"""Probabilities of validation cases: what is kept of them, and how they are read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.engine.out_of_fold import LEAST, Collector, OutOfFold, together
from autoseg.errors import InputError
from autoseg.evaluation import Scored

SHAPE = (12, 9, 7)
LABELS = Scored({1: "a", 2: "b"})


def volume() -> torch.Tensor:
    """Probabilities of background and two labels: something at x 3..8, y 2..4, z 5, and traces elsewhere."""
    found = torch.zeros(3, *SHAPE)
    found[1] = LEAST / 2
    found[1, 3:7, 2:5, 5], found[2, 7:9, 4, 5] = 0.625, 0.25
    found[0] = 1 - found[1:].sum(0)
    return found


def reference() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[4:8, 2:5, 5], found[0, 0, 0] = 1, 2
    return found


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 4, 12])
def test_the_box_around_the_foreground_is_kept(axis: int, step: int, tmp_path: Path) -> None:
    probabilities, collector = volume(), Collector(axis, 1, 10**6)
    for start in range(0, SHAPE[axis], step):
        collector.add(probabilities.narrow(1 + axis, start, min(step, SHAPE[axis] - start)), start)
    taken = collector.taken(reference(), LABELS, (1.0, 2.0, 0.5))
    assert taken is not None
    assert taken.save(tmp_path / "deep" / "case.npz") == (tmp_path / "deep" / "case.npz").stat().st_size
    found = OutOfFold.load(tmp_path / "deep" / "case.npz")
    assert (found.corner, found.total, found.voxel) == ((3, 2, 5), {1: 12, 2: 1}, 1.0)
    place = (slice(3, 9), slice(2, 5), slice(5, 6))
    wanted = probabilities[(slice(1, None), *place)].numpy().copy()
    assert 0 < wanted[0, 4, 2, 0] < LEAST <= wanted[1, 4, 2, 0]  # a trace beside another label is kept
    wanted[:, (wanted < LEAST).all(0)] = 0
    assert np.array_equal(found.probabilities, wanted.astype(np.float16))
    assert np.array_equal(found.reference, reference()[place])


def test_nothing_found_and_regions(tmp_path: Path) -> None:
    collector = Collector(0, 1, 10**6)
    collector.add(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, *SHAPE), 0)
    taken = collector.taken(reference(), LABELS, (1, 1, 1))
    assert taken is not None
    taken.save(tmp_path / "none.npz")
    found = OutOfFold.load(tmp_path / "none.npz")
    assert found.reference.size == 0 and found.total == {1: 12, 2: 1}
    regions = Scored({1: "whole"}, ((1, 2),))
    collector = Collector(0, 0, 10**6)
    collector.add(torch.full((1, *SHAPE), 0.5), 0)
    taken = collector.taken((reference() > 0).astype(np.uint32), regions, (1, 1, 1))
    assert taken is not None and taken.probabilities.shape == (1, *SHAPE) and taken.total == {1: 13}
    box, places = together({"none": found, "some": taken})
    assert tuple(side.stop for side in box) == SHAPE and places["some"] == box


def test_what_is_too_much_is_let_go() -> None:
    collector = Collector(0, 1, 2 * 2 * 6 * 3 * 1)  # one byte more were enough
    for start in range(0, SHAPE[0], 6):
        collector.add(volume()[:, start : start + 6], start)
    assert collector.taken(reference(), LABELS, (1, 1, 1)) is None


def test_what_is_little_but_far_apart_is_let_go() -> None:
    """Each chunk's box is a voxel, that of both is all of the volume."""
    collector = Collector(0, 1, 500)
    for start, y in ((0, 0), (11, 8)):
        chunk = torch.zeros(3, 1, *SHAPE[1:])
        chunk[1, 0, y, y % 7] = 0.9
        collector.add(chunk, start)
    assert collector.limit > 0 and collector.taken(reference(), LABELS, (1, 1, 1)) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"text"])
def test_a_damaged_file_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="holds no probabilities"):
        OutOfFold.load(tmp_path / "x.npz")
