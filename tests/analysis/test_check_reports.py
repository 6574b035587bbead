"""Every way a data set can be wrong is named, with its file and what mends it; several at once."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.analysis import CheckResult, check_reports, discovered_labels, examine, label_counts
from autoseg.records import Case, Datalist

LABELS = {1: "liver", 2: "tumour"}
WriteCase = Callable[..., Case]  # see conftest.py


def check(
    training: Sequence[Case], testing: Sequence[Case] = (), labels: dict[int, str] | None = None
) -> tuple[CheckResult, list[str], list[str]]:
    datalist = Datalist("list.json", "", tuple(training), (), tuple(testing), LABELS if labels is None else labels)
    reports = examine((*training, *testing), workers=1, cache_dir=None, notify=lambda event: None)
    result = check_reports(datalist, reports)
    return result, [str(fault) for fault in result.faults], [str(warning) for warning in result.warnings]


def test_good_data_has_no_faults_and_no_warnings(write_case: WriteCase) -> None:
    cases = [write_case(f"c{i}", fold=i) for i in range(3)]
    assert check(cases, [write_case("t", label=None)])[1:] == ([], [])


def one(write_case: WriteCase, **options: object) -> tuple[Case, list[str], list[str]]:
    case = write_case("odd", **options)
    _, faults, warnings = check([write_case("good"), case])
    return case, faults, warnings


def test_shape_mismatch(write_case: WriteCase) -> None:
    case, faults, _ = one(write_case, label=np.ones((12, 10, 9), np.uint8))
    assert len(faults) == 1
    assert faults[0].startswith(f"{case.label}: shape: label is 12 x 10 x 9, the image 12 x 10 x 8")
    assert "resample the label onto the image's grid" in faults[0]


def test_affine_mismatch_is_given_in_mm(write_case: WriteCase) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.4
    case, faults, _ = one(write_case, label_affine=moved)
    assert len(faults) == 1
    assert faults[0].startswith(f"{case.label}: affine: copy the image's affine: they differ by 0.4 mm")


def test_a_hair_of_displacement_is_a_warning(write_case: WriteCase) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.04
    _, faults, warnings = one(write_case, label_affine=moved)
    assert faults == [] and len(warnings) == 1 and "0.04 mm" in warnings[0]
    moved[0, 3] = 1e-4
    assert one(write_case, label_affine=moved)[1:] == ([], [])


def test_spacing_mismatch(write_case: WriteCase) -> None:
    _, faults, _ = one(write_case, label_affine=np.diag([1, 1, 2.5, 1]))
    assert len(faults) == 1
    assert "spacing: label has 1 x 1 x 2.5 mm, the image 1 x 1 x 1 mm: copy the image's header" in faults[0]


def test_label_in_another_orientation_of_the_same_grid(write_case: WriteCase) -> None:
    """Axes swapped and flipped with the affine saying so: the same grid, hence a warning and the right statistics."""
    case = write_case("turned", affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    image, label = nib.load(case.image[0]), nib.load(str(case.label))
    straight = examine([case], workers=1, cache_dir=None, notify=lambda event: None)[0]
    turned = nib.as_closest_canonical(label).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, str(case.label))
    _, faults, warnings = check([write_case("good"), case])
    assert faults == [] and len(warnings) == 1 and "stored" in warnings[0]
    again = examine([case], workers=1, cache_dir=None, notify=lambda event: None)[0]
    assert again.monai["label_stats"] == straight.monai["label_stats"]
    assert image.shape != turned.shape and again.extras == straight.extras


def test_nan_and_infinite_voxels(write_case: WriteCase) -> None:
    image = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    image[0, 0, :2], image[1, 1, 1] = np.nan, np.inf
    case, faults, _ = one(write_case, image=image)
    assert len(faults) == 1 and faults[0].startswith(f"{case.image[0]}: image: 3 voxels are NaN or infinite")


def test_undeclared_label_values(write_case: WriteCase) -> None:
    label = np.zeros((12, 10, 8), np.int16)
    label[0, 0, :3], label[1, 1, :2] = 7, -1
    case, faults, _ = one(write_case, label=label)
    assert len(faults) == 1 and faults[0].startswith(f"{case.label}: label: values not declared")
    assert "-1 (2 voxels), 7 (3 voxels)" in faults[0] and "declared are 0, 1, 2" in faults[0]


def test_label_values_that_are_not_integers(write_case: WriteCase) -> None:
    label = np.zeros((12, 10, 8), np.float32)
    label[2:5, 2:5, 2:5] = 1
    label[5, 2:5, 2:5] = 0.5
    case, faults, _ = one(write_case, label=label)
    assert len(faults) == 1 and faults[0].startswith(f"{case.label}: label: label values are not integers (0.5)")
    assert one(write_case, label=np.where(label == 1, 1.0, 0.0))[1] == []


def test_4d_label_and_image_given_as_label(write_case: WriteCase) -> None:
    _, faults, _ = one(write_case, label=np.zeros((12, 10, 8, 3), np.uint8))
    assert len(faults) == 1 and "is 4D (12 x 10 x 8 x 3)" in faults[0]
    values = np.arange(960, dtype=np.int32).reshape(12, 10, 8) * 100
    assert "is this an image?" in one(write_case, label=values)[1][0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_missing_truncated_and_damaged_files_are_reported_together(write_case: WriteCase, suffix: str) -> None:
    cases = [write_case(f"c{i}", suffix=suffix) for i in range(5)]
    Path(cases[0].image[0]).unlink()
    for case, keep in ((cases[1], 0.5), (cases[2], 0.02)):
        path = Path(case.image[0])
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    Path(str(cases[3].label)).write_text("not an image")
    result, faults, _ = check(cases)
    assert [fault.file for fault in result.faults] == [*(case.image[0] for case in cases[:3]), cases[3].label]
    assert "no such file" in faults[0] and "truncated" in faults[1] and "not" in faults[3]


def test_a_flipped_bit_in_a_compressed_file_is_found(write_case: WriteCase) -> None:
    case = write_case("flipped", image=np.zeros((12, 10, 8), np.int16))
    path = Path(case.image[0])
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(bytes(data))
    _, faults, _ = check([write_case("good"), case])
    assert len(faults) == 1 and faults[0].startswith(f"{case.image[0]}: image: cannot be read: CRC")


def test_a_channel_of_another_grid_is_resampled_or_refused(write_case: WriteCase) -> None:
    first = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    case = write_case("odd", image=[first, first[:, :, 1:] + 1])
    _, faults, warnings = check([case])
    assert faults == [] and len(warnings) == 1 and warnings[0].startswith(f"{case.image[1]}: spacing: channel is")
    assert "12 x 10 x 7 of 1 x 1 x 1 mm" in warnings[0] and "resampled" in warnings[0]
    case = write_case("other", image=[first, first[:, :, :3]])
    _, faults, _ = check([case])
    assert len(faults) == 1 and faults[0].startswith(f"{case.image[1]}: affine: channel covers 38% of the first")
    case = write_case("flat", image=[first, first[:, :, 0]])
    _, faults, _ = check([case])
    assert len(faults) == 1 and "2D or 3D in all its channels" in faults[0]


def test_number_of_channels_must_be_the_same(write_case: WriteCase) -> None:
    two = np.random.default_rng(0).normal(size=(12, 10, 8, 2)).astype(np.float32)
    _, faults, _ = check([write_case("a"), write_case("b"), write_case("c", image=two)])
    assert (
        len(faults) == 1 and "/c.nii.gz: image: " in faults[0] and faults[0].endswith("2 channels, most cases have 1")
    )


def test_empty_constant_rare_and_never_occurring_are_warnings(write_case: WriteCase) -> None:
    one_label = np.zeros((12, 10, 8), np.uint8)
    one_label[2:4] = 1
    cases = [write_case(f"c{i}", label=one_label) for i in range(3)]
    cases += [write_case("rare"), write_case("empty", label=np.zeros((12, 10, 8), np.uint8))]
    cases += [write_case("flat", image=np.full((12, 10, 8), 3, np.int16), label=one_label)]
    _, faults, warnings = check(cases, labels={**LABELS, 5: "spleen"})
    assert faults == []
    assert len(warnings) == 4
    assert warnings[0] == f"{cases[5].image[0]}: image: constant: every voxel is 3"
    assert warnings[1] == f"{cases[4].label}: label: empty: no voxel is labelled"
    assert "label 2 (tumour) is rare: only in rare of 6 cases" in warnings[2]
    assert "label 5 (spleen) occurs in no case" in warnings[3]


def test_duplicated_content(write_case: WriteCase) -> None:
    image = np.random.default_rng(5).integers(0, 99, (12, 10, 8)).astype(np.int16)

    def copies(first: dict[str, object], second: dict[str, object]) -> tuple[Case, Case]:
        return write_case("first", image=image, **first), write_case("second", image=image, **second)

    first, second = copies({"fold": 0}, {"fold": 1})
    _, faults, warnings = check([first, second])
    assert len(faults) == 1 and faults[0].startswith(f"{second.image[0]}: image: holds the same voxels as")
    assert first.image[0] in faults[0] and "fold 0" in faults[0] and "fold 1" in faults[0]
    _, faults, _ = check([first], [second])
    assert len(faults) == 1 and "training" in faults[0] and "testing" in faults[0]
    _, faults, warnings = check([replace(first, fold=0), replace(second, fold=0)])
    assert faults == [] and len(warnings) == 1 and "same voxels" in warnings[0]
    _, faults, warnings = check([replace(first, fold=None), replace(second, fold=None)])
    assert faults == [] and len(warnings) == 1 and "patient" in warnings[0]


def test_undeclared_labels_are_discovered(write_case: WriteCase) -> None:
    cases = [write_case("a"), write_case("b", label=None)]
    reports = examine(cases, workers=1, cache_dir=None, notify=lambda event: None)
    assert discovered_labels(reports) == {1: "class_1", 2: "class_2"}
    assert label_counts(reports) == {"a": {0: 960 - 40, 1: 24, 2: 16}}
    assert check(cases, labels={})[1:] == ([], [])


def test_a_case_without_report_is_a_fault(write_case: WriteCase) -> None:
    case = write_case("a")
    assert "was not examined" in str(check_reports(Datalist("", "", (case,)), []).faults[0])


def test_other_formats_are_read_by_monai(tmp_path: Path) -> None:
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32))
    Path(tmp_path / "broken.npy").write_bytes(b"nothing")
    nib.save(nib.Nifti1Image(np.ones((12, 10, 8), np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    good = Case("volume", (str(tmp_path / "volume.npy"),), str(tmp_path / "label.nii.gz"))
    _, faults, _ = check([good, Case("broken", (str(tmp_path / "broken.npy"),))])
    assert len(faults) == 1 and faults[0].startswith(str(tmp_path / "broken.npy"))
