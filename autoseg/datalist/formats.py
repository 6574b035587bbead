"""Which files are images: their endings, their case ids, folders of DICOM slices, and why one cannot be read."""

from __future__ import annotations

import os
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

PICTURES = (".png", ".jpeg", ".jpg", ".bmp")
NUMPY = (".npy", ".npz")
WITHOUT_EXTRA = (".nii.gz", ".nii", *NUMPY, *PICTURES)
IMAGE_ENDINGS = (*WITHOUT_EXTRA, ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".tiff", ".tif")
ENDINGS = (*IMAGE_ENDINGS, ".dcm", ".hdr", ".img", ".img.gz", ".mgz", ".mgh")  # what a case id leaves out
EXTRA = 'pip install "autoseg[formats]"'
SHOWN = 5  # series or arrays that are named one by one


def case_id(path: str) -> str:
    """The image's file name without its endings (.nii.gz, .seg.nrrd, ...); of a DICOM series its folder's name.

    Never one of points alone, as `...nii.gz` would give: folders are named by it, and `..` is another one.
    """
    name = Path(path).name
    if os.path.isdir(path):  # often a UID: what follows its last point is no ending
        return name
    known = next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(e)), Path(name).suffix)
    stem = name[: len(name) - len(known)]
    return stem if stem.strip(".") else name


def is_image(path: str | Path) -> bool:
    """Whether a path is an image by its name, or a folder that holds DICOM files."""
    return not folder_fault(path) if os.path.isdir(path) else str(path).lower().endswith(IMAGE_ENDINGS)


def find_images(source: str | Path) -> list[Path]:
    """The images that `source` stands for: itself (a file, a DICOM folder), or the images of a folder, by name."""
    path = Path(source)
    if not path.is_dir() or is_image(path):
        return [path]
    return sorted(p for p in path.iterdir() if not p.name.startswith(".") and is_image(p))


def folder_fault(folder: str | Path) -> str:
    """Why a folder is no image, or the empty string: one DICOM file in it makes it one."""
    with os.scandir(folder) as entries:
        files = sorted(e.path for e in entries if os.path.isfile(e.path) and not e.name.startswith("."))
    if not files:
        return "is a folder without files: an image is a file, or the folder of a DICOM series"
    if not any(map(_is_dicom, files)):
        return "is a folder, not a file, and holds no DICOM slices"
    return ""


def unreadable(path: str) -> str:
    """Why `path` cannot be read as one image, or the empty string. Reads headers alone.

    What MONAI's readers would do silently or say badly: a folder of several DICOM series (they take the first), NumPy
    files of several arrays (stacked) or of Python objects (never unpickled here), a reader that is not installed.
    """
    if not os.path.exists(path):
        return "no such file"
    name = path.lower()
    if os.path.isdir(path):
        return folder_fault(path) or _missing_reader("a DICOM folder") or _series_fault(path)
    if name.endswith(NUMPY):
        return _numpy_fault(path)
    return "" if name.endswith(WITHOUT_EXTRA) else _missing_reader(Path(name).suffix or "this file")


def _missing_reader(what: str) -> str:
    return "" if find_spec("itk") else f"{what} needs a reader that is not installed: {EXTRA}"


def _is_dicom(path: str) -> bool:
    """By its prefix, or by its ending where it has none (files older than the prefix are still about)."""
    if path.lower().endswith(".dcm"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _series_fault(folder: str) -> str:
    """Series are told apart as MONAI's ITKReader does: by UID, and by date, orientation and size of the slices."""
    import itk  # seconds, and an extra: only for DICOM

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(folder)
    series = [list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()]
    if len(series) == 1:
        return ""
    if not series:
        return "holds no DICOM slices that can be read"
    shown = [f"{_series_name(itk, files[0])} of {len(files)} slices" for files in series[:SHOWN]]
    more = [f"{len(series) - SHOWN} more"] if len(series) > SHOWN else []
    return f"holds {len(series)} DICOM series: {', '.join(shown + more)}; give each a folder of its own"


def _series_name(itk: Any, file: str) -> str:
    """`'T1 axial' (1.2.840.1)` of a slice: description and UID of its series."""
    header = itk.GDCMImageIO.New()
    header.SetFileName(file)
    header.ReadImageInformation()
    tags = header.GetMetaDataDictionary()
    description, uid = (str(tags[tag]).strip(" \0") if tags.HasKey(tag) else "" for tag in ("0008|103e", "0020|000e"))
    return f"'{description}' ({uid})" if description else uid


def _numpy_fault(path: str) -> str:
    """One array of real numbers, two or three axes: a NumPy file does not say which axis would be the channels'."""
    try:
        if path.lower().endswith(".npy"):
            with open(path, "rb") as file:
                shape, dtype = _array_header(file)
        else:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if len(members) != 1:
                    names = ", ".join(member.removesuffix(".npy") for member in members[:SHOWN])
                    return f"holds {len(members)} arrays ({names}{', ...' * (len(members) > SHOWN)}): one is wanted"
                with archive.open(members[0]) as file:
                    shape, dtype = _array_header(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    if dtype.hasobject:
        return "holds pickled Python objects, which could run anything: store a plain array"
    if dtype.kind not in "biuf":
        return f"holds {dtype} voxels: one real number a voxel is wanted"
    if len(shape) not in (2, 3) or 0 in shape:
        return f"is an array of shape {shape}: two or three axes are wanted, and one file a channel"
    return ""


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
