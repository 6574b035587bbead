"""What a network's outputs mean: exclusive classes, nested regions, overlapping regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from autoseg.engine.classes import Classes
from autoseg.engine.recipe import build_loss
from autoseg.errors import InputError

LABELS = Classes((0, 1, 3))
NESTED = Classes((0, 1, 2, 3), ((1, 2, 3), (1, 3), (3,)))
CROSSING = Classes((0, 1, 2, 3), ((1, 2), (2, 3)))
KINDS = pytest.mark.parametrize("classes", [LABELS, NESTED, CROSSING], ids=["labels", "nested", "crossing"])


def column(*values: float) -> torch.Tensor:
    """Probabilities [K, 1, 1, 1] of one voxel."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_settings_say_which_they_are() -> None:
    assert Classes.of({"label_values": [0, 1, 3], "regions": None}) == LABELS
    assert Classes.of({"label_values": [0, 1, 2, 3], "regions": [[1, 2], [2, 3]]}) == CROSSING
    assert (LABELS.outputs, LABELS.keys, LABELS.in_channels) == (3, (1, 3), False)
    assert (NESTED.outputs, NESTED.keys, NESTED.in_channels) == (3, (1, 2, 3), False)
    assert (CROSSING.outputs, CROSSING.keys, CROSSING.in_channels) == (2, (1, 2), True)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (LABELS, np.uint8),
        (Classes((0, 300)), np.uint16),
        (Classes((0, 70000)), np.uint32),
        (Classes((0, 1, 300), ((1, 300), (300,))), np.uint16),
        (Classes((0, 1, 300, 301), ((1, 300), (300, 301))), np.uint8),  # masks
    ],
)
def test_a_file_takes_the_smallest_integers(classes: Classes, dtype: type) -> None:
    assert classes.dtype == dtype


def test_labels_are_decided_by_the_likeliest() -> None:
    assert LABELS.decide(column(0.2, 0.3, 0.5)).item() == 3
    assert LABELS.decide(column(0.4, 0.3, 0.3)).item() == 0


@pytest.mark.parametrize(
    ("probabilities", "value"),
    [
        ((0.4, 0.3, 0.2), 0),
        ((0.9, 0.3, 0.2), 2),
        ((0.9, 0.8, 0.2), 1),
        ((0.9, 0.8, 0.6), 3),
        ((0.3, 0.2, 0.6), 3),  # the innermost decides, whatever those around it say
        ((0.5, 0.5, 0.5), 0),
    ],
)
def test_nested_regions_take_the_value_of_the_innermost(probabilities: tuple[float, ...], value: int) -> None:
    assert NESTED.decide(column(*probabilities)).item() == value


def test_of_regions_side_by_side_the_likelier_is_taken() -> None:
    apart = Classes((0, 1, 2, 3), ((1, 2, 3), (1,), (2,)))
    assert apart.decide(column(0.9, 0.6, 0.7)).item() == 2
    assert apart.decide(column(0.9, 0.7, 0.6)).item() == 1
    assert apart.decide(column(0.9, 0.1, 0.1)).item() == 3


def test_crossing_regions_are_masks() -> None:
    found = CROSSING.decide(torch.tensor([[[[0.6, 0.5]]], [[[0.7, 0.9]]]]))
    assert found.shape == (1, 1, 2, 2) and found.dtype == np.uint8
    assert found[0, 0].tolist() == [[1, 1], [0, 1]]


def test_what_is_decided_of_a_perfect_answer_is_the_label() -> None:
    """Masks of a label map as probabilities give the label map back, as far as a file of them can hold it."""
    values = np.array([0, 1, 2, 3])
    index = torch.arange(4).view(1, 1, 4, 1, 1)
    assert (NESTED.decide(NESTED.target(index)[0].float()).ravel() == values).all()
    masks = CROSSING.decide(CROSSING.target(index)[0].float())
    assert masks.reshape(4, 2).tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_targets_of_the_loss() -> None:
    index = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 3, 1, 1)
    assert LABELS.target(index) is index
    found = Classes((0, 1, 3), ((1, 3), (3,))).target(index)
    assert found.dtype == torch.float32 and found.shape == (1, 2, 3, 1, 1)
    assert found.view(2, 3).tolist() == [[0, 1, 1], [0, 0, 1]]


def test_activation() -> None:
    logits = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(LABELS.activate(logits).sum(1), torch.ones(2, 4, 4, 4))
    torch.testing.assert_close(NESTED.activate(logits), torch.sigmoid(logits))


@KINDS
def test_votes_are_ones_and_zeros_that_decide_the_same(classes: Classes) -> None:
    torch.manual_seed(0)
    probabilities = classes.activate(torch.randn(1, classes.outputs, 6, 5, 4))[0]
    votes = classes.votes(probabilities)
    assert votes.shape == probabilities.shape and set(votes.unique().tolist()) == {0.0, 1.0}
    if classes is not NESTED:
        assert (classes.decide(votes) == classes.decide(probabilities)).all()
    if not classes.regions:
        assert (votes.sum(0) == 1).all()


@KINDS
def test_nothing_lies_outside(classes: Classes) -> None:
    block = classes.outside(torch.full((classes.outputs, 3, 4, 5), 0.9), 1, torch.tensor([0, 3]))
    decided = classes.decide(block)
    assert (decided[:, [0, 3]] == 0).all()
    assert (decided[:, 1:3] != 0).any() or classes is LABELS  # a tie of labels is background
    assert float(block[-1, 0, 1, 0]) == pytest.approx(0.9)


def test_dice_of_logits_by_key() -> None:
    label = np.array([[[0, 1, 2, 2]]], np.uint8)  # indices: values 0, 1, 3, 3
    logits = torch.tensor([[3.0, 0, 0, 3], [0, 3, 0, 0], [0, 0, 3, 0]]).view(3, 1, 1, 4)
    assert LABELS.dice(logits, label) == {"1": 1.0, "3": pytest.approx(2 / 3)}
    logits = torch.tensor([[-1.0, 1, 1, 1], [-1, 1, 1, -1]]).view(2, 1, 1, 4)
    found = Classes((0, 1, 3), ((1, 3), (3,))).dice(logits, label)
    assert found == {"1": 1.0, "2": pytest.approx(2 * 1 / (2 + 2))}


def test_left_and_right_change_places() -> None:
    assert Classes((0, 1, 3, 5)).mirrored([[1, 5]]) == [0, 3, 2, 1]
    assert Classes((0, 1, 2, 3)).mirrored([]) == [0, 1, 2, 3]
    sided = Classes((0, 1, 2, 3, 4), ((1, 2), (3, 4), (2, 4), (1, 2, 3, 4)))
    assert sided.mirrored([[1, 3], [2, 4]]) == [1, 0, 2, 3]
    with pytest.raises(InputError, match=r"region of values \[1, 2\] has no counterpart"):
        CROSSING.mirrored([[1, 3], [2, 4]])


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal"])
@KINDS
def test_the_loss_is_least_where_the_answer_is_right(classes: Classes, loss: str) -> None:
    index = torch.randint(0, len(classes.values), (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    masks = classes.target(index)
    if not classes.regions:
        masks = torch.nn.functional.one_hot(index[:, 0].long(), 3).movedim(-1, 1).float()
    settings = {"loss": loss, "dice_share": 0.5, "label_values": list(classes.values), "regions": classes.regions}
    measure = build_loss(settings)
    right, wrong = 20 * masks - 10, 10 - 20 * masks
    assert measure([right, right[..., 1::2, 1::2, 1::2]], index) < 0.1
    assert measure([right], index) < measure([0 * right], index) < measure([wrong], index)


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal"])
@KINDS
def test_a_loss_of_equal_shares_is_the_plain_sum_of_its_two(classes: Classes, loss: str) -> None:
    random = torch.Generator().manual_seed(0)
    index = torch.randint(0, len(classes.values), (2, 1, 4, 4, 4), generator=random).float()
    logits = torch.randn(2, len(classes.regions or classes.values), 4, 4, 4, generator=random)
    settings = {"loss": loss, "label_values": list(classes.values), "regions": classes.regions}
    both, dice, other = (float(build_loss({**settings, "dice_share": s})([logits], index)) for s in (0.5, 1, 0))
    options = {"sigmoid": True} if classes.regions else {"softmax": True, "to_onehot_y": True}
    plain = DiceLoss(include_background=bool(classes.regions), batch=True, **options)
    assert dice == pytest.approx(2 * float(plain(logits, classes.target(index))))
    assert both == pytest.approx(0.5 * dice + 0.5 * other) and 0 < other != pytest.approx(dice)
