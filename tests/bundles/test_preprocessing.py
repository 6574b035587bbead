"""From files to what a network sees: grids, channels, normalisation, images of two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from scipy import ndimage

from autoseg.bundles.preprocessing import image_item, image_keys, preprocessing
from autoseg.bundles.templates import skeleton_settings
from autoseg.engine.bundle import Bundle
from autoseg.errors import InputError
from autoseg.records import Case

RANDOM = np.random.default_rng(3)
FIRST = np.array([[-1.0, 0, 0, 20], [0, -1.2, 0, 25], [0, 0, 2, -9], [0, 0, 0, 1]])  # stored LPS


def write(path: Path, data: np.ndarray, affine: np.ndarray = FIRST) -> str:
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


def preprocessed(files: list[str], label: str | None = None, **changes: Any) -> dict[str, Any]:
    settings = {**skeleton_settings(), "resample": False, "image_files": len(files)}
    if ".nii" in Path(files[0]).name:  # else a picture, of 1 mm
        settings["resample_to_spacing"] = [float(n) for n in nib.load(files[0]).header.get_zooms()[:3]]
    settings |= changes
    keys = ["image", "label"] if label else ["image"]
    parser = ConfigParser({**settings, "preprocessing": preprocessing(settings, keys)})
    given = {**image_item(files, settings), **({"label": label} if label else {})}
    found: dict[str, Any] = parser.get_parsed_content("preprocessing")(given)
    return found


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    return ndimage.gaussian_filter(RANDOM.normal(size=shape), 1.0).astype(np.float32)


def z_score(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


OTHERS = {
    "finer": (
        (44, 50, 30),
        np.diag([0.5, 0.6, 1.0, 1.0]) + np.array([[0, 0, 0, -1.0], [0] * 4, [0, 0, 0, -9], [0] * 4]),
    ),
    "turned": ((14, 30, 22), np.array([[0, -1.0, 0, 22], [0, 0, 1.5, -3], [1.4, 0, 0, -8], [0, 0, 0, 1]])),
    "smaller": (
        (8, 8, 6),
        np.diag([1.0, 1.0, 2.0, 1.0]) + np.array([[0, 0, 0, 6.0], [0, 0, 0, 7], [0, 0, 0, -5], [0] * 4]),
    ),
    "oblique": ((30, 32, 20), np.array([[0.8, -0.6, 0, 8], [0.6, 0.8, 0, -6], [0, 0, 1.5, -9], [0, 0, 0, 1]])),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_channels_are_brought_onto_the_grid_of_the_first(odd_path: Path, kind: str) -> None:
    """Against scipy: linear between voxel centres, the nearest value outside."""
    first, (shape, affine) = smooth((20, 22, 14)), OTHERS[kind]
    second, third = smooth(shape), smooth(first.shape)
    files = [write(odd_path / "a_0.nii.gz", first), write(odd_path / "a_1.nii.gz", second, affine)]
    image = preprocessed([*files, write(odd_path / "a_2.nii.gz", third)])["image"]
    places = np.moveaxis(np.indices(first.shape), 0, -1) @ FIRST[:3, :3].T + FIRST[:3, 3]
    there = np.linalg.inv(affine)
    places = np.moveaxis(places @ there[:3, :3].T + there[:3, 3], -1, 0)
    moved = ndimage.map_coordinates(second, places, order=1, mode="nearest")
    expected = np.stack([z_score(channel)[::-1, ::-1] for channel in (first, moved, third)])
    assert image.shape == expected.shape
    np.testing.assert_allclose(image.numpy(), expected, atol=2e-3)
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    assert preprocessed(files, resample=True, resample_to_spacing=[2.0, 1.2, 2.0])["image"].shape == (2, 10, 22, 14)


def test_one_file_may_hold_all_channels(odd_path: Path) -> None:
    data = smooth((9, 8, 7, 3))
    image = preprocessed([write(odd_path / "a.nii", data)])["image"].numpy()
    np.testing.assert_allclose(image, [z_score(data[..., c])[::-1, ::-1] for c in range(3)], atol=1e-4)


@pytest.mark.parametrize("files", [1, 2])
def test_ct_and_others_side_by_side(odd_path: Path, files: int) -> None:
    ct, pet = RANDOM.uniform(-1000, 1000, (10, 9, 8)), RANDOM.uniform(0, 30, (10, 9, 8))
    both = [ct, pet] if files == 2 else [np.stack([ct, pet], -1)]
    paths = [write(odd_path / f"a_{n}.nii.gz", data.astype(np.float32)) for n, data in enumerate(both)]
    bounds = [[-50.0, 200.0, 60.0, 20.0], None]
    image = preprocessed(paths, normalize_mode="ct", intensity_bounds=bounds)["image"].numpy()
    np.testing.assert_allclose(image[0], (ct.clip(-50, 200)[::-1, ::-1] - 60) / 20, atol=1e-4)
    np.testing.assert_allclose(image[1], z_score(pet)[::-1, ::-1], atol=1e-4)


def test_foreground_is_cropped_and_labels_keep_their_values(odd_path: Path) -> None:
    image, label = np.zeros((20, 20, 20), np.int16), np.zeros((20, 20, 20), np.uint8)
    image[4:16, 5:13, 2:18] = RANDOM.integers(1, 9, (12, 8, 16))
    label[6:10, 6:10, 6:10], label[10:12, 6:10, 6:10] = 1, 200
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    paths = write(odd_path / "a.nii.gz", image, affine), write(odd_path / "l.nii.gz", label, affine)
    found = preprocessed([paths[0]], paths[1])
    assert found["image"].shape == found["label"].shape == (1, 12, 8, 16)
    assert (found["label"].numpy()[0] == label[4:16, 5:13, 2:18]).all()
    finer = preprocessed([paths[0]], paths[1], resample=True, resample_to_spacing=[0.5, 1.0, 0.7])
    assert finer["image"].shape == finer["label"].shape
    assert finer["image"].shape[2] == 8 and finer["image"].shape[1] > 20
    assert set(np.unique(finer["label"].numpy())) == {0, 1, 200}


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [([1.04, 1.2, 2.0], (20, 10, 10)), ([2.0, 1.2, 2.0], (10, 10, 10)), ([1.0, 1.2, 1.0], (20, 10, 20))],
)
def test_a_spacing_that_is_not_near_the_others_is_resampled(
    odd_path: Path, spacing: list[float], shape: tuple[int, ...]
) -> None:
    path = write(odd_path / "a.nii.gz", smooth((20, 10, 10)))
    found = preprocessed([path], resample_to_spacing=spacing)["image"].shape[1:]
    assert all(abs(n - m) <= 1 for n, m in zip(found, shape, strict=True))


@pytest.mark.parametrize(("ending", "channels"), [("png", 1), ("png", 3), ("bmp", 3), ("tiff", 1)])
def test_pictures_get_a_third_axis(odd_path: Path, ending: str, channels: int) -> None:
    if ending == "tiff":
        pytest.importorskip("itk", reason="itk-core is not installed")
    picture = RANDOM.integers(1, 255, (9, 6, 3)[: 2 + (channels > 1)]).astype(np.uint8)  # [x, y(, colour)]
    first = picture.reshape(9, 6, -1)[..., 0]
    paths = {name: str(odd_path / f"{name}.{ending}") for name in ("image", "label")}
    Image.fromarray(np.ascontiguousarray(picture.swapaxes(0, 1))).save(paths["image"])
    Image.fromarray(np.ascontiguousarray((first > 99).astype(np.uint8).T)).save(paths["label"])
    found = preprocessed([paths["image"]], paths["label"] if channels == 1 else None, image_dims=2)
    image = found["image"].numpy()
    assert image.shape == (channels, 9, 6, 1)
    turned = first[::-1, ::-1] if ending == "tiff" else first  # a TIFF's axes run to L and P
    np.testing.assert_allclose(image[0, ..., 0], z_score(turned), atol=1e-4)
    if channels == 1:
        assert (found["label"].numpy()[0, ..., 0] == (turned > 99)).all()


def test_a_case_has_the_files_its_bundle_wants(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("x.nii", "y.nii")]
    for file in files:
        Path(file).touch()
    settings = {**skeleton_settings(), "name": "some", "image_files": 2}
    assert image_keys(settings) == ["image_0", "image_1"]
    bundle = Bundle(Path("nowhere"), settings)
    assert bundle.item(Case("a", tuple(files))) == dict(zip(("image_0", "image_1"), files, strict=True))
    with pytest.raises(InputError, match=r"1 files, where some_0 was made for 2 a case"):
        bundle.item(Case("a", (files[0],)))
    with pytest.raises(InputError, match="no such file"):
        bundle.item(Case("a", (files[0], str(tmp_path / "z.nii"))))
