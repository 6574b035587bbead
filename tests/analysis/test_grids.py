"""Channels of differing grids, and grids of every size: micrometres, one slice, thousands of slices, oblique axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autoseg.analysis import CaseReport, examine, summarize
from autoseg.analysis.volumes import coverage, make_grid, onto_grid
from autoseg.planning import read_statistics
from autoseg.planning.patch import target_spacing
from autoseg.records import Case

WriteCase = Callable[..., Case]  # see conftest.py
NOT_TURNED, ROTATION = np.eye(3), np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def affine_of(
    spacing: tuple[float, ...], origin: tuple[float, ...] = (0, 0, 0), turn: np.ndarray | None = None
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def report_of(case: Case) -> CaseReport:
    (report,) = examine([case], workers=1, cache_dir=None, notify=lambda event: None)
    return report


def ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A value that is linear in space, so that linear interpolation gives it back."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return np.asarray(places @ [1.0, 2.0, -0.5] + 40, np.float32)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((24, 20, 8), affine_of((0.5, 0.5, 2))),
        ((14, 12, 18), affine_of((-1, -1, 1), (12, 10, -1))),  # stored LPS, larger
        ((30, 30, 18), affine_of((1, 1, 1), (4, -12, -1), ROTATION)),
    ],
)
def test_channels_are_resampled_onto_the_first(
    write_case: WriteCase, shape: tuple[int, ...], affine: np.ndarray
) -> None:
    own = make_grid((12, 10, 16), affine_of((1, 1, 1)))
    moved = onto_grid(ramp(shape, affine), make_grid(shape, affine), own)
    inside = (slice(1, -1),) * 3  # the edge may lie beyond the other grid's outermost voxel centres
    assert moved.shape == own.shape and np.allclose(moved[inside], ramp(own.shape, own.affine)[inside], atol=1e-3)
    first = write_case("a", image=ramp(own.shape, own.affine))
    second = write_case("b", image=ramp(shape, affine), affine=affine)
    report = report_of(replace(first, image=(*first.image, *second.image)))
    assert report.faults == () and len(report.warnings) == 1 and report.extras is not None
    assert (report.extras.channels, report.extras.shape) == (2, (12, 10, 16))
    one, other = report.monai["image_stats"]["intensity"]
    assert other["mean"] == pytest.approx(one["mean"], abs=0.5)
    stats, _ = summarize([report])
    assert read_statistics(stats).image_files == 2


def test_coverage() -> None:
    whole = make_grid((10, 10, 10), affine_of((1, 1, 1)))
    assert coverage(whole, whole) == 1
    assert coverage(make_grid((20, 20, 5), affine_of((0.5, 0.5, 2), (-0.25, -0.25, 0.5))), whole) == 1
    assert coverage(make_grid((10, 10, 5), affine_of((1, 1, 1))), whole) == 0.5
    assert coverage(make_grid((10, 10, 10), affine_of((1, 1, 1), (0, 0, 30))), whole) == 0
    assert coverage(make_grid((100, 100, 100), affine_of((1, 1, 1), (-50, -50, -50), ROTATION)), whole) == 1


@pytest.mark.parametrize(
    ("shape", "spacing", "turn"),
    [
        ((12, 10, 8), (0.0005, 0.0005, 0.002), NOT_TURNED),
        ((12, 10, 8), (0.3, 0.3, 0.3), ROTATION),
        ((12, 10, 1), (0.7, 0.7, 5), NOT_TURNED),
        ((1, 10, 12), (4, 0.7, 0.7), NOT_TURNED),
        ((16, 16, 3000), (1, 1, 0.25), NOT_TURNED),
        ((12, 10, 8), (0.05, 9, 30), NOT_TURNED),
    ],
)
def test_grids_of_every_size(
    write_case: WriteCase, shape: tuple[int, ...], spacing: tuple[float, ...], turn: np.ndarray
) -> None:
    affine = affine_of(spacing, (1, -2, 3), turn)
    label = np.zeros(shape, np.uint8)
    label[:, 2:5, shape[2] // 2 :] = 3
    report = report_of(write_case("a", image=np.ones(shape, np.int16) + label, label=label[..., None], affine=affine))
    assert report.faults == () and report.extras is not None
    assert report.extras.shape == shape and np.allclose(report.extras.spacing, spacing, rtol=1e-5)
    assert report.counts[3] == int((label == 3).sum())
    assert report.extras.foreground_extent == (shape[0], 3, shape[2] - shape[2] // 2)
    assert np.allclose(report.monai["image_stats"]["sizemm"], np.multiply(shape, spacing), rtol=1e-5)
    found = read_statistics(summarize([report])[0])
    assert np.allclose(target_spacing(found)[0], spacing, rtol=1e-5) and found.image_dims == 3


def test_a_shift_of_micrometres_matters_among_micrometres(write_case: WriteCase) -> None:
    fine = affine_of((0.0005, 0.0005, 0.0005))
    moved = affine_of((0.0005, 0.0005, 0.0005), (0.0004, 0, 0))
    (fault,) = report_of(write_case("a", affine=fine, label_affine=moved)).faults
    assert fault.field == "affine" and "0.0004 mm" in fault.message


def test_spacings_that_vary(write_case: WriteCase) -> None:
    sides = [(0.1, 0.1, 0.1), (1, 1, 1), (1, 1, 10)]
    reports = [report_of(write_case(f"c{i}", affine=affine_of(side))) for i, side in enumerate(sides)]
    found = read_statistics(summarize(reports)[0])
    assert np.allclose(found.spacing_median, (1, 1, 1)) and found.spacing_low[2] < 0.11 and found.spacing_high[2] > 9


def test_more_than_four_dimensions_are_refused(write_case: WriteCase) -> None:
    (fault,) = report_of(write_case("a", image=np.ones((6, 5, 4, 1, 2), np.int16), label=None)).faults
    assert "5 dimensions (6 x 5 x 4 x 1 x 2)" in fault.message
