"""Expected Dice: by hand, in chunks, for classes and regions; and percent of doubt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoseg.engine.classes import Classes
from autoseg.engine.expected import ExpectedDice, uncertainty

CLASSES = Classes((0, 1, 3))
REGIONS = Classes((0, 1, 2), ((1, 2), (2,)))


def expected_of(classes: Classes, probabilities: torch.Tensor, *chunks: torch.Tensor) -> dict[int, float | None]:
    found = ExpectedDice(classes)
    for chunk in chunks or (probabilities,):
        found.add(chunk)
    return found.by_key()


def test_certain_networks_expect_a_perfect_dice_and_no_class_that_is_absent() -> None:
    label = torch.tensor([[0, 1, 1, 0]])
    certain = torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float()
    assert expected_of(CLASSES, certain) == {1: pytest.approx(1.0), 3: None}


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.1, 0.6], [0.8, 0.3], [0.1, 0.1]])  # decided: label 1, background
    found = expected_of(CLASSES, probabilities)
    assert found[1] == pytest.approx(2 * 0.8 / (1 + 1.1))
    assert found[3] is None  # 0.2 voxels of it
    assert expected_of(CLASSES, probabilities.repeat(1, 5))[3] == 0.0  # one voxel of it, and none decided


def test_regions_by_hand_and_in_chunks() -> None:
    probabilities = torch.tensor([[0.9, 0.7, 0.2], [0.6, 0.4, 0.1]])
    found = expected_of(REGIONS, probabilities)
    assert found == {1: pytest.approx(2 * 1.6 / (2 + 1.8)), 2: pytest.approx(2 * 0.6 / (1 + 1.1))}
    assert expected_of(REGIONS, probabilities, *probabilities.split(1, 1)) == pytest.approx(found)


def test_it_is_the_dice_that_comes_out_on_average() -> None:
    """References drawn voxel by voxel from the probabilities have that Dice."""
    random = np.random.default_rng(0)
    foreground = random.beta(0.4, 0.4, 4000)
    mask = foreground > 0.5
    dice = []
    for _ in range(50):
        reference = random.random(4000) < foreground
        dice.append(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
    given = torch.tensor(np.stack([1 - foreground, foreground]), dtype=torch.float32)
    assert expected_of(Classes((0, 1)), given)[1] == pytest.approx(np.mean(dice), abs=0.005)


def test_percent_of_doubt() -> None:
    assert uncertainty(torch.tensor([[0.1, 0.6], [0.9, 0.4]]), regions=False).tolist() == [10, 40]
    assert uncertainty(torch.tensor([[0.9, 0.0], [0.6, 0.02]]), regions=True).tolist() == [40, 2]
