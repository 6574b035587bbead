"""What analysis says of a file is what MONAI's LoadImage and Orientation hand to the network, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.analysis import check_reports, examine, summarize
from autoseg.analysis.case import examine_case
from autoseg.evaluation.label_maps import read_label_map
from autoseg.planning import read_statistics
from autoseg.records import Case, Datalist

RNG = np.random.default_rng(5)
VOLUME = RNG.integers(-50, 900, (7, 6, 5)).astype(np.int16)
PICTURE = RNG.integers(0, 255, (9, 6)).astype(np.uint8)  # [x, y]
COLOURS = RNG.integers(0, 255, (9, 6, 3)).astype(np.uint8)
OBLIQUE = np.array([[0.5, -0.1, 0, 3], [0.1, 0.5, 0, -7], [0, 0, -2.5, 11], [0, 0, 0, 1]])


def write_nifti(path: Path, data: np.ndarray = VOLUME, affine: np.ndarray = OBLIQUE) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def write_numpy(path: Path, data: np.ndarray = VOLUME) -> None:
    np.save(path, data) if path.suffix == ".npy" else np.savez_compressed(path, data)


def write_itk(path: Path, data: np.ndarray = VOLUME, spacing: tuple[float, ...] = (0.5, 0.75, 2)) -> None:
    """`data` [x, y(, z)], its last axis of three the colours of a picture."""
    itk = pytest.importorskip("itk", reason="itk-core is not installed")
    colours = data is COLOURS
    turned = np.ascontiguousarray(data.transpose(1, 0, 2) if colours else data.T)
    image = itk.image_from_array(turned, is_vector=colours)
    if data.ndim == 3 and not colours:
        image.SetSpacing(spacing)
        image.SetOrigin([4, -5, 6])
        image.SetDirection(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    itk.imwrite(image, str(path))


def write_picture(path: Path, data: np.ndarray = PICTURE) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(np.ascontiguousarray(data.swapaxes(0, 1))).save(path)


FORMATS: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {
    "nii.gz": ("a.nii.gz", write_nifti, {}),
    "nii of channels": ("a.nii", write_nifti, {"data": np.stack([VOLUME, VOLUME + 1], -1)}),
    "nii of one channel": ("a.nii", write_nifti, {"data": VOLUME[..., None]}),
    "nii 2D": ("a.nii", write_nifti, {"data": PICTURE}),
    "nii of one slice": ("a.nii.gz", write_nifti, {"data": VOLUME[:, :, :1]}),
    "npy": ("a.npy", write_numpy, {}),
    "npy in Fortran order": ("a.npy", write_numpy, {"data": np.asfortranarray(VOLUME).astype(">f8")}),
    "npy 2D": ("a.npy", write_numpy, {"data": PICTURE}),
    "npz": ("a.npz", write_numpy, {}),
    "mha": ("a.mha", write_itk, {}),
    "mhd": ("a.mhd", write_itk, {}),
    "nrrd": ("a.nrrd", write_itk, {}),
    "tiff stack": ("a.tiff", write_itk, {"data": VOLUME.astype(np.uint16)}),
    "tif 2D": ("a.tif", write_itk, {"data": PICTURE}),
    "tif in colours": ("a.tif", write_itk, {"data": COLOURS}),
    "png": ("a.png", write_picture, {}),
    "png in colours": ("a.png", write_picture, {"data": COLOURS}),
    "jpg": ("a.jpg", write_picture, {}),
    "bmp": ("a.bmp", write_picture, {"data": COLOURS}),
}


def report_of(*image: str, label: str | None = None) -> Any:
    (report,) = examine([Case("a", image, label)], workers=1, cache_dir=None, notify=lambda event: None)
    return report


def compare(path: str) -> Any:
    """The report of an image, compared with MONAI's reading of it; returns MONAI's tensor in RAS."""
    from monai.transforms import LoadImage, Orientation

    report = report_of(path)
    assert report.faults == ()
    image = Orientation("RAS", labels=None)(LoadImage(image_only=True, ensure_channel_first=True)(path))
    extras = report.extras
    rank = image.ndim - 1
    assert extras.channels == len(image)
    assert extras.shape == tuple(image.shape[1:])
    assert np.allclose(extras.spacing, np.linalg.norm(np.asarray(image.affine)[:rank, :rank], axis=0))
    for channel, intensity in zip(image.numpy(), report.monai["image_stats"]["intensity"], strict=True):
        # cropped to what is above 0, but on the first axis
        places = np.argwhere(channel > 0)
        low, high = places.min(0), places.max(0) + 1
        low[0], high[0] = 0, channel.shape[0]
        box = channel[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        assert intensity["mean"] == pytest.approx(float(box.mean()), rel=1e-4)
        assert (intensity["min"], intensity["max"]) == (box.min(), box.max())
    return image


@pytest.mark.parametrize("kind", FORMATS)
def test_analysis_sees_what_the_engine_will(tmp_path: Path, kind: str) -> None:
    name, write, options = FORMATS[kind]
    write(tmp_path / name, **options)
    image = compare(str(tmp_path / name))
    assert len(image) == {"nii of channels": 2}.get(kind, 3 if "colours" in kind or kind == "bmp" else 1)
    assert image.ndim - 1 == (2 if options.get("data") is PICTURE or len(image) == 3 or kind in ("png", "jpg") else 3)


def test_a_dicom_folder(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    image = compare(str(write_dicom(tmp_path / "1.2.3", VOLUME, (0.5, 0.75, 2.5))))
    assert image.shape == (1, 7, 6, 5)
    assert np.array_equal(image[0].numpy(), VOLUME[::-1, ::-1])


def test_a_label_need_not_have_the_format_of_its_image(tmp_path: Path) -> None:
    write_itk(tmp_path / "a.mha")
    itk = pytest.importorskip("itk", reason="itk-core is not installed")
    grid = itk.imread(str(tmp_path / "a.mha"))
    label = itk.image_from_array((itk.array_from_image(grid) > 400).astype(np.uint8))
    label.CopyInformation(grid)
    itk.imwrite(label, str(tmp_path / "a_label.nii.gz"))
    itk.imwrite(label, str(tmp_path / "a_label.nrrd"))
    reports = [report_of(str(tmp_path / "a.mha"), label=str(tmp_path / f"a_label{e}")) for e in (".nii.gz", ".nrrd")]
    assert [report.faults for report in reports] == [(), ()]
    assert reports[0].counts == reports[1].counts == {0: int((VOLUME <= 400).sum()), 1: int((VOLUME > 400).sum())}


def test_pictures_are_2d(tmp_path: Path) -> None:
    cases = []
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", COLOURS)
        write_picture(tmp_path / f"{number}_label.png", (PICTURE > 120).astype(np.uint8) * 255)
        cases.append(Case(str(number), (str(tmp_path / f"{number}.png"),), str(tmp_path / f"{number}_label.png")))
    reports = examine(cases, workers=1, cache_dir=None, notify=lambda event: None)
    stats, _ = summarize(reports)
    found = read_statistics(stats)
    assert (found.image_dims, found.image_files, found.channels) == (2, 1, 3)
    assert found.shape_median == (9, 6, 1) and found.spacing_median == (1, 1, 1)
    assert read_statistics({"stats_summary": stats["stats_summary"]}).image_dims == 2
    declared = Datalist("list.json", "", tuple(cases), labels={1: "cell"})
    faults = check_reports(declared, reports).faults
    assert len(faults) == 3 and "values not declared: 255" in faults[0].message
    write_nifti(tmp_path / "v.nii")
    odd = Case("v", (str(tmp_path / "v.nii"),))
    reports += examine([odd], workers=1, cache_dir=None, notify=lambda event: None)
    messages = [f.message for f in check_reports(Datalist("l", "", tuple(cases), (), (odd,)), reports).faults]
    assert "is 3D, most cases are 2D" in messages


def test_labels_that_pictures_cannot_hold(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "a_label.jpg")
    write_picture(tmp_path / "b_label.png", COLOURS)
    image = str(tmp_path / "a.png")
    assert "jpg" in report_of(image, label=str(tmp_path / "a_label.jpg")).faults[0].message
    assert "has 3 channels (9 x 6 x 3)" in report_of(image, label=str(tmp_path / "b_label.png")).faults[0].message
    write_itk(tmp_path / "c_label.tif", PICTURE)
    (fault,) = report_of(image, label=str(tmp_path / "c_label.tif")).faults
    assert fault.field == "affine" and "store both in one format" in fault.message


def test_numpy_files_load_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    write_numpy(tmp_path / "a.npz")
    code = (
        "import sys; from autoseg.analysis import examine; from autoseg.records import Case; "
        "r, = examine([Case('a', (sys.argv[1],))], workers=1, cache_dir=None, notify=lambda e: None); "
        "print(r.extras.shape, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "(7, 6, 5) False"


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.tif", "a.mha"])
def test_references_of_every_format_are_read(tmp_path: Path, name: str) -> None:
    flat = name in ("a.png", "a.tif")
    data = (PICTURE if flat else np.abs(VOLUME)).astype(np.uint8) % 5
    write = {"a.png": write_picture, "a.npy": write_numpy}.get(name, write_itk)
    write(tmp_path / name, data)
    found = read_label_map(tmp_path / name)
    assert np.array_equal(found.data, data[..., None] if flat else data)
    assert np.allclose(found.spacing, (0.5, 0.75, 2) if name == "a.mha" else 1) and found.affine.shape == (4, 4)


@pytest.mark.parametrize(("position", "value"), [(40, b"\xff\x7f"), (70, b"\xff\x00"), (108, b"\x00\x00\x80\x7f")])
@pytest.mark.parametrize("damaged", ["image", "label"])
def test_a_damaged_header_is_said_of_its_file(tmp_path: Path, damaged: str, position: int, value: bytes) -> None:
    """The number of axes, the data type, where the voxels begin: readers raise an error of their own for each."""
    paths = {name: tmp_path / f"{name}.nii" for name in ("image", "label")}
    for path in paths.values():
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), path)
    raw = bytearray(paths[damaged].read_bytes())
    raw[position : position + len(value)] = value
    paths[damaged].write_bytes(bytes(raw))
    report = examine_case(Case("a", (str(paths["image"]),), str(paths["label"])))
    assert [(fault.file, fault.field) for fault in report.faults] == [(str(paths[damaged]), damaged)]
