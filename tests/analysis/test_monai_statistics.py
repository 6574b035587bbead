"""Our statistics against MONAI's DataAnalyzer on the same files, key by key."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.analysis import examine, summarize
from autoseg.records import Case
from autoseg.workspace import read_yaml, write_yaml

AFFINES = (
    np.diag([-1.5, -0.8, 2.5, 1.0]),
    np.array([[0, 0, 2.5, 7], [-1, 0, 0, -3], [0, 1.2, 0, 11], [0, 0, 0, 1.0]]),
    np.array([[0, 1.1, 0.1, 0], [0.9, 0, 0, 0], [0.05, 0, -3.0, 5], [0, 0, 0, 1.0]]),
)


def volume(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """A body in air of -100 (or 0), whose bounding box is smaller than the volume on every side."""
    body = rng.normal(90, 60, shape)
    air = np.ones(shape, bool)
    air[3:-4, 2:-3, 1:-2] = False
    body[air] = 0 if kind == "float" else -100
    return body.astype({"int16": np.int16, "float": np.float32, "whole": np.float32}[kind])


def write_case(folder: Path, number: int, kind: str, channels: int, labels: tuple[int, ...]) -> Case:
    rng = np.random.default_rng(number)
    shape = (20 + number, 24, 15)
    affine = AFFINES[number % 3]
    images = np.stack([volume(rng, shape, "int16" if kind == "scaled" else kind) for _ in range(channels)], axis=-1)
    if kind == "whole":
        images = np.rint(images)
    image = nib.Nifti1Image(images[..., 0] if channels == 1 else images, affine)
    if kind == "scaled":
        image.header.set_slope_inter(0.5, -10)
    label = np.zeros(shape, np.uint8)
    for at, value in enumerate(labels):
        label[5 : 9 + number, 6 + 4 * at : 9 + 4 * at, 3:8] = value
    paths = (folder / f"çase {number}.nii.gz", folder / f"label {number}.nii.gz")
    nib.save(image, paths[0])
    nib.save(nib.Nifti1Image(label, affine), paths[1])
    return Case(f"çase {number}", (str(paths[0]),), str(paths[1]), fold=0)


def monai_stats(cases: list[Case], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from monai.apps.auto3dseg import DataAnalyzer

    training = [{"image": list(case.image), "label": case.label, "fold": 0} for case in cases]
    output = folder / "monai.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DataAnalyzer(
            {"training": training}, "/", output_path=str(output), device="cpu", do_ccp=False, worker=0
        ).get_all_case_stats()
    return read_yaml(output), read_yaml(folder / "monai_by_case.yaml")


def our_stats(cases: list[Case], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reports = examine(cases, workers=1, cache_dir=None, notify=lambda event: None)
    assert not any(report.faults for report in reports)
    for name, stats in zip(("ours.yaml", "ours_by_case.yaml"), summarize(reports), strict=True):
        write_yaml(folder / name, stats, versioned=False)
    return read_yaml(folder / "ours.yaml"), read_yaml(folder / "ours_by_case.yaml")


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Every place where the two differ, in keys, their order, lengths, types of number or values."""
    if isinstance(theirs, dict):
        if not isinstance(ours, dict) or list(ours) != list(theirs):
            return [f"{where}: keys {ours and list(ours)} for {list(theirs)}"]
        return [d for key in theirs for d in differences(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(theirs, list):
        if not isinstance(ours, list) or len(ours) != len(theirs):
            return [f"{where}: {ours} for {theirs}"]
        return [d for i, item in enumerate(theirs) for d in differences(ours[i], item, f"{where}/{i}")]
    if isinstance(theirs, float):
        same = type(ours) is float and math.isclose(ours, theirs, rel_tol=2e-5, abs_tol=2e-4)
        return [] if same else [f"{where}: {ours} for {theirs}"]
    return [] if type(ours) is type(theirs) and ours == theirs else [f"{where}: {ours!r} for {theirs!r}"]


@pytest.mark.parametrize(
    ("kind", "channels"), [("int16", 1), ("float", 1), ("whole", 1), ("scaled", 1), ("int16", 2), ("float", 3)]
)
def test_values_are_those_of_monai(tmp_path: Path, kind: str, channels: int) -> None:
    cases = [write_case(tmp_path, number, kind, channels, labels=(1, 2)) for number in range(4)]
    theirs, their_cases = monai_stats(cases, tmp_path)
    ours, our_cases = our_stats(cases, tmp_path)
    ours.pop("autoseg")
    assert len(our_cases["stats_by_cases"]) == 4
    assert differences(ours, theirs) == []
    assert differences(our_cases, their_cases) == []


def test_a_file_for_each_channel(tmp_path: Path) -> None:
    cases = []
    for number in range(2):
        first = write_case(tmp_path, number, "int16", 1, labels=(1, 2))
        second = tmp_path / f"second {number}.nii.gz"
        image = nib.load(first.image[0])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1] * 0.3 + number, image.affine), second)
        cases.append(Case(first.id, (*first.image, str(second)), first.label, fold=0))
    theirs, their_cases = monai_stats(cases, tmp_path)
    ours, our_cases = our_stats(cases, tmp_path)
    ours.pop("autoseg")
    assert differences(ours, theirs) == []
    assert differences(our_cases, their_cases) == []


def test_values_with_a_gap_and_missing_labels(tmp_path: Path) -> None:
    """By case as MONAI; in the summary, a label's entry is its own where MONAI's is that of a list position."""
    cases = [write_case(tmp_path, 0, "int16", 1, labels=(1, 7)), write_case(tmp_path, 1, "int16", 1, labels=(7,))]
    theirs, their_cases = monai_stats(cases, tmp_path)
    ours, our_cases = our_stats(cases, tmp_path)
    assert differences(our_cases["stats_by_cases"], their_cases["stats_by_cases"]) == []
    summary, reference = ours["stats_summary"], theirs["stats_summary"]
    own_labels = summary["label_stats"].pop("label")
    reference["label_stats"].pop("label")
    assert differences(summary, reference) == []
    by_case = our_cases["stats_by_cases"]
    sevens = [by_case[0]["label_stats"]["label"][2], by_case[1]["label_stats"]["label"][1]]
    assert summary["label_stats"]["labels"] == [0, 1, 7]
    mean = np.mean([label["image_intensity"][0]["mean"] for label in sevens])
    assert own_labels[2]["image_intensity"]["mean"] == pytest.approx(mean)
    shares = [label["foreground_percentage"] for label in sevens]
    assert own_labels[2]["foreground_percentage"]["max"] == max(shares)
    assert own_labels[1]["image_intensity"]["mean"] == pytest.approx(
        by_case[0]["label_stats"]["label"][1]["image_intensity"][0]["mean"]
    )


def test_unlabelled_cases_have_monais_image_part(tmp_path: Path) -> None:
    case = write_case(tmp_path, 0, "int16", 1, labels=(1,))
    bare = Case(case.id, case.image)
    ours, our_cases = our_stats([bare], tmp_path)
    assert list(ours["stats_summary"]) == ["image_stats", "n_cases"]
    assert our_cases["stats_by_cases"][0]["label_filepath"] == "None"
