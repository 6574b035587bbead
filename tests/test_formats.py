"""Which paths are images, what a case is called, and what keeps an image from being read."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoseg.datalist import case_id, find_images, formats, is_image, unreadable
from autoseg.errors import InputError
from autoseg.pipeline.predicting import input_cases
from autoseg.workspace import file_stamp, path_bytes

WriteDicom = Callable[..., Path]  # see conftest.py
VOLUME = np.arange(120, dtype=np.int16).reshape(5, 6, 4)


def fake_series(folder: Path, slices: int = 2) -> Path:
    """A folder that looks like a DICOM series; nothing reads it."""
    folder.mkdir(parents=True)
    for number in range(slices):
        (folder / f"IM{number:04}").write_bytes(b"\0" * 128 + b"DICM" + bytes(number))
    return folder


@pytest.mark.parametrize("name", ["a.nii.gz", "a.seg.nrrd", "a.mha", "a.NPZ", "a.tiff", "a.JPG", "a.bmp", "a.dcm", "a"])
def test_case_ids_are_without_endings(name: str) -> None:
    assert case_id(f"some/folder.d/{name}") == "a"


def test_a_series_is_called_as_its_folder(tmp_path: Path) -> None:
    folder = fake_series(tmp_path / "1.2.840.7")
    assert case_id(str(folder)) == case_id(f"{folder}/") == "1.2.840.7"


def test_what_is_an_image(tmp_path: Path) -> None:
    names = ("a.nii", "b.PNG", "c.tif", "d.npy")
    for name in (*names, "notes.txt", "list.json", ".hidden.nii", "e.raw"):
        (tmp_path / name).touch()
    fake_series(tmp_path / "series")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in find_images(tmp_path)] == [*names, "series"]
    assert find_images(tmp_path / "series") == [tmp_path / "series"]
    assert find_images(tmp_path / "a.nii") == [tmp_path / "a.nii"]
    assert not is_image(tmp_path / "empty") and find_images(tmp_path / "empty") == []


def test_cases_to_predict(tmp_path: Path, write_dicom: WriteDicom) -> None:
    source = tmp_path / "in"
    for name in ("p1", "p2.x", "r_0001"):
        write_dicom(source / name, VOLUME)
    assert [case.id for case in input_cases(source, 1)] == ["p1", "p2.x", "r_0001"]
    assert [(case.id, case.image) for case in input_cases(source / "p1", 1)] == [("p1", (str(source / "p1"),))]
    for name in ("q_0000.mha", "q_0001.mha"):
        (source / name).touch()
    np.save(source / "r_0000.npy", VOLUME)
    with pytest.raises(InputError) as caught:
        input_cases(source, 2)
    assert [Path(fault.file).name for fault in caught.value.faults] == ["p1", "p2.x"]
    assert "1 of 2 files" in str(caught.value)
    (source / "p2.x").rename(tmp_path / "p2.x")
    (source / "p1").rename(tmp_path / "p1")
    found = {case.id: [Path(path).name for path in case.image] for case in input_cases(source, 2)}
    assert found == {"q": ["q_0000.mha", "q_0001.mha"], "r": ["r_0000.npy", "r_0001"]}
    (tmp_path / "p1").rename(source / "p1")
    write_dicom(source / "p1", VOLUME, uid="1.2.5")
    (source / "bad.npz").touch()
    with pytest.raises(InputError) as caught:
        input_cases(source, 1)
    assert [Path(fault.file).name for fault in caught.value.faults] == ["bad.npz", "p1"]
    assert "2 DICOM series" in str(caught.value)


def test_a_folder_has_a_stamp_and_a_size(tmp_path: Path) -> None:
    folder = fake_series(tmp_path / "s")
    first = file_stamp(folder)
    assert first == file_stamp(folder) and first[1] == path_bytes(folder) == 265
    os.utime(folder / "IM0001", ns=(1, 1))
    second = file_stamp(folder)
    assert second[:2] == first[:2] and second != first
    (folder / "IM0000").rename(folder / "IM0009")
    assert file_stamp(folder) not in (first, second)
    assert path_bytes(folder / "IM0009") == 132 and path_bytes(tmp_path / "nothing") == 0


def test_two_series_in_a_folder(tmp_path: Path, write_dicom: WriteDicom) -> None:
    folder = write_dicom(tmp_path / "s", VOLUME, uid="1.2.9", description="T1 axial")
    assert unreadable(str(folder)) == ""
    write_dicom(folder, VOLUME[:, :, :3], uid="1.2.10")
    reason = unreadable(str(folder))
    assert reason.startswith("holds 2 DICOM series: ") and "'T1 axial' (1.2.9) of 4 slices" in reason
    assert "1.2.10 of 3 slices" in reason and "\n" not in reason


def test_folders_without_slices(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "without files" in unreadable(str(tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no slices")
    assert "no DICOM slices" in unreadable(str(tmp_path / "other"))
    pytest.importorskip("itk", reason="itk-core is not installed")
    assert "can be read" in unreadable(str(fake_series(tmp_path / "torn")))


def test_a_missing_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "itk" else importlib.util.find_spec(name))
    for name in ("a.mha", "a.nrrd", "a.tif"):
        (tmp_path / name).touch()
        reason = unreadable(str(tmp_path / name))
        assert reason.startswith(Path(name).suffix) and 'pip install "autoseg[formats]"' in reason
    assert "DICOM" in unreadable(str(fake_series(tmp_path / "s")))
    (tmp_path / "a.nii").touch()
    assert unreadable(str(tmp_path / "a.nii")) == ""


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_numpy_files_are_never_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    objects = np.array([[Bomb(trap), Bomb(trap)]], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", objects)
    for name in ("o.npy", "o.npz"):
        assert "pickled" in unreadable(str(tmp_path / name))
    assert not trap.exists()


def test_numpy_files_hold_one_channel(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", x=VOLUME)
    np.savez(tmp_path / "two.npz", image=VOLUME, label=VOLUME)
    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "complex.npy", VOLUME.astype(complex))
    np.save(tmp_path / "4d.npy", VOLUME[None])
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("a.txt", "words")
    reasons = {path.name: unreadable(str(path)) for path in tmp_path.iterdir()}
    assert reasons.pop("good.npz") == ""
    assert "2 arrays (image, label)" in reasons.pop("two.npz")
    assert "0 arrays" in reasons.pop("none.npz")
    assert "complex128" in reasons.pop("complex.npy")
    assert "(1, 5, 6, 4)" in reasons.pop("4d.npy")
    assert all(reason.startswith("cannot be read: ") for reason in reasons.values()) and len(reasons) == 3
