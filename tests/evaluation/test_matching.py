"""Pairing predictions with references by case id."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.errors import InputError
from autoseg.evaluation import match_folders
from autoseg.records import Case


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    folder.mkdir(exist_ok=True)
    return folder


def faults_of(predictions: Path, references: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        match_folders(predictions, references)  # type: ignore[arg-type]
    return [str(fault) for fault in caught.value.faults]


def test_every_way_a_prediction_may_be_named(odd_path: Path) -> None:
    names = ("b.nii.gz", "a_ensemble.nii.gz", "c/c_ensemble.nii.gz", "d.nii", ".hidden.nii.gz", "notes.txt")
    predictions = touch(odd_path / "p", *names)
    references = touch(odd_path / "r", "a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", "dataset.json")
    assert match_folders(predictions, str(references)) == [
        ("a", str(predictions / "a_ensemble.nii.gz"), str(references / "a.nii.gz")),
        ("b", str(predictions / "b.nii.gz"), str(references / "b.nii.gz")),
        ("c", str(predictions / "c/c_ensemble.nii.gz"), str(references / "c.nii.gz")),
        ("d", str(predictions / "d.nii"), str(references / "d.nii.gz")),
    ]


def test_references_of_other_formats(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", *(f"{name}_ensemble.nii.gz" for name in "abcd"))
    references = touch(tmp_path / "r", "a.png", "b.npz", "c.tiff", "d.seg.nrrd", "e.txt")
    assert [pair[0] for pair in match_folders(predictions, references)] == ["a", "b", "c", "d"]


def test_a_case_whose_own_name_ends_in_ensemble(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "x_ensemble.nii.gz")
    references = touch(tmp_path / "r", "x_ensemble.nii.gz")
    assert [pair[0] for pair in match_folders(predictions, references)] == ["x_ensemble"]


def test_all_that_stand_alone_are_named_at_once(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "a.nii.gz", "lost.nii.gz", "spleen_01.nii.gz")
    references = touch(tmp_path / "r", "a.nii.gz", "spleen_1.nii.gz", "only.nii.gz")
    faults = faults_of(predictions, references)
    assert len(faults) == 4
    assert any("lost.nii.gz: references: no reference for case 'lost'" in fault for fault in faults)
    assert any("only.nii.gz: predictions: no prediction for case 'only'" in fault for fault in faults)
    assert any("(did you mean 'spleen_1'?)" in fault for fault in faults)


def test_folders_that_have_nothing_in_common_say_how_files_are_paired(tmp_path: Path) -> None:
    faults = faults_of(touch(tmp_path / "p", "a.nii.gz"), touch(tmp_path / "r", "b_seg.nii.gz"))
    assert "no case in common" in faults[-1]


def test_many_that_stand_alone_are_counted(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "same.nii.gz", *(f"p{i}.nii.gz" for i in range(30)))
    faults = faults_of(predictions, touch(tmp_path / "r", "same.nii.gz"))
    assert len(faults) == 21
    assert "and 10 more" in faults[-1]


def test_two_files_of_one_case_are_faults(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "a.nii.gz", "a/a_ensemble.nii.gz", "b.nii.gz", "old/b.nii.gz")
    references = touch(tmp_path / "r", "a.nii.gz", "b.nii.gz", "b.nii")
    faults = faults_of(predictions, references)
    assert len(faults) == 2
    assert all("'b' is also that of" in fault for fault in faults)
    (references / "b.nii").unlink()
    (predictions / "old" / "b.nii.gz").unlink()
    (fault,) = faults_of(predictions, references)
    assert "a_ensemble.nii.gz" in fault
    assert "'a' is also that of" in fault


def test_missing_and_empty_folders_are_named_together(tmp_path: Path) -> None:
    faults = faults_of(tmp_path / "nowhere", touch(tmp_path / "r"))
    assert len(faults) == 2
    assert "nowhere: predictions: no such folder" in faults[0]
    assert "references: holds no label file" in faults[1]
    file = tmp_path / "file.nii.gz"
    file.write_bytes(b"")
    assert "is a file, not a folder" in faults_of(file, file)[0]


def test_references_may_be_cases(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "p", "a.nii.gz", "unlabelled.nii.gz")
    cases = [Case("a", ("a.nii.gz",), "/labels/other_name.nii.gz"), Case("unlabelled", ("u.nii.gz",))]
    assert match_folders(predictions, cases) == [("a", str(predictions / "a.nii.gz"), "/labels/other_name.nii.gz")]
    assert "no case has a label" in faults_of(predictions, cases[1:])[0]
    assert "no prediction for case 'b'" in faults_of(predictions, [*cases, Case("b", ("b",), "/labels/b.nii.gz")])[0]
