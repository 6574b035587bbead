"""Datalists: what is read, what is refused (all at once), and how folds are made."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoseg.datalist import case_id, load_datalist, make_folds, plain_datalist
from autoseg.errors import InputError
from autoseg.records import Case, Datalist


def entries(count: int, folds: int = 0, prefix: str = "case") -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for i in range(count):
        made.append({"image": f"images/{prefix}_{i}.nii.gz", "label": f"labels/{prefix}_{i}.nii.gz"})
        if folds:
            made[-1]["fold"] = i % folds
    return made


def write(folder: Path, plain: Any, files: bool = True) -> Path:
    """The datalist, with an empty file at every path it names."""
    for section in ("training", "validation", "testing", "test"):
        for entry in (plain.get(section) or []) if files and isinstance(plain, dict) else []:
            named = [entry] if isinstance(entry, str) else list(entry.values()) if isinstance(entry, dict) else []
            for path in [p for item in named for p in (item if isinstance(item, list) else [item])]:
                if isinstance(path, str) and "." in path:
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).touch()
    path = folder / "datalist.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path


def faults(path: Path, *args: Any, **options: Any) -> dict[str, str]:
    """Field -> message of what load_datalist refuses; every fault names the datalist."""
    with pytest.raises(InputError) as caught:
        load_datalist(path, *args, **options)
    assert {fault.file for fault in caught.value.faults} == {str(path)}
    return {fault.field: fault.message for fault in caught.value.faults}


# reading


def test_reads_every_section(odd_path: Path) -> None:
    plain = {
        "name": "X",
        "tensorImageSize": "3D",
        "numTraining": 4,
        "labels": {"0": "background", "1": "Anterior", "7": "Hintere Hälfte"},
        "training": entries(4, folds=2),
        "testing": [{"image": "images/t_0.nii.gz", "label": "labels/t_0.nii.gz"}, "./images/t_1.nii.gz"],
    }
    datalist = load_datalist(write(odd_path, plain))
    assert [case.id for case in datalist.training] == ["case_0", "case_1", "case_2", "case_3"]
    assert datalist.training[3].image == (str(odd_path / "images" / "case_3.nii.gz"),)
    assert [case.fold for case in datalist.training] == [0, 1, 0, 1]
    assert datalist.num_fold == 2
    assert [(case.id, bool(case.label)) for case in datalist.testing] == [("t_0", True), ("t_1", False)]
    assert datalist.testing[1].image == (str(odd_path / "images" / "t_1.nii.gz"),)
    assert datalist.labels == {1: "Anterior", 7: "Hintere Hälfte"}


def test_decathlon_test_section(tmp_path: Path) -> None:
    plain = {"training": entries(2, 2), "test": ["./images/a.nii.gz"]}
    assert [case.id for case in load_datalist(write(tmp_path, plain)).testing] == ["a"]
    plain["testing"] = []
    assert "test" in faults(write(tmp_path, plain))


def test_channels_and_dataroot(tmp_path: Path) -> None:
    data = tmp_path / "data"
    training = [{"image": [f"{i}_t1.nii.gz", f"{i}_t2.nii.gz"], "label": f"{i}_seg.nii.gz"} for i in range(2)]
    data.mkdir()
    write(data, {"training": training})
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps({"training": training}))
    case = load_datalist(path, data).training[1]
    assert case.id == "1_t1"
    assert case.image == (str(data / "1_t1.nii.gz"), str(data / "1_t2.nii.gz"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/case.1.nii.gz", "case.1"),
        ("x.NII.GZ", "x"),
        ("y.seg.nrrd", "y"),
        ("z.mha", "z"),
        ("w.unknown", "w"),
        ("Fall 3 ö.nii", "Fall 3 ö"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_case_id(name: str, expected: str) -> None:
    assert case_id(name) == expected


def test_validation_list_means_one_fold(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(3), "validation": entries(2, prefix="val")})
    datalist = load_datalist(path)
    assert (datalist.num_fold, len(datalist.validation)) == (1, 2)
    assert datalist.split(0) == (datalist.training, datalist.validation)
    assert load_datalist(path, num_fold=3).num_fold == 3


def test_train_on_all(tmp_path: Path) -> None:
    datalist = load_datalist(write(tmp_path, {"training": entries(4, 2)}), train_on_all=True)
    assert datalist.num_fold == 1
    assert {case.fold for case in datalist.training} == {None}
    assert datalist.split(0) == (datalist.training, ())
    assert make_folds(datalist, {}) is datalist


def test_fewer_folds_trained_than_given(tmp_path: Path) -> None:
    datalist = load_datalist(write(tmp_path, {"training": entries(10, 5)}), num_fold=1)
    assert datalist.num_fold == 1
    assert sorted({case.fold for case in datalist.training if case.fold is not None}) == [0, 1, 2, 3, 4]
    assert [case.id for case in datalist.split(0)[1]] == ["case_0", "case_5"]
    assert make_folds(datalist, {}, 1) is datalist


def test_metadata_of_entries_is_not_a_mistype(tmp_path: Path) -> None:
    training = [{**e, "age": 60, "patient_age": 60, "site": "A", "field": "3T", "weight": 1.0} for e in entries(4, 2)]
    assert len(load_datalist(write(tmp_path, {"training": training, "channel_names": {"0": "T1"}})).training) == 4


@pytest.mark.parametrize(
    ("name", "training", "testing", "folds"), [("Task04_Hippocampus", 180, 20, 5), ("HeadNeckCT", 24, 6, 3)]
)
def test_shared_datasets(
    shared_dataset: Callable[[str], Path], name: str, training: int, testing: int, folds: int
) -> None:
    datalist = load_datalist(shared_dataset(name) / "datalist.json")
    assert (len(datalist.training), len(datalist.testing), datalist.num_fold) == (training, testing, folds)
    assert all(case.label for case in datalist.testing)


# labels


@pytest.mark.parametrize(
    ("declared", "names", "expected"),
    [
        (None, None, {}),
        ({"0": "background", "1": "a", "3": "b"}, None, {1: "a", 3: "b"}),
        ({"background": 0, "a": 1, "b": 3}, None, {1: "a", 3: "b"}),
        (None, ["a", "b"], {1: "a", 2: "b"}),
        (None, ["Background", "a"], {1: "a"}),
        ({"0": "background", "1": "x", "3": "y"}, ["a", "b"], {1: "a", 3: "b"}),
    ],
)
def test_labels(tmp_path: Path, declared: Any, names: Any, expected: dict[int, str]) -> None:
    plain = {"training": entries(2, 2)} | ({"labels": declared} if declared else {})
    assert load_datalist(write(tmp_path, plain), class_names=names).labels == expected


@pytest.mark.parametrize(
    ("declared", "field", "said"),
    [
        ([1, 2], "labels", "a list"),
        ({"0": "background"}, "labels", "nothing but the background"),
        ({"one": "a"}, "labels.one", "'a'"),
        ({"-1": "a"}, "labels.-1", "not a label value"),
        ({"1.5": "a"}, "labels.1.5", "not a label value"),
        ({"1": ""}, "labels.1", "not a label's name"),
        ({"1": 3}, "labels.1", "not a label's name"),
        ({"1": "a", "2": "a"}, "labels.2", "twice"),
        ({"a": 1, "b": 1}, "labels.b", "twice"),
        ({"a": True}, "labels.a", "not a label value"),
        ({"1": "a", "whole": [1, 2]}, "labels.whole", "names [2], which are no labels; declared are [1]"),
        ({"whole": [], "core": [2]}, "labels.whole", "holds nothing"),
        ({"whole": [0, 1]}, "labels.whole", "holds 0: label values above 0"),
        ({"whole": [1, "2", 1.5, None, True, [3]]}, "labels.whole", "'2', 1.5, None, True, [3]"),
        ({"whole": [1, 2], "all": [2, 1]}, "labels.all", "the same as 'whole'"),
        ({"whole": [1, 2], "all": [1, [2]]}, "labels.all", "holds [2]"),
        ({"2": [1, 2]}, "labels.2", "no name of its own"),
        ({" ": [1, 2]}, "labels. ", "no name of its own"),
        ({f"r{i}": [1, i] for i in range(2, 35)}, "labels", "33 regions; 32 are the most"),
    ],
)
def test_labels_declared_badly(tmp_path: Path, declared: Any, field: str, said: str) -> None:
    found = faults(write(tmp_path, {"training": entries(2, 2), "labels": declared}))
    assert list(found) == [field]
    assert said in found[field]


@pytest.mark.parametrize(
    ("declared", "labels", "regions"),
    [
        ({"whole": [1, 3], "core": [3]}, {1: "class_1", 3: "core"}, {"whole": (1, 3), "core": (3,)}),
        # nnU-Net's manner: a single value beside lists is a region as well
        ({"background": 0, "whole": [1, 3], "core": 3}, {1: "class_1", 3: "core"}, {"whole": (1, 3), "core": (3,)}),
        # ours: values with names, then the regions of them
        ({"0": "background", "1": "a", "3": "core", "whole": [1, 3, 3]}, {1: "a", 3: "core"}, {"whole": (1, 3)}),
    ],
)
def test_regions_of_the_datalist(tmp_path: Path, declared: Any, labels: Any, regions: Any) -> None:
    datalist = load_datalist(write(tmp_path, {"training": entries(2, 2), "labels": declared}))
    assert (datalist.labels, datalist.regions) == (labels, regions)
    assert datalist.scored == dict(enumerate(regions, 1))
    (tmp_path / "datalist.json").write_text(json.dumps(plain_datalist(datalist)), "utf-8")
    assert load_datalist(datalist.path) == datalist


WHOLE = {"name": "whole", "index": [1, 3]}


def test_regions_by_class_names(tmp_path: Path) -> None:
    labelled = write(tmp_path, {"training": entries(2, 2), "labels": {"0": "background", "1": "a", "3": "b"}})
    found = load_datalist(labelled, class_names=[WHOLE, {"name": "core", "index": [3]}])
    assert (found.labels, found.regions) == ({1: "a", 3: "b"}, {"whole": (1, 3), "core": (3,)})
    (tmp_path / "datalist.json").write_text(json.dumps(plain_datalist(found)), "utf-8")
    assert load_datalist(labelled) == found
    other = [{"name": "other", "index": [1]}]
    assert load_datalist(labelled, class_names=other).regions == {"other": (1,)}, "instead of those declared"


def test_sigmoid_makes_a_region_of_every_label(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(2, 2), "labels": {"0": "background", "1": "a", "3": "b"}})
    assert load_datalist(path).regions == load_datalist(path, sigmoid=False).regions == {}
    assert load_datalist(path, sigmoid=True).regions == {"a": (1,), "b": (3,)}
    assert load_datalist(path, class_names=[WHOLE], sigmoid=True).regions == {"whole": (1, 3)}


def test_faulty_regions_by_class_names_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(2, 2), "labels": {"0": "background", "1": "a", "3": "b"}})
    given = [WHOLE, {"name": "same", "index": [3, 1]}, {"name": "whole", "index": [3]}, {"name": "none", "index": []}]
    given += [{"name": "nowhere", "index": [2, 3, 4]}, {"name": "zero", "index": [0]}]
    found = faults(path, class_names=given, sigmoid=False)
    assert list(found) == [f"class_names[{i}]" for i in range(1, 6)] + ["sigmoid"]
    assert "[2, 4], which are no labels; declared are [1, 3]" in found["class_names[4]"]


def test_class_names_must_match(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(2, 2), "labels": {"0": "background", "1": "a", "3": "b"}})
    assert "3 names" in faults(path, class_names=["a", "b", "c"])["class_names"]
    assert "class_names" in faults(path, class_names=["a", "a"])
    assert "class_names" in faults(path, class_names=["background"])


# faults


def test_all_faults_at_once(odd_path: Path) -> None:
    training: list[Any] = entries(8, 2)
    training[0]["image"] = "images/missing.nii.gz"
    training[1]["imgae"] = training[1].pop("image")
    training[2]["fold:"] = training[2].pop("fold")
    training[3]["fold"] = -1
    training[4]["fold"] = "0"
    training[5] = "images/case_5.nii.gz"
    del training[6]["label"]
    training[7]["label"] = ["a.nii.gz", "b.nii.gz"]
    path = write(odd_path, {"training": training, "labels": {"1": "a", "2": "a"}})
    (odd_path / "images" / "missing.nii.gz").unlink()
    found = faults(path, num_fold=0)
    assert set(found) == {
        *("training[0].image", "training[1].imgae", "training[2].fold:", "training[3].fold", "training[4].fold"),
        *("training[5]", "training[6].label", "training[7].label", "labels.2", "num_fold"),
    }
    assert "no such file" in found["training[0].image"]
    assert "did you mean 'image'?" in found["training[1].imgae"]
    assert "did you mean 'fold'?" in found["training[2].fold:"]
    assert "a string" in found["training[5]"]


@pytest.mark.parametrize("key", ["trainning", "train", "Training"])
def test_misspelt_section(tmp_path: Path, key: str) -> None:
    found = faults(write(tmp_path, {key: entries(2)}))
    assert list(found) == [key]
    assert "did you mean 'training'?" in found[key]


@pytest.mark.parametrize(("key", "meant"), [("validaton", "validation"), ("val", "validation"), ("testng", "testing")])
def test_misspelt_optional_section(tmp_path: Path, key: str, meant: str) -> None:
    found = faults(write(tmp_path, {"training": entries(2), key: entries(1, prefix="v")}))
    assert found == {key: f"unknown section (did you mean '{meant}'?)"}


def test_misspelt_labels_section(tmp_path: Path) -> None:
    assert "lables" in faults(write(tmp_path, {"training": entries(2), "lables": {"1": "a"}}))


@pytest.mark.parametrize("key", ["patient_id", "Patient", "pateint"])
def test_misspelt_patient_would_leak(tmp_path: Path, key: str) -> None:
    found = faults(write(tmp_path, {"training": [{**e, key: "p"} for e in entries(2, 2)]}))
    assert "did you mean 'patient'?" in found[f"training[1].{key}"]


@pytest.mark.parametrize("plain", [[], "x", 3, {"training": []}, {"training": None}, {"training": {"image": "a"}}, {}])
def test_nothing_to_train_on(tmp_path: Path, plain: Any) -> None:
    assert faults(write(tmp_path, plain))


def test_json_that_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    path.write_text('{\n "training": [\n  {"image": "a"\n')
    message = faults(path)[""]
    assert "line 4 column 1" in message
    path.write_text('{"training": [], "training": [1]}')
    assert "key 'training' stands twice" in faults(path)[""]
    path.write_bytes(b"\xff\xfe{")
    assert "cannot be parsed" in faults(path)[""]


def test_datalist_is_no_file(tmp_path: Path) -> None:
    assert faults(tmp_path / "no.json") == {"": "no such file"}
    assert "cannot be read" in faults(tmp_path)[""]


def test_many_missing_files_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(30, 2)}, files=False)
    found = faults(path)
    assert len([field for field in found if field.endswith((".image", ".label"))]) == 20
    assert found[""] == "and 40 more missing files"
    assert "right folder" in found["dataroot"]
    assert "no such folder" in faults(path, tmp_path / "nowhere")["dataroot"]


def test_wrong_dataroot_is_hinted(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    path = write(tmp_path, {"training": entries(3)})
    assert str(tmp_path) in faults(path, wrong)["dataroot"].split("below")[1]


def test_some_missing_files_do_not_blame_dataroot(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(3)})
    (tmp_path / "images" / "case_1.nii.gz").unlink()
    assert list(faults(path)) == ["training[1].image"]


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    training = entries(3)
    training[0]["image"] = training[1]["image"] = "images"
    path = write(tmp_path, {"training": training})
    assert "is a folder" in faults(path)["training[0].image"]


def test_a_folder_of_slices_is_an_image(tmp_path: Path) -> None:
    training = entries(3)
    training[0]["image"], training[1]["image"] = "images/1.2.840", "images/empty"
    path = write(tmp_path, {"training": training})
    for name in ("1.2.840", "empty"):
        (tmp_path / "images" / name).unlink(missing_ok=True)
        (tmp_path / "images" / name).mkdir()
    (tmp_path / "images" / "1.2.840" / "IM0").write_bytes(b"\0" * 128 + b"DICM")
    found = faults(path)
    assert list(found) == ["training[1].image"] and "without files" in found["training[1].image"]
    (tmp_path / "images" / "empty" / "a.dcm").touch()
    assert [case.id for case in load_datalist(path).training] == ["1.2.840", "empty", "case_2"]


def test_same_image_twice(tmp_path: Path) -> None:
    training = entries(4, 2)
    training[1]["image"] = "images/../images/case_0.nii.gz"
    plain = {"training": training, "testing": ["images/case_2.nii.gz"]}
    path = write(tmp_path, plain)
    (tmp_path / "images" / "case_3.nii.gz").unlink()
    (tmp_path / "images" / "case_3.nii.gz").symlink_to(tmp_path / "images" / "case_2.nii.gz")
    found = faults(path)
    assert "training[0]" in found["training[1].image"]
    assert "another fold (1 and 0)" in found["training[1].image"]
    assert "training[2]" in found["training[3].image"]
    assert "training[2]" in found["testing[0].image"]
    assert len(found) == 3


def test_same_file_for_two_channels_or_as_label(tmp_path: Path) -> None:
    training: list[dict[str, Any]] = [
        {"image": ["a_0.nii", "a_1.nii"], "label": "a.nii"},
        {"image": ["b_0.nii", "b_0.nii"], "label": "b_1.nii"},
        {"image": ["c_0.nii", "c_1.nii"], "label": "c_1.nii"},
    ]
    found = faults(write(tmp_path, {"training": training}))
    assert "two channels" in found["training[1].image"]
    assert "image itself" in found["training[2].label"]
    assert len(found) == 2


def test_same_case_id_names_both(tmp_path: Path) -> None:
    training = entries(3)
    training[2]["image"] = "other/case_0.nii"
    message = faults(write(tmp_path, {"training": training}))["training[2].image"]
    assert "training[0]" in message
    assert str(tmp_path / "other" / "case_0.nii") in message
    assert str(tmp_path / "images" / "case_0.nii.gz") in message


def test_channel_counts_differ(tmp_path: Path) -> None:
    training = entries(4)
    training[2]["image"] = ["images/x_0.nii.gz", "images/x_1.nii.gz"]
    found = faults(write(tmp_path, {"training": training}))
    assert list(found) == ["training[2].image"]
    assert found["training[2].image"].startswith("2 files, where most cases have 1")


@pytest.mark.parametrize("image", [[], 3, "", ["a.nii", 3], {"a": 1}])
def test_image_is_no_path(tmp_path: Path, image: Any) -> None:
    training = entries(3)
    training[1]["image"] = image
    assert list(faults(write(tmp_path, {"training": training}))) == ["training[1].image"]


# folds that are given


def with_folds(folds: list[int | None]) -> dict[str, Any]:
    made = entries(len(folds))
    return {"training": [e | ({} if f is None else {"fold": f}) for e, f in zip(made, folds, strict=True)]}


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ([0, 1, None, 0], "1 of 4 cases have no fold, the others have: training[2]"),
        ([0, 1, 3, 3], "leave out 2"),
        ([1, 2, 1, 2], "leave out 0"),
        ([0, 10**9, 0, 0], "leave out 1, 2"),
        ([0, 0, 0, 0], "all cases are in fold 0"),
    ],
)
def test_folds_given_badly(tmp_path: Path, folds: list[int | None], said: str) -> None:
    found = faults(write(tmp_path, with_folds(folds)))
    assert list(found) == ["training"]
    assert said in found["training"]


@pytest.mark.parametrize("fold", [-1, 1.0, "1", True, [0], 0.5])
def test_fold_is_no_number(tmp_path: Path, fold: Any) -> None:
    assert list(faults(write(tmp_path, with_folds([0, 1, fold, 1])))) == ["training[2].fold"]


def test_more_folds_asked_for_than_given(tmp_path: Path) -> None:
    found = faults(write(tmp_path, {"training": entries(6, 3)}), num_fold=4)
    assert found == {"num_fold": "4 folds are asked for, the datalist has 3"}


def test_fold_splits_a_patient(tmp_path: Path) -> None:
    training = entries(4, 2)
    for entry in training[:2]:
        entry["patient"] = 0
    found = faults(write(tmp_path, {"training": training}))
    assert "patient '0' is in the folds 0, 1" in found["training"]


def test_pattern_finds_a_patient_in_two_folds(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(4, 2)})
    assert load_datalist(path, patient_pattern=r"_(\d+)").training[2].patient == "2"
    assert "patient 'case'" in faults(path, patient_pattern=r"^([a-z]+)_")["training"]


def test_pattern_that_fails(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(4, 2)})
    assert "regular expression" in faults(path, patient_pattern="(")["patient_pattern"]
    found = faults(path, patient_pattern="_([0-2])")
    assert list(found) == ["training[3]"]
    assert "case_3" in found["training[3]"]


def test_patient_of_validation_or_testing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = [{**e, "patient": "p1"} for e in entries(3)]
    other = [{**e, "patient": "p1"} for e in entries(1, prefix="other")]
    assert "p1" in faults(write(tmp_path, {"training": training, "validation": other}))["validation"]
    training[0]["patient"] = "p2"
    with caplog.at_level(logging.WARNING):
        load_datalist(write(tmp_path, {"training": training, "testing": other}))
    assert "p1" in caplog.text


def test_fewer_patients_than_folds(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": [{**e, "patient": f"p{i % 3}"} for i, e in enumerate(entries(9))]})
    assert faults(path, num_fold=4) == {"num_fold": "4 folds need as many patients, there are 3"}
    with pytest.raises(InputError, match="there are 3"):
        make_folds(load_datalist(path), {}, 4)
    one = write(tmp_path, {"training": entries(1)})
    assert "train on all" in faults(one, num_fold=1)["num_fold"]
    assert load_datalist(one, train_on_all=True).num_fold == 1


# folds that are made


def listed(cases: int, patients: Mapping[int, str] | None = None) -> Datalist:
    training = [Case(f"c{i:03}", (f"/c{i:03}.nii",), f"/l{i}.nii", None, (patients or {}).get(i)) for i in range(cases)]
    return Datalist("/datalist.json", "/", tuple(training))


def folds_of(datalist: Datalist) -> dict[str, int | None]:
    return {case.id: case.fold for case in datalist.training}


def some_counts(cases: int, seed: int = 3) -> dict[str, dict[int, int]]:
    numbers = random.Random(seed)
    return {
        f"c{i:03}": {0: 10**6, 1: int(numbers.lognormvariate(8, 0.6)), 2: numbers.randrange(5000) if i % 9 == 0 else 0}
        for i in range(cases)
    }


@pytest.mark.parametrize(("cases", "folds"), [(10, 5), (23, 5), (7, 3), (180, 5)])
def test_made_folds_are_even(cases: int, folds: int) -> None:
    made = make_folds(listed(cases), some_counts(cases), folds)
    sizes = Counter(case.fold for case in made.training)
    assert set(sizes) == set(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert made.num_fold == folds


def test_made_folds_are_balanced_by_content() -> None:
    counts = some_counts(90)
    made = make_folds(listed(90), counts, 5)
    for value, least in ((1, 0.8), (2, 0.6)):
        loads = [sum(counts[c.id][value] for c in made.training if c.fold == f) for f in range(5)]
        assert min(loads) > least * max(loads), (value, loads)
    rare = Counter(c.fold for c in made.training if counts[c.id][2])
    assert set(rare) == set(range(5))
    assert set(rare.values()) == {2}


def test_made_folds_are_deterministic() -> None:
    datalist, counts = listed(40), some_counts(40)
    made = make_folds(datalist, counts, 5, seed=7)
    assert make_folds(datalist, counts, 5, seed=7) == made
    shuffled = replace(datalist, training=tuple(reversed(datalist.training)))
    assert folds_of(make_folds(shuffled, counts, 5, seed=7)) == folds_of(made)
    same = {case.id: {1: 5} for case in datalist.training}
    assert folds_of(make_folds(datalist, same, 5, 1)) != folds_of(make_folds(datalist, same, 5, 2))


def test_made_folds_keep_patients_together() -> None:
    patients = {i: f"p{i // 3}" for i in range(24)} | {24: "p0", 25: "p0"}
    made = make_folds(listed(30, patients), some_counts(30), 4)
    by_patient: dict[str, set[int | None]] = {}
    for case in made.training:
        by_patient.setdefault(case.patient or case.id, set()).add(case.fold)
    assert all(len(folds) == 1 for folds in by_patient.values())
    sizes = Counter(case.fold for case in made.training)
    assert max(sizes.values()) - min(sizes.values()) <= 3


def test_num_fold_one_trains_fold_zero_of_five() -> None:
    made = make_folds(listed(12), some_counts(12), 1)
    assert made.num_fold == 1
    assert sorted({case.fold for case in made.training if case.fold is not None}) == [0, 1, 2, 3, 4]


def test_default_folds_fall_to_the_patients() -> None:
    assert make_folds(listed(12), {}).num_fold == 5
    assert make_folds(listed(3), {}).num_fold == 3


def test_given_folds_are_kept(tmp_path: Path) -> None:
    datalist = load_datalist(write(tmp_path, {"training": entries(6, 3)}))
    assert make_folds(datalist, some_counts(6), 3) is datalist


# writing


@pytest.mark.parametrize("kind", ["folds", "one fold", "made", "validation", "all", "all and validation"])
def test_plain_datalist_is_read_back(odd_path: Path, kind: str) -> None:
    plain: dict[str, Any] = {
        "labels": {"0": "background", "2": "links"},
        "training": [{**e, "patient": f"p{i}"} for i, e in enumerate(entries(6, 3 if "fold" in kind else 0))],
        "testing": ["images/t.nii.gz"],
    }
    if "validation" in kind:
        plain["validation"] = entries(2, prefix="val")
    path = write(odd_path, plain)
    options: dict[str, Any] = {"all": {"train_on_all": True}, "one fold": {"num_fold": 1}}.get(
        kind.split(" and")[0], {}
    )
    datalist = make_folds(load_datalist(path, **options), {})
    written = plain_datalist(datalist)
    assert written["training"][0]["image"] == "images/case_0.nii.gz"
    work_dir = odd_path / "work dir"
    work_dir.mkdir()
    copy = work_dir / "datalist.json"
    copy.write_text(json.dumps({"schema_version": 1, **written}))
    assert load_datalist(copy, odd_path) == replace(datalist, path=str(copy))
    assert datalist.num_fold == {"folds": 3, "made": 5}.get(kind, 1)


def test_paths_outside_dataroot_stay_absolute(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    training = entries(2, 2)
    training[0]["image"] = "../outside.nii.gz"
    datalist = load_datalist(write(root, {"training": training}))
    assert plain_datalist(datalist)["training"][0]["image"] == str(tmp_path / "outside.nii.gz")


def test_num_fold_in_a_datalist_without_folds(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": entries(6), "num_fold": 3})
    assert "configuration" in faults(path)["num_fold"]
    assert load_datalist(path, num_fold=3).num_fold == 0
