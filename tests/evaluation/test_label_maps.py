"""Reading label maps and bringing them onto one grid."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.errors import InputError
from autoseg.evaluation.label_maps import LabelMap, onto_grid_of, read_label_map

AFFINE = np.array([[0.8, 0, 0, -30], [0, 0.8, 0, 12.5], [0, 0, 2.5, 100], [0, 0, 0, 1]])

COS, SIN = np.cos(0.02), np.sin(0.02)
ROTATED = np.array([[COS, -SIN, 0, 0], [SIN, COS, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def save(path: Path, data: Any, affine: Any = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def labels(shape: tuple[int, ...] = (6, 7, 8), dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, shape).astype(dtype)


def fault_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_label_map(path)
    (fault,) = caught.value.faults
    assert fault.file == str(path)
    return f"{fault.field}: {fault.message}"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, ">i2"])
def test_whole_numbers_of_any_type_are_read(odd_path: Path, ending: str, dtype: Any) -> None:
    found = read_label_map(save(odd_path / f"a{ending}", labels(dtype=dtype)))
    assert found.data.dtype.kind in "iu"
    np.testing.assert_array_equal(found.data, labels())
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-6)
    assert found.spacing == pytest.approx((0.8, 0.8, 2.5))


def patch(path: Path, at: int, value: Any) -> None:
    """Overwrite bytes of an uncompressed NIfTI header."""
    raw, new = bytearray(path.read_bytes()), np.asarray(value, "<f4").tobytes()
    raw[at : at + len(new)] = new
    path.write_bytes(raw)


def test_a_scaled_file_is_rounded_to_its_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", labels(dtype=np.int16) * 3)
    patch(path, 112, 1 / 3)  # scl_slope; in single precision 3 thirds are not quite one
    assert nib.load(path).get_fdata().max() != 3  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_label_map(path).data, labels())


def test_empty_last_axes_and_flat_images_are_one_volume(tmp_path: Path) -> None:
    assert read_label_map(save(tmp_path / "a.nii", labels()[..., None, None])).data.shape == (6, 7, 8)
    assert read_label_map(save(tmp_path / "b.nii", labels((6, 7)))).data.shape == (6, 7, 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (labels().astype(np.float32) * 0.4, "labels: values are not integers (0.4, 0.8, 1.2)"),
        (np.full((3, 3, 3), np.nan, np.float32), "labels: values are not integers (nan)"),
        (np.full((3, 3, 3), 1e12, np.float32), "is this an image?"),
        (labels(dtype=np.int16) - 1000, "labels: values run from -1000 to -997"),
        (labels(dtype=np.int32) + 70000, "is this an image?"),
        (labels((4, 4, 4, 3)), "shape: is 4D (4 x 4 x 4 x 3)"),
        (labels((4, 4, 4)).astype(np.complex64), "complex64 voxels"),
    ],
)
def test_what_is_no_label_map_says_so(tmp_path: Path, data: Any, said: str) -> None:
    assert said in fault_of(save(tmp_path / "a.nii.gz", data))


@pytest.mark.parametrize("kept", [0, 1, 20, 200, 345, 360, -20])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_cut_anywhere_is_a_fault(tmp_path: Path, kept: int, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", labels((16, 16, 16)))
    path.write_bytes(path.read_bytes()[:kept])
    assert fault_of(path)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_a_fault_or_a_label_map(tmp_path: Path) -> None:
    good = nib.Nifti1Image(labels(), AFFINE).to_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "a.nii"
    for _ in range(150):
        spoilt = bytearray(good)
        for at in random.integers(0, 352, 6):
            spoilt[at] = random.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            assert read_label_map(path).data.dtype.kind in "iu"
        except InputError as error:
            assert error.faults[0].file == str(path)


def test_other_contents_and_missing_files_are_faults(tmp_path: Path) -> None:
    assert "no such file" in fault_of(tmp_path / "none.nii.gz")
    assert "no such file" in fault_of(tmp_path / "none.mha")
    (tmp_path / "text.nii.gz").write_text("not an image")
    assert "cannot be read" in fault_of(tmp_path / "text.nii.gz")
    with gzip.open(tmp_path / "zipped.nii.gz", "wb") as file:
        file.write(b"not an image either" * 100)
    assert "cannot be read" in fault_of(tmp_path / "zipped.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert fault_of(tmp_path / "folder.nii.gz")


def test_an_affine_that_measures_nothing_is_a_fault(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", labels())
    patch(path, 296, [0.0] * 4)  # srow_y
    assert fault_of(path).startswith("affine: is not usable")
    patch(path, 296, [np.nan] * 4)
    assert fault_of(path).startswith("affine: is not usable")


@pytest.mark.parametrize("turn", ["LPS", "RAI", "SRP", "PIL"])
def test_one_grid_stored_in_another_order_is_turned_back(turn: str) -> None:
    reference = LabelMap("reference", labels(), AFFINE)
    image = nib.Nifti1Image(labels(), AFFINE)
    ends = nib.orientations.axcodes2ornt(tuple(turn))
    other = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), ends))
    stored = LabelMap("stored", np.asarray(other.dataobj), np.asarray(other.affine))
    assert not np.allclose(stored.affine, AFFINE)
    turned, voxels = onto_grid_of(reference, stored)
    np.testing.assert_array_equal(turned.data, labels())
    np.testing.assert_allclose(turned.affine, AFFINE)
    assert voxels == pytest.approx(0, abs=1e-9)


def moved(by: tuple[float, float, float]) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += by
    return affine


@pytest.mark.parametrize(
    ("data", "affine", "field", "said"),
    [
        (labels((6, 7, 9)), AFFINE, "shape", "is 6 x 7 x 9, its reference 6 x 7 x 8 (reference)"),
        (labels(), moved((0, 0.5, 0)), "affine", "up to 0.5 mm from those of its reference (reference)"),
        (labels(), np.eye(4), "affine", "spacing is 1 x 1 x 1 mm, its reference's 0.8 x 0.8 x 2.5 mm"),
        (labels(), ROTATED @ AFFINE, "affine", "mm from"),
    ],
)
def test_another_grid_is_a_fault_with_what_mends_it(data: Any, affine: Any, field: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        onto_grid_of(LabelMap("prediction", data, affine), LabelMap("reference", labels(), AFFINE))
    (fault,) = caught.value.faults
    assert (fault.file, fault.field) == ("prediction", field)
    assert said in fault.message
    assert "resample" in fault.message


def test_rounding_of_headers_is_no_fault() -> None:
    turned, voxels = onto_grid_of(LabelMap("p", labels(), moved((0, 0.04, 0))), LabelMap("r", labels(), AFFINE))
    assert voxels == pytest.approx(0.05)  # 0.04 mm of the finest side, 0.8 mm
    assert turned.data.shape == (6, 7, 8)
