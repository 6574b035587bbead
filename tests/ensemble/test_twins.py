"""What is said of probabilities out of fold, in numpy, is what the predictor says of them, in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.engine.classes import Classes
from autoseg.engine.expected import ExpectedDice
from autoseg.engine.out_of_fold import Collector
from autoseg.engine.predictor import tempered
from autoseg.ensemble import calibration
from autoseg.ensemble.answers import Answers, Mixture, expected
from autoseg.ensemble.selecting import at_temperature
from autoseg.evaluation import Scored

SHAPE, LABELS = (18, 16, 9), (1, 2, 4)
NESTED, APART = ((1, 2, 4), (2, 4), (4,)), ((1, 2), (2, 4))
SETTINGS = {
    "classes": {"label_values": [0, *LABELS], "regions": None},
    "nested": {"label_values": [0, *LABELS], "regions": [list(region) for region in NESTED]},
    "apart": {"label_values": [0, *LABELS], "regions": [list(region) for region in APART]},
}


def probabilities(settings: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """Smooth ones [K, ...], of classes with background first: most are under 1 % somewhere beside another's border."""
    generator = np.random.default_rng(seed)
    outputs = len(settings["regions"] or settings["label_values"])
    smooth = ndimage.gaussian_filter(generator.normal(size=(outputs, *SHAPE)), (0, 2, 2, 2))
    logits = torch.from_numpy(9 * smooth / smooth.std()).float()
    if settings["regions"]:
        return torch.sigmoid(logits - 6)
    logits[0] += 4
    return torch.softmax(logits, 0)


def mixture_of(p: torch.Tensor, settings: dict[str, Any]) -> tuple[Mixture, Scored]:
    """What is kept of them, with a reference of nothing."""
    classes = Classes.of({**settings, "class_names": {}})
    scored = classes.scored
    collector = Collector(0, 0 if classes.regions else 1)
    collector.add(p, 0)
    blank = np.zeros(SHAPE, np.uint32 if classes.regions else np.uint8)
    taken = collector.taken(blank, scored, (1, 1, 1))
    assert taken is not None
    return Mixture(taken.probabilities.astype(np.float32), taken.reference, taken.total, 1.0), scored


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.9])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_what_is_expected_at_a_temperature(kind: str, temperature: float) -> None:
    settings = SETTINGS[kind]
    p = probabilities(settings)
    classes = Classes.of({**settings, "class_names": {}})
    hoped = ExpectedDice(classes)
    hoped.add(p if temperature == 1.0 else tempered(p.clone(), temperature, bool(classes.regions)))
    mixture, scored = mixture_of(p, settings)
    answers = Answers({}, {}, scored, np.inf)
    decided = answers.decided(mixture.probabilities)
    found = expected(at_temperature(mixture, temperature, bool(scored.regions)), decided, scored)
    for key, value in hoped.by_key().items():
        assert value is not None and found[str(key)] == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_what_is_decided(kind: str) -> None:
    settings = SETTINGS[kind]
    p = probabilities(settings)
    classes = Classes.of({**settings, "class_names": {}})
    mixture, scored = mixture_of(p, settings)
    answers = Answers({}, {}, scored, np.inf)
    assert mixture.probabilities.shape[1:] == SHAPE  # the box is all
    decided = answers.decided(mixture.probabilities)
    whole = classes.decide(p)
    if kind == "apart":
        wanted = {key: whole[..., number] > 0 for number, key in enumerate(scored.names)}
    elif kind == "nested":  # the smallest value that no inner region has
        wanted = {key: np.isin(whole, region) for key, region in zip(scored.names, NESTED, strict=True)}
    else:
        wanted = {key: whole == key for key in scored.names}
    for key, mask in wanted.items():
        assert mask.any() and np.array_equal(scored.mask(decided, key), mask)


def test_what_is_true_is_not_taken_for_impossible_beside_another_label() -> None:
    """A label under 1 % where another one has the voxel counts with its probability, not as 0."""
    p = torch.zeros(3, *SHAPE)
    p[0] = 1.0
    p[:, 4:8, 4:8, 4] = torch.tensor([0.045, 0.95, 0.005]).view(3, 1, 1)
    mixture, scored = mixture_of(p, {"label_values": [0, 1, 2], "regions": None})
    mixture = mixture._replace(reference=np.full_like(mixture.reference, 2))
    table, truth = calibration.drawn(mixture, scored)
    assert table[0] == pytest.approx([0.045, 0.95, 0.005], abs=1e-3)
    assert calibration.likelihood(table, truth, 1.0) == pytest.approx(-np.log(0.005), abs=0.01)
