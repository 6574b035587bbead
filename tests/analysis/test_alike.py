"""Where labels lie, and which of them look alike on opposite sides of an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from autoseg.analysis import CaseExtras, CaseReport, Place, examine, summarize
from autoseg.analysis.alike import alike_across
from autoseg.datalist import load_datalist
from autoseg.demo import make_demo_data
from autoseg.records import Case

WriteCase = Callable[..., Case]  # see conftest.py


def places_of(case: Case) -> dict[int, Place]:
    (report,) = examine([case], workers=1, cache_dir=None, notify=lambda event: None)
    assert report.extras is not None
    return report.extras.places


def test_places_are_in_mm_along_ras_axes(write_case: WriteCase) -> None:
    """The same volume stored RAS, LPS and (A, S, R)."""
    label = np.random.default_rng(0).choice([0, 0, 0, 1, 2, 7], (12, 10, 8)).astype(np.int16)
    label[:2], label[0, 0, 0] = 0, -3
    image = np.ones(label.shape, np.int16)
    ras = np.diag([2.0, 1.5, 3.0, 1.0])
    lps = np.array([[-2.0, 0, 0, 22], [0, -1.5, 0, 13.5], [0, 0, 3, 0], [0, 0, 0, 1]])
    asr = np.array([[0, 0, 2.0, 0], [1.5, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    stored = [(ras, label), (lps, label[::-1, ::-1].copy()), (asr, label.transpose(1, 2, 0).copy())]
    for number, (affine, data) in enumerate(stored):
        found = places_of(write_case(f"c{number}", image=image.reshape(data.shape), label=data, affine=affine))
        assert list(found) == [1, 2, 7]
        for value, place in found.items():
            points = np.argwhere(label == value) * [2.0, 1.5, 3.0]
            assert place.centre == pytest.approx(points.mean(axis=0))
            assert place.spread == pytest.approx(points.std(axis=0))


def test_places_of_large_pictures_and_of_no_label(write_case: WriteCase) -> None:
    label = np.zeros((600, 500), np.uint8)
    label[100:401, 50:61], label[7, 9] = 3, 5
    found = places_of(write_case("picture", image=np.ones(label.shape, np.int16), label=label))
    assert found[3].centre == pytest.approx((250, 55)) and found[3].spread == pytest.approx((86.89, 3.162), rel=1e-3)
    assert found[5] == Place((7.0, 9.0), (0.0, 0.0))
    assert places_of(write_case("empty", label=np.zeros((12, 10, 8), np.uint8))) == {}
    assert places_of(write_case("none", label=None)) == {}


Label = tuple[Sequence[float], float, float, float]  # centre, spread, voxels, mean intensity (its deviation is 10)


def case_of(labels: Mapping[int, Label], scale: float = 1.0) -> CaseReport:
    """A report of one case of 2 mm voxels that holds `labels`; `scale`: of its intensities."""
    places = {value: Place(tuple(centre), (spread,) * len(centre)) for value, (centre, spread, _, _) in labels.items()}
    shades = [{"image_intensity": [{"mean": scale * mean, "stdev": scale * 10}]} for *_, mean in labels.values()]
    stats = {"label_stats": {"labels": list(labels), "label": shades}}
    counts = {value: int(voxels) for value, (_, _, voxels, _) in labels.items()}
    shape = (9,) * len(next(iter(places.values())).centre)
    sizes = ((2.0,) * len(shape), shape, shape, 0.1, (3,) * len(shape))
    extras = CaseExtras(1, "int16", "RAS", *sizes, (), (), False, places)  # type: ignore[arg-type]
    return CaseReport("c", ("c.nii.gz",), "l.nii.gz", counts=counts, monai=stats, extras=extras)


def pairs_of(cases: Sequence[Mapping[int, Label]], values: Sequence[int] = range(10)) -> list[list[list[int]]]:
    return alike_across([case_of(labels, 10.0**number) for number, labels in enumerate(cases)], values, 1)


def left(**changes: object) -> Label:
    return tuple({"centre": (20, 50, 50), "spread": 5, "voxels": 900, "mean": 100, **changes}.values())  # type: ignore[return-value]


def right(**changes: object) -> Label:
    return left(**{"centre": (80, 52, 48), "voxels": 1100, "mean": 104, **changes})


def test_a_pair_looks_alike_on_opposite_sides() -> None:
    """By case: intensities are of another scale in each."""
    assert pairs_of([{1: left(), 2: right()}] * 3) == [[[1, 2]], [], []]
    assert pairs_of([{1: left(), 2: right(), 3: left(centre=(50, 50, 90))}] * 3) == [[[1, 2]], [], []]
    tall = {1: left(), 2: left(centre=(22, 48, 99))}
    assert pairs_of([tall] * 3) == [[], [], [[1, 2]]]
    assert pairs_of([{1: left(centre=(20, 50)), 2: right(centre=(80, 48))}] * 3) == [[[1, 2]], [], []]
    assert pairs_of([{1: left(), 2: right()}] * 3, values=[0, 1]) == [[], [], []]


SWAPPED: dict[int, Label] = {1: left(centre=(80, 50, 50)), 2: right(centre=(20, 50, 50))}


@pytest.mark.parametrize(
    "cases",
    [
        [{1: left(), 2: right()}] * 2,
        [{1: left(), 2: right()}] * 4 + [{1: left()}] * 5,
        [{1: left(voxels=8000), 2: right()}] * 5,
        [{1: left(mean=130), 2: right()}] * 5,
        [{1: left(), 2: right()}, SWAPPED] * 3,
        [{1: left(), 2: right()}] * 6 + [SWAPPED],
        [{1: left(), 2: right(centre=(80, 100, 50))}] * 5,
        [{1: left(spread=20), 2: left(centre=(40, 50, 50), spread=20)}] * 5,
        [{1: left(), 2: right(), 3: left(centre=(22, 50, 50), spread=9, mean=30)}] * 5,
    ],
    ids=["few", "seldom", "volume", "intensity", "either side", "some swapped", "aslant", "one in another", "held"],
)
def test_no_pair(cases: list[Mapping[int, Label]]) -> None:
    assert pairs_of(cases) == [[], [], []]


def test_partners_lie_about_the_middle_and_are_the_most_alike() -> None:
    row = {value: left(centre=(20 * value, 50, 50)) for value in (1, 2, 3, 4)}
    assert pairs_of([row] * 3)[0] == [[1, 4], [2, 3]]
    three = {1: left(), 2: left(centre=(22, 60, 50), voxels=500), 3: left(centre=(80, 50, 50), voxels=500)}
    assert pairs_of([three] * 3, [1, 2, 3]) == pairs_of([three] * 3, [3, 2, 1]) == [[[2, 3]], [], []]


def test_generated_data_have_pairs_along_two_axes(tmp_path: Path) -> None:
    shape, labels = (56, 56, 48), (1, 2, 3, 4, 5)
    datalist = load_datalist(str(make_demo_data(tmp_path, labels=labels, shape=shape, training=8, testing=0)))
    reports = examine(datalist.training, workers=1, cache_dir=None, notify=lambda event: None)
    stats, _ = summarize(reports, datalist.labels)
    assert stats["autoseg"]["alike_across"] == [[[2, 3]], [[4, 5]], []]


@pytest.mark.parametrize(
    ("name", "pairs"), [("Task04_Hippocampus", [[], [[1, 2]], []]), ("HeadNeckCT", [[[3, 4]], [], [[1, 2]]])]
)
def test_pairs_of_real_data(shared_dataset: Callable[[str], Path], name: str, pairs: list[list[list[int]]]) -> None:
    """Anterior and posterior hippocampus; the parotids, and the brainstem above the spinal cord, alike in CT."""
    datalist = load_datalist(shared_dataset(name) / "datalist.json")
    reports = examine(datalist.training[:24], workers=1, cache_dir=None, notify=lambda event: None)
    assert summarize(reports, datalist.labels)[0]["autoseg"]["alike_across"] == pairs
