"""Which ensemble out-of-fold probabilities choose; figures by hand, from files as trainings write them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.bundles.marks import out_of_fold_file
from autoseg.engine.classes import Classes
from autoseg.engine.combination import PostProcessing
from autoseg.engine.out_of_fold import OutOfFold
from autoseg.ensemble import calibration
from autoseg.ensemble.__main__ import choose
from autoseg.ensemble.answers import Answers, NoTimeError
from autoseg.ensemble.clearing import _whole_components
from autoseg.ensemble.members import ALL, BEST_BY_FOLD, BEST_N
from autoseg.ensemble.methods import BEST_FAMILY, GREEDY, Methods, Network, nested, parts
from autoseg.ensemble.selecting import Selection, select
from autoseg.errors import NoResultError
from autoseg.evaluation import Scored
from autoseg.evaluation.regions import bits_of_channels, bits_of_labels
from autoseg.workspace import read_json, restored, write_json

SHAPE, CASES, FOLDS = (14, 14, 6), 16, 2
LABELS = Scored({1: "a", 2: "b"})
FOLD = {f"case_{n:02d}": n % FOLDS for n in range(CASES)}
Noise = Callable[[str, int], tuple[float, float]]  # by family and label: deviation of its logits, their scale


def truth(number: int) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[2:7, 3:10, 1:5], found[7:11, 3 : 9 + number % 3, 1:5] = 1, 2
    return found


def write(root: Path, families: dict[str, Noise], seed: int = 0, extra: bool = False) -> Answers:
    """Files of families whose logits are right but for smooth noise; with `extra`, an island of label 2 in each."""
    for family, noise in families.items():
        for case, fold in FOLD.items():
            number = int(case[-2:])
            generator = np.random.default_rng([seed, number, len(family), ord(family[-1])])
            labels = truth(number)
            logits = np.stack([(labels == value) * 4.0 for value in range(3)])
            for label in (1, 2):
                deviation, _ = noise(family, label)
                smooth = ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.0)
                logits[label] += deviation * smooth / smooth.std()
            if extra:
                logits[2, 12:14, 12:14, 0] = 9.0
            logits *= noise(family, 0)[1]
            p = np.exp(logits) / np.exp(logits).sum(0)
            totals = {label: int((labels == label).sum()) for label in (1, 2)}
            found = OutOfFold(p[1:].astype(np.float16), (0, 0, 0), labels, totals, 1.0)
            found.save(out_of_fold_file(root / f"{family}_{fold}", case))
    bundles = {family: {fold: root / f"{family}_{fold}" for fold in range(FOLDS)} for family in families}
    return Answers(bundles, FOLD, LABELS, math.inf)


def networks(answers: Answers, seconds: float = 1.0) -> list[Network]:
    return [Network(f"{f}_{fold}", f, fold, seconds) for f in answers.families for fold in range(FOLDS)]


def alike(deviation: float, scale: float = 1.0) -> Noise:
    return lambda family, label: (deviation, scale)


def test_families_that_err_apart_are_mixed_and_the_gain_is_said(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0), "b": alike(3.0), "worse": alike(30.0)})
    found = select(answers, Methods(answers, networks(answers), n_best=2))
    values = {one.method: one for one in found.candidates}
    assert set(values) == {BEST_FAMILY, BEST_BY_FOLD, BEST_N, ALL, GREEDY}
    assert found.method == GREEDY and set(found.weights) == {"a_0", "a_1", "b_0", "b_1"}
    assert found.chosen.gain[1] > 0 and values[BEST_FAMILY].gain == (0, 0, 0)
    assert values[ALL].mean_dice < found.chosen.mean_dice and values[ALL].seconds == 6 and found.chosen.seconds == 4
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-5) and found.weights["a_0"] == found.weights["a_1"]


def test_one_family_is_taken_whole(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0)})
    found = select(answers, Methods(answers, networks(answers), n_best=5))
    assert found.method == BEST_FAMILY and found.weights == {"a_0": 0.5, "a_1": 0.5}
    assert {one.mean_dice for one in found.candidates} == {found.chosen.mean_dice}


def test_dice_is_that_of_the_whole_image(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(2.0)})
    (scores,) = answers.scores([(1.0,)])
    case = "case_03"
    stored = OutOfFold.load(answers.files[case]["a"])
    p = stored.probabilities.astype(np.float32)
    decided = np.concatenate([1 - p.sum(0, keepdims=True), p]).argmax(0)
    reference = truth(3)
    for label in (1, 2):
        a, b = decided == label, reference == label
        assert scores[case][str(label)] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    cut = OutOfFold(stored.probabilities[:, :5], (0, 0, 0), reference[:5], stored.total, 1.0)
    cut.save(answers.files[case]["a"])  # the reference beyond the box counts
    (scores,) = Answers({"a": {0: tmp_path / "a_0", 1: tmp_path / "a_1"}}, FOLD, LABELS, math.inf).scores([(1.0,)])
    a, b = decided[:5] == 2, reference == 2
    assert scores[case]["2"] == 2 * (a & b[:5]).sum() / (a.sum() + b.sum())


def test_boxes_of_families_are_put_together(tmp_path: Path) -> None:
    reference = truth(0)
    totals = {label: int((reference == label).sum()) for label in (1, 2)}
    p = np.stack([reference == 1, reference == 2]).astype(np.float16)
    for family, low, high in (("a", 2, 8), ("b", 5, 12)):
        for case, fold in FOLD.items():
            cut = OutOfFold(p[:, low:high], (low, 0, 0), reference[low:high], totals, 1.0)
            cut.save(out_of_fold_file(tmp_path / f"{family}_{fold}", case))
    answers = Answers({f: {n: tmp_path / f"{f}_{n}" for n in range(2)} for f in "ab"}, FOLD, LABELS, math.inf)
    mixture = answers.mixture("case_00", (0.25, 0.75))
    share = np.zeros(10)
    share[:6] += 0.25
    share[3:] += 0.75
    assert np.allclose(mixture.probabilities, p[:, 2:12] * share[:, None, None], atol=1e-3)
    assert np.array_equal(mixture.reference, reference[2:12])


def test_a_case_is_judged_by_a_choice_that_has_not_seen_it(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0)})
    methods = Methods(answers, networks(answers), 5)
    seen: list[tuple[str, ...]] = []

    def way(cases: Any) -> dict[str, float]:
        seen.append(tuple(cases))
        return {"a_0": 1.0}

    assert set(nested(answers, methods, way)[1]) == set(FOLD)
    judged = [case for others, own in parts(answers) for case in own]
    assert sorted(judged) == sorted(FOLD)
    for cases, (others, own) in zip(seen, parts(answers), strict=True):
        assert set(cases) == set(others) and not set(cases) & set(own)
        assert {FOLD[case] for case in own} == {0, 1}


def test_a_choice_by_chance_is_not_praised(tmp_path: Path) -> None:
    """Of families that are alike the best by chance is no better on other cases: its nested figure knows."""
    fitted, honest = [], []
    for seed in range(4):
        answers = write(tmp_path / str(seed), {name: alike(6.0) for name in "abcdef"}, seed)
        methods = Methods(answers, networks(answers), 1)
        way = methods.all_of_them()[BEST_FAMILY]
        singles = answers.scores([methods.shares(dict.fromkeys((f"{f}_0", f"{f}_1"), 1.0)) for f in "abcdef"])
        best = answers.scores([methods.shares(way(answers.cases))])[0]
        fitted.append(np.mean([list(row.values()) for row in best.values()]))
        honest.append(np.mean([list(row.values()) for row in nested(answers, methods, way)[1].values()]))
        assert fitted[-1] >= max(np.mean([list(row.values()) for row in one.values()]) for one in singles) - 1e-9
    assert np.mean(honest) < np.mean(fitted)


@pytest.mark.parametrize(("limit", "most"), [(6.0, 6), (3.5, 3), (2.0, 2), (0.1, 1)])
def test_a_limit_on_prediction_time_holds_for_every_choice(tmp_path: Path, limit: float, most: int) -> None:
    answers = write(tmp_path, {"a": alike(3.0), "b": alike(3.0), "worse": alike(30.0)})
    found = select(answers, Methods(answers, networks(answers), n_best=5, seconds=limit))
    assert all(len(one.members) <= most for one in found.candidates)
    assert max(len(one.members) for one in found.candidates) == most
    assert not {"worse_0", "worse_1"} & set(found.weights)


def test_members_that_are_given_stay(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0), "worse": alike(30.0)})
    given = {"worse_0": 1.0, "a_1": 1.0}
    found = select(answers, Methods(answers, networks(answers), 5), given, "Mine")
    assert (found.method, found.weights) == ("Mine", {"worse_0": 0.5, "a_1": 0.5})
    assert {one.method for one in found.candidates} == {BEST_FAMILY, "Mine"} and found.chosen.gain[2] < 0
    with pytest.raises(NoResultError, match="b_0"):
        select(answers, Methods(answers, networks(answers), 5), {"b_0": 1.0, "a_1": 1.0}, "Mine")


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature(tmp_path: Path, scale: float) -> None:
    """Logits that are `scale` times too large need about that temperature more; which voxels are asked differs."""
    answers = write(tmp_path, {"a": lambda family, label: (3.0, 0.6 * scale)})
    found = select(answers, Methods(answers, networks(answers), 5))
    assert found.likelihood[1] <= found.likelihood[0] * 1.01
    single = write(tmp_path / "one", {"a": lambda family, label: (3.0, 0.6)})
    base = select(single, Methods(single, networks(single), 5)).temperature
    assert found.temperature == pytest.approx(min(4.0, max(0.4, scale * base)), rel=0.35)


def test_post_processing_only_where_it_gains(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", {"a": alike(0.1)})
    assert not select(plain, Methods(plain, networks(plain), 5)).post_processing
    spotted = write(tmp_path / "spotted", {"a": alike(1.0)}, extra=True)
    found = select(spotted, Methods(spotted, networks(spotted), 5))
    assert set(found.post_processing) == {2} and found.gains[2] > 0.01
    rule = found.post_processing[2]
    assert rule.largest or rule.smallest_mm3 > 4
    assert found.mean_dice > found.chosen.mean_dice
    rows = {(row["case"], row["label"]): row["dice"] for row in found.rows}
    assert np.mean(list(rows.values())) == pytest.approx(found.mean_dice, abs=1e-6)


@pytest.mark.parametrize(
    ("regions", "said", "wanted"),
    [
        (((1, 2), (2,)), (0.9, 0.8), 0b11),
        (((1, 2), (2,)), (0.3, 0.8), 0b11),  # what lies within lies in what holds it
        (((1, 2), (2,)), (0.9, 0.4), 0b01),
        (((1, 2, 3), (1,), (2,)), (0.9, 0.8, 0.7), 0b011),  # of two beside each other the likelier
        (((1, 2), (2, 3)), (0.3, 0.8), 0b10),  # no label map holds these: each by itself
        (((1, 2), (2, 3)), (0.2, 0.3), 0b00),
    ],
)
def test_regions_are_decided_as_a_prediction_is(
    regions: tuple[tuple[int, ...], ...], said: tuple[float, ...], wanted: int, tmp_path: Path
) -> None:
    scored = Scored(dict.fromkeys(range(1, len(regions) + 1), ""), regions)
    answers = Answers({}, {}, scored, math.inf)
    p = np.asarray(said, np.float32).reshape(-1, 1, 1, 1)
    assert answers.decided(p).item() == wanted
    classes = Classes((0, 1, 2, 3), regions)
    decided = classes.decide(torch.from_numpy(p))
    held = bits_of_channels(decided) if classes.in_channels else bits_of_labels(decided, regions)
    assert held.item() == wanted


def test_regions(tmp_path: Path) -> None:
    scored = Scored({1: "whole", 2: "core"}, ((1, 2), (2,)))
    for case, fold in FOLD.items():
        labels = truth(int(case[-2:]))
        bits = np.where(labels == 2, 3, np.where(labels == 1, 1, 0)).astype(np.uint32)
        p = np.stack([(labels == 1) * 0.9, (labels == 2) * 0.8]).astype(np.float16)
        totals = {1: int((labels > 0).sum()), 2: int((labels == 2).sum())}
        OutOfFold(p, (0, 0, 0), bits, totals, 1.0).save(out_of_fold_file(tmp_path / f"a_{fold}", case))
    answers = Answers({"a": {0: tmp_path / "a_0", 1: tmp_path / "a_1"}}, FOLD, scored, math.inf)
    found = select(answers, Methods(answers, networks(answers), 5))
    assert found.mean_dice == 1.0 and not found.post_processing
    assert {row["label"] for row in found.rows} == {1, 2} and found.temperature < 1


def test_a_case_of_which_nothing_is_said_and_a_label_that_is_nowhere(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(1.0)})
    nothing = np.zeros((2, 0, 0, 0), np.float16)
    for case, total in (("case_00", {1: 40, 2: 9}), ("case_01", {1: 0, 2: 0})):
        empty = OutOfFold(nothing, (0, 0, 0), np.zeros((0, 0, 0), np.uint8), total, 1.0)
        empty.save(answers.files[case]["a"])
    again = Answers({"a": {0: tmp_path / "a_0", 1: tmp_path / "a_1"}}, FOLD, LABELS, math.inf)
    found = select(again, Methods(again, networks(again), 5))
    rows = {(row["case"], row["label"]): row for row in found.rows}
    assert rows["case_00", 1]["dice"] == 0 and rows["case_01", 1]["dice"] is None
    assert rows["case_00", 1]["expected"] is None and rows["case_01", 2]["expected"] is None


def test_a_family_with_few_cases_and_a_damaged_file(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0), "b": alike(3.0)})
    for case in list(answers.files)[:9]:
        answers.files[case]["b"].unlink()
    answers.files["case_04"]["a"].write_bytes(b"PK torn")
    bundles = {f: {n: tmp_path / f"{f}_{n}" for n in range(2)} for f in "ab"}
    again = Answers(bundles, FOLD, LABELS, math.inf)
    assert again.families == ("a",) and set(again.cases) == set(FOLD) - {"case_04"}


def test_what_is_found_by_the_deadline_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write(tmp_path, {"a": alike(3.0)}, extra=True)
    whole = select(answers, Methods(answers, networks(answers), 5))

    def late(*_: object) -> None:
        raise NoTimeError("no time")

    monkeypatch.setattr("autoseg.ensemble.selecting.Rules", late)
    found = select(answers, Methods(answers, networks(answers), 5))
    assert found.candidates == whole.candidates and found.weights == whole.weights
    assert not found.post_processing and found.temperature == whole.temperature and found.rows


def test_too_few_cases_and_no_time(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0)})
    for path in list(answers.files)[7:]:
        answers.files[path]["a"].unlink()
    few = Answers({"a": {0: tmp_path / "a_0", 1: tmp_path / "a_1"}}, FOLD, LABELS, math.inf)
    with pytest.raises(NoResultError, match="7 cases"):
        select(few, Methods(few, networks(few), 5))
    late = write(tmp_path, {"a": alike(3.0)})
    late.deadline = 0.0
    with pytest.raises(NoTimeError, match="no time"):
        select(late, Methods(late, networks(late), 5))


def test_of_equal_members_those_stay_that_the_cases_say_are_better(tmp_path: Path) -> None:
    """Not the ones that are first on the leaderboard, which knows the cases that are judged."""
    answers = write(tmp_path, {"a": alike(6.0), "b": alike(1.0)})
    methods = Methods(answers, networks(answers), 5, seconds=1.0)
    assert methods.networks[0].family == "a"
    for way in methods.all_of_them().values():
        assert set(way(answers.cases)) <= {"b_0", "b_1"}


def test_a_deadline_while_files_are_read_is_an_answer(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0)})
    spec: dict[str, Any] = {
        "families": {"a": {str(n): str(tmp_path / f"a_{n}") for n in range(FOLDS)}},
        **{"cases": FOLD, "labels": {"1": "a", "2": "b"}, "regions": [], "n_best": 2, "deadline": 0.0},
        "networks": [vars(network) for network in networks(answers)],
        "results": str(tmp_path / "selection.json"),
    }
    choose(spec)
    assert read_json(tmp_path / "selection.json")["no_time"] is True


def test_components_that_the_box_cuts_are_not_small_ones() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 4, 4] = mask[3:5, 3:5, 3:5] = mask[6, 6, 6:8] = True
    assert sorted(_whole_components(mask)) == [2, 8]
    assert sorted(_whole_components(mask[:, :, 4:5])) == [4]  # a picture: cut by its four sides alone
    assert not _whole_components(np.zeros((0, 3, 3), bool)).size


def test_calibration_error() -> None:
    p = np.repeat([0.1, 0.5, 0.9], 1000)
    generator = np.random.default_rng(0)
    assert calibration.calibration_error(p, generator.random(3000) < p) < 0.02
    assert calibration.calibration_error(p, np.ones(3000, bool)) == pytest.approx(0.5)
    assert math.isnan(calibration.calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_the_job_loads_no_torch_and_leaves_a_selection(tmp_path: Path) -> None:
    answers = write(tmp_path, {"a": alike(3.0), "b": alike(3.0)}, extra=True)
    spec: dict[str, Any] = {
        "families": {f: {str(n): str(tmp_path / f"{f}_{n}") for n in range(FOLDS)} for f in "ab"},
        "cases": FOLD,
        "labels": {"1": "a", "2": "b"},
        "regions": [],
        "networks": networks(answers),
        "n_best": 2,
        "seconds": None,
        "results": str(tmp_path / "selection.json"),
    }
    write_json(tmp_path / "spec.json", spec)
    script = "import sys; from autoseg.ensemble.__main__ import main; code = main(['select', sys.argv[1]]); "
    script += "sys.exit('torch' in sys.modules or code)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "spec.json")]).returncode == 0
    found = restored(Selection, read_json(tmp_path / "selection.json"), tmp_path / "selection.json")
    again = select(answers, Methods(answers, networks(answers), 2))
    assert (found.weights, found.post_processing, found.candidates) == (
        again.weights,
        again.post_processing,
        again.candidates,
    )
    assert isinstance(next(iter(found.post_processing.values())), PostProcessing)
