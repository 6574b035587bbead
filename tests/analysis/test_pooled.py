"""Distributions against NumPy, and the section `autoseg` of datastats.yaml against volumes made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoseg.analysis import examine, summarize
from autoseg.analysis.intensity import (
    Distribution,
    LabelMap,
    bounding_box,
    distributions,
    monai_intensity,
    pool,
    prepare_channel,
)
from autoseg.errors import InputError
from autoseg.records import Case
from autoseg.workspace import read_yaml, write_yaml

WriteCase = Callable[..., Case]  # see conftest.py


@pytest.mark.parametrize("kind", ["int16", "uint8", "scaled", "negative slope", "float", "wide", "whole"])
@pytest.mark.parametrize("rank", [2, 3])
def test_distributions_are_exact(kind: str, rank: int) -> None:
    rng = np.random.default_rng(3)
    shape = (17, 13, 11)[:rank]
    raw = rng.normal(20, 9, shape)
    dtype = {"uint8": np.uint8, "float": np.float32, "wide": np.int32, "whole": np.float32}.get(kind, np.int16)
    raw = (raw * (1_000_000 if kind == "wide" else 1)).astype(dtype)
    if kind == "whole":
        raw = np.rint(raw)
    slope, inter = {"scaled": (0.25, -7.0), "negative slope": (-2.0, 3.0)}.get(kind, (1.0, 0.0))
    label = rng.integers(-1, 4, shape).astype(np.int8)
    label[label == 2] = 9
    channel = prepare_channel(np.asfortranarray(raw), slope, inter)
    assert (channel.levels is None) == (kind in ("float", "wide", "negative slope"))
    expected = (raw * slope + inter).astype(np.float32).astype(np.float64)
    box = tuple(slice(2, n - 3) for n in shape)
    label_map = LabelMap(label, tuple(int(v) for v in np.unique(label)))
    found = dict(distributions(channel, label_map, box))
    assert list(found) == ["whole", "cropped", "foreground", -1, 0, 1, 3, 9]
    parts = {"whole": expected.ravel(), "cropped": expected[box].ravel(), "foreground": expected[label > 0]}
    parts |= {value: expected[label == value] for value in (-1, 0, 1, 3, 9)}
    for key, values in parts.items():
        stats = monai_intensity(found[key])
        assert found[key].n == values.size
        assert stats["mean"] == pytest.approx(values.mean()) and stats["stdev"] == pytest.approx(values.std())
        assert stats["percentile"] == pytest.approx(list(np.percentile(values, [0.5, 10, 90, 99.5])))
        assert (stats["min"], stats["max"]) == (values.min(), values.max())
        assert stats["median"] == np.sort(values)[(values.size - 1) // 2]
    threshold = float(np.median(expected))
    above = expected > threshold
    ends = [np.flatnonzero(above.any(axis=tuple(a for a in range(rank) if a != axis))) for axis in range(rank)]
    assert bounding_box(channel.data, channel.above(threshold)) == tuple(slice(e[0], e[-1] + 1) for e in ends)
    assert bounding_box(channel.data, channel.above(float(expected.max()))) is None
    nonzero = expected[expected != 0]
    assert found["whole"].without_zero().n == nonzero.size


def test_a_pool_is_none_without_voxels() -> None:
    assert pool(Distribution(np.zeros(0))) is None
    assert pool(Distribution(np.arange(3.0), np.array([0, 0, 0]))) is None


def section(cases: list[Case], labels: dict[int, str] | None = None) -> dict[str, object]:
    reports = examine(cases, workers=1, cache_dir=None, notify=lambda event: None)
    return summarize(reports, labels=labels)[0]["autoseg"]


def test_geometry_is_in_ras_order(write_case: WriteCase) -> None:
    """File axes are (A, S, R): the RAS order of size (12, 10, 8) is (8, 12, 10)."""
    affine = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    image = np.full((12, 10, 8), -1000, np.int16)
    image[2:9, 3:5, 1:7] = 40
    label = np.zeros((12, 10, 8), np.uint8)
    label[4:9, 3:5, 2:5] = 1
    stats = section([write_case("c", image=image, label=label, affine=affine)])
    assert stats["shape"]["median"] == [8, 12, 10]
    assert stats["spacing"]["percentile_10"] == [3, 1, 2]
    assert stats["cropped_shape"]["max"] == [6, 7, 2]
    assert stats["foreground_extent"] == {"median": [3, 5, 2], "max": [3, 5, 2]}
    assert stats["foreground_fraction_median"] == pytest.approx(30 / 960)
    assert stats["orientation"] == {"ASR": 1} and stats["dtype"] == {"int16": 1}


def test_pooled_intensities_weigh_cases_alike(write_case: WriteCase) -> None:
    """As nnU-Net: as many voxels of each case, whatever its foreground holds; here checked against such a draw."""
    rng = np.random.default_rng(0)
    cases, draws = [], []
    for number, (size, mean) in enumerate(((4, 0.0), (9, 500.0), (7, 1500.0))):
        image = rng.normal(mean, 90, (24, 24, 24)).astype(np.float32 if number else np.int16)
        label = np.zeros((24, 24, 24), np.uint8)
        label[:size, :size, :size] = 1
        cases.append(write_case(f"c{number}", image=image, label=label))
        draws.append(rng.choice(image[label > 0], 20_000))
    (stats,) = section(cases)["intensity_foreground"]
    drawn = np.concatenate(draws)
    keys = ["mean", "std", "min", "median", "max", "percentile_00_5", "percentile_99_5", "label_median", "label_std"]
    assert list(stats) == keys
    assert stats["label_median"] == pytest.approx(np.mean([0, 500, 1500]), abs=30)
    assert stats["label_std"] == pytest.approx(90, abs=10)
    assert stats["mean"] == pytest.approx(drawn.mean(), abs=5) and stats["std"] == pytest.approx(drawn.std(), abs=5)
    for key, percent in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
        assert stats[key] == pytest.approx(np.percentile(drawn, percent), abs=20), key
    assert (stats["min"], stats["max"]) == (drawn.min(), drawn.max())


def test_counts_by_label_and_channels(write_case: WriteCase) -> None:
    image = np.zeros((12, 10, 8, 2), np.float32)
    image[..., 0][:4] = 5.5
    cases = [
        write_case("a", image=image + 1e-3),
        write_case("b", image=image, label=None),
        write_case("c", image=image),
    ]
    stats = section(cases, {1: "liver", 2: "tumour", 6: "Gefäß"})
    assert stats["schema_version"] == 1 and stats["n_cases"] == 3 and stats["channels"] == 2
    assert stats["voxels"] == {"0": 2 * 920, "1": 48, "2": 32, "6": 0}
    assert stats["cases_with_label"] == {"0": 2, "1": 2, "2": 2, "6": 0}
    assert stats["label_values"] == [0, 1, 2, 6]
    assert stats["labels"] == {"1": "liver", "2": "tumour", "6": "Gefäß"}
    assert len(stats["intensity_foreground"]) == len(stats["intensity_nonzero"]) == 2
    assert stats["intensity_nonzero"][0]["min"] == pytest.approx(1e-3)
    assert stats["intensity_nonzero"][1]["max"] == pytest.approx(1e-3)  # zeros of the other cases are left out


def test_planning_reads_it_from_the_file(write_case: WriteCase, tmp_path: Path) -> None:
    from autoseg.planning import read_statistics

    reports = examine([write_case("a"), write_case("b")], workers=1, cache_dir=None, notify=lambda event: None)
    datastats, _ = summarize(reports, labels={1: "liver", 2: "tumour"})
    write_yaml(tmp_path / "datastats.yaml", datastats, versioned=False)
    stats = read_statistics(read_yaml(tmp_path / "datastats.yaml"))
    assert stats.shape_median == (12, 10, 8) and stats.label_values == (0, 1, 2) and stats.voxels["1"] == 48
    datastats["autoseg"]["alike_across"] = [[[1, 2]], [], []]
    assert read_statistics(datastats).alike_across == (((1, 2),), (), ())
    del datastats["autoseg"]["alike_across"]  # as versions before wrote it
    assert read_statistics(datastats).alike_across == ((), (), ())
    plain = {key: value for key, value in datastats.items() if key != "autoseg"}
    assert read_statistics(plain).shape_median == stats.shape_median


def test_unreadable_cases_are_left_out_aloud(write_case: WriteCase, caplog: pytest.LogCaptureFixture) -> None:
    good, gone = write_case("good"), Case("gone", ("/no/such/file.nii.gz",))
    assert section([good, gone])["n_cases"] == 1
    assert "case gone could not be read" in caplog.text
    with pytest.raises(InputError, match="no case could be read"):
        section([gone])
