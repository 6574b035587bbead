"""Whole evaluations: folders in, means, tables and files out; and every fault at once."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.errors import InputError
from autoseg.evaluation import (
    METRICS,
    Evaluation,
    evaluate_folder,
    evaluate_pairs,
    read_evaluation,
    write_evaluation,
)
from autoseg.records import Case, Event, to_plain

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, data: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def volume(**boxes: tuple[int, int]) -> np.ndarray:
    """[12, 12, 12] uint8 where `v1=(2, 6)` puts value 1 in [2, 6) along the first axis, [3, 9) along the others."""
    data = np.zeros((12, 12, 12), np.uint8)
    for name, (start, stop) in boxes.items():
        data[start:stop, 3:9, 3:9] = int(name[1:])
    return data


@pytest.fixture
def folders(odd_path: Path) -> tuple[Path, Path]:
    """Case a: label 1 well, label 2 perfect. b: 1 perfect, 2 missed. c: 1 perfect, 2 in neither."""
    predictions, references = odd_path / "vorhergesagt 1", odd_path / "wahr"
    drawn: Mapping[str, tuple[np.ndarray, np.ndarray]] = {
        "a": (volume(v1=(2, 5), v2=(8, 10)), volume(v1=(2, 6), v2=(8, 10))),
        "b": (volume(v1=(2, 6)), volume(v1=(2, 6), v2=(8, 10))),
        "c": (volume(v1=(1, 6)), volume(v1=(1, 6))),
    }
    for case, (prediction, reference) in drawn.items():
        save(predictions / case / f"{case}_ensemble.nii.gz", prediction)
        save(references / f"{case}.nii.gz", reference)
    return predictions, references


def faults_of(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        evaluate_folder(*args, **kwargs)
    return [str(fault) for fault in caught.value.faults]


def test_means_are_over_cases_then_over_labels(folders: tuple[Path, Path]) -> None:
    found = evaluate_folder(*folders, labels={0: "background", 1: "liver", 2: "tumour"})
    assert found.labels == {"1": "liver", "2": "tumour"}
    assert [(s.case, s.label, s.presence) for s in found.cases] == [
        ("a", 1, "both"),
        ("a", 2, "both"),
        ("b", 1, "both"),
        ("b", 2, "missed"),
        ("c", 1, "both"),
        ("c", 2, "absent"),
    ]
    one = 2 * 3 / 7
    assert found.cases[0].dice == pytest.approx(one)
    assert found.dice["1"].mean == pytest.approx((one + 1 + 1) / 3)
    assert found.dice["2"].mean == pytest.approx((1 + 0) / 2)
    assert (found.dice["1"].n, found.dice["2"].n) == (3, 2)
    assert found.mean_dice == pytest.approx((found.dice["1"].mean + found.dice["2"].mean) / 2)
    assert found.means["dice"].mean == found.mean_dice
    assert found.means["dice"].n == 3
    assert found.counts["2"] == {"both": 1, "missed": 1, "spurious": 0, "absent": 1}
    diagonal = math.sqrt(12**2 + 12**2 + 24**2)
    assert found.metrics["hd95"]["2"].mean == pytest.approx(diagonal / 2)  # 0 in a, missed in b
    assert set(found.metrics) == set(METRICS)
    assert found.metrics["dice"] == found.dice
    for by_label in found.metrics.values():
        assert all(interval.low <= interval.mean <= interval.high for interval in by_label.values())
    assert found.warnings == ()


def test_workers_and_repetition_change_nothing(folders: tuple[Path, Path]) -> None:
    one, again, many = (json.dumps(to_plain(evaluate_folder(*folders, workers=n))) for n in (1, 1, 3))
    assert one == again == many


def test_labels_default_to_those_of_the_references(folders: tuple[Path, Path]) -> None:
    assert evaluate_folder(*folders).labels == {"1": "class_1", "2": "class_2"}
    assert evaluate_folder(*folders, labels={}).labels == {"1": "class_1", "2": "class_2"}
    assert evaluate_folder(*folders, labels=[2]).labels == {"2": "class_2"}


def test_progress_is_told(folders: tuple[Path, Path]) -> None:
    events: list[Event] = []
    evaluate_folder(*folders, notify=events.append)
    assert [(e.kind, e.facts["done"], e.facts["total"]) for e in events] == [("progress", n, 3) for n in (1, 2, 3)]
    assert {e.facts["stage"] for e in events} == {"evaluation"}


def test_cases_of_a_datalist_are_references_too(folders: tuple[Path, Path]) -> None:
    cases = [Case(name, (f"/images/{name}.nii.gz",), str(folders[1] / f"{name}.nii.gz")) for name in "abc"]
    assert evaluate_folder(folders[0], cases).cases[0] == evaluate_folder(*folders).cases[0]


def test_spacing_comes_from_the_file(folders: tuple[Path, Path]) -> None:
    found = evaluate_folder(*folders)
    missing_plane = 36 * 2.0 / 1000  # voxels of 1 x 1 x 2 mm
    assert found.cases[0].volume_difference == pytest.approx(-missing_plane)
    assert found.cases[0].relative_volume_difference == pytest.approx(-0.25)


def test_tolerance_is_in_mm(folders: tuple[Path, Path]) -> None:
    tight, wide = (evaluate_folder(*folders, tolerance_mm=mm) for mm in (0.5, 1.0))
    assert tight.cases[0].surface_dice < wide.cases[0].surface_dice == 1.0
    assert wide.tolerance_mm == 1.0


def test_a_reference_stored_in_another_orientation_is_the_same(folders: tuple[Path, Path]) -> None:
    before = evaluate_folder(*folders)
    path = folders[1] / "a.nii.gz"
    image = nib.load(path)
    turn = np.array([[1, -1], [0, 1], [2, -1]])
    nib.save(image.as_reoriented(turn), path)  # type: ignore[attr-defined]
    after = evaluate_folder(*folders)
    assert [s.dice for s in after.cases][:5] == pytest.approx([s.dice for s in before.cases][:5])


def test_json_has_the_agreed_keys(folders: tuple[Path, Path], odd_path: Path) -> None:
    write_evaluation(evaluate_folder(*folders), odd_path / "neu" / "evaluation.json")
    plain = json.loads((odd_path / "neu" / "evaluation.json").read_text("utf-8"))
    assert plain["schema_version"] == 1
    assert isinstance(plain["mean_dice"], float)
    assert set(plain["dice"]) == {"1", "2"}
    assert {"mean", "low", "high"} <= set(plain["dice"]["1"])
    assert plain["metrics"]["hd95"]["1"].keys() == {"mean", "low", "high", "n"}
    assert plain["cases"][0]["case"] == "a"
    assert plain["cases"][0]["label"] == 1
    assert plain["cases"][0]["dice"] == pytest.approx(6 / 7)
    assert plain["cases"][5]["dice"] is None  # in neither
    assert plain["labels"] == {"1": "class_1", "2": "class_2"}


def test_what_is_written_is_read_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    written = evaluate_folder(*folders, labels={1: "Milz", 2: "Tumor", 5: "nirgends"})
    write_evaluation(written, tmp_path / "e.json")
    read = read_evaluation(tmp_path / "e.json")
    assert isinstance(read, Evaluation)
    assert to_plain(read) == to_plain(written)
    assert math.isnan(read.dice["5"].mean)
    assert read.dice["1"] == written.dice["1"]
    assert read.cases[0] == written.cases[0]


def test_the_table_has_a_row_a_case_and_label(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_evaluation(evaluate_folder(*folders, labels={1: "a, b", 2: "Leber"}), tmp_path / "e.json", tmp_path / "e.csv")
    with open(tmp_path / "e.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "label", "name", "presence", *METRICS]
    assert [(r["case"], r["label"], r["presence"]) for r in rows][3:] == [
        ("b", "2", "missed"),
        ("c", "1", "both"),
        ("c", "2", "absent"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(6 / 7, abs=1e-6)
    assert rows[0]["name"] == "a, b"
    assert rows[5]["dice"] == rows[5]["hd95"] == ""


def test_every_file_that_cannot_be_compared_is_named_at_once(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    save(predictions / "a" / "a_ensemble.nii.gz", volume(v1=(2, 5))[:, :, :-1])
    (predictions / "b" / "b_ensemble.nii.gz").write_bytes(b"\x1f\x8b torn")
    (references / "b.nii.gz").write_bytes((references / "b.nii.gz").read_bytes()[:-60])
    save(predictions / "c" / "c_ensemble.nii.gz", volume(v1=(2, 5)), np.diag([1, 1, 3, 1]))
    faults = faults_of(predictions, references, workers=2)
    assert len(faults) == 4
    assert "a_ensemble.nii.gz: shape: is 12 x 12 x 11, its reference 12 x 12 x 12" in faults[0]
    assert "b_ensemble.nii.gz: cannot be read" in faults[1]
    assert "b.nii.gz" in faults[2]
    assert "c_ensemble.nii.gz: affine: spacing is 1 x 1 x 3 mm" in faults[3]


def test_a_value_that_no_reference_holds_is_a_fault(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "b" / "b_ensemble.nii.gz", volume(v255=(2, 6)))
    (fault,) = faults_of(*folders)
    assert "b_ensemble.nii.gz: labels: holds 255, which no reference holds (1, 2)" in fault


def test_values_are_named_with_the_other_faults_where_all_references_are_read(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "a" / "a_ensemble.nii.gz", volume(v2=(2, 5), v9=(5, 6))[:, :, :-1])
    save(folders[0] / "b" / "b_ensemble.nii.gz", volume(v8=(2, 6)))
    faults = faults_of(*folders)
    assert len(faults) == 3
    assert "a_ensemble.nii.gz: shape" in faults[0]
    assert "a_ensemble.nii.gz: labels: holds 9," in faults[1]
    assert "b_ensemble.nii.gz: labels: holds 8," in faults[2]
    (folders[1] / "c.nii.gz").write_bytes(b"")  # may hold 8 and 9
    assert [fault.split(": ")[0].rsplit("/")[-1] for fault in faults_of(*folders)] == ["a_ensemble.nii.gz", "c.nii.gz"]


def test_a_value_beside_the_given_labels_is_a_warning(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "b" / "b_ensemble.nii.gz", volume(v1=(2, 6), v7=(8, 10)))
    events: list[Event] = []
    found = evaluate_folder(*folders, labels={1: "liver"}, notify=events.append)  # 2 is known to the references
    (warning,) = found.warnings
    assert warning.startswith("b: predictions hold 7,")
    assert [e.message for e in events if e.kind == "warning"] == [warning]
    assert found.dice["1"].mean == pytest.approx((6 / 7 + 1 + 1) / 3)


def test_a_spurious_label_that_is_given_counts(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "c" / "c_ensemble.nii.gz", volume(v1=(1, 6), v3=(8, 10)))
    found = evaluate_folder(*folders, labels=[1, 2, 3])
    assert found.counts["3"] == {"both": 0, "missed": 0, "spurious": 1, "absent": 2}
    assert found.dice["3"].mean == 0.0
    assert found.mean_dice == pytest.approx((found.dice["1"].mean + found.dice["2"].mean) / 3)


def test_a_label_that_is_nowhere_and_a_shifted_header_are_said(folders: tuple[Path, Path]) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.05
    save(folders[0] / "b" / "b_ensemble.nii.gz", volume(v1=(2, 6)), moved)
    found = evaluate_folder(*folders, labels={1: "liver", 2: "tumour", 9: "mistyped"})
    assert any("no file holds label 9 (mistyped)" in warning for warning in found.warnings)
    assert any(warning.startswith("b: affines differ by up to 0.05 of a voxel") for warning in found.warnings)
    assert math.isnan(found.dice["9"].mean)
    assert found.mean_dice == pytest.approx((found.dice["1"].mean + found.dice["2"].mean) / 2)


def test_references_without_any_label_are_a_fault(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        save(tmp_path / folder / "a.nii.gz", volume())
    assert "no reference holds a label" in faults_of(tmp_path / "p", tmp_path / "r")[0]


def test_an_image_given_as_reference_is_a_fault(tmp_path: Path) -> None:
    image = np.arange(12**3, dtype=np.int16).reshape(12, 12, 12)
    save(tmp_path / "p" / "a.nii.gz", volume(v1=(2, 6)))
    save(tmp_path / "r" / "a.nii.gz", image)
    assert "holds 1727 different values: is this an image?" in faults_of(tmp_path / "p", tmp_path / "r")[0]


def test_wrong_arguments_are_named_together() -> None:
    with pytest.raises(InputError) as caught:
        evaluate_pairs([], labels={-1: "x"}, tolerance_mm=-1)
    assert {fault.field for fault in caught.value.faults} == {"labels", "tolerance_mm", "pairs"}
    with pytest.raises(InputError, match="case 'a' is given 2 times"):
        evaluate_pairs([("a", "p", "r"), ("a", "q", "r")])


def test_files_that_cannot_be_written_or_read_are_faults(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate_folder(*folders)
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_evaluation(found, tmp_path / "taken")
    with pytest.raises(InputError, match=r"end it in \.json"):
        write_evaluation(found, tmp_path / "e.csv", tmp_path / "e.csv")
    assert not (tmp_path / "e.csv").exists()
    for text in (
        '{"schema_version": 1}',
        "[]",
        '{"schema_version": 99, "mean_dice": 1}',
        '{"schema_version": 1, "x": 1}',
    ):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(InputError, match="is not an evaluation"):
            read_evaluation(tmp_path / "e.json")
    with pytest.raises(InputError, match="no such file"):
        read_evaluation(tmp_path / "none.json")
