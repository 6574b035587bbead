"""Datalists from what others lay out: Decathlon, nnU-Net, BIDS, patterns of file names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.datalist import load_datalist
from autoseg.datalist.sources import Wanted, find_cases
from autoseg.errors import InputError
from autoseg.pipeline.listing import Listing, write_datalist
from autoseg.records import Event
from autoseg.workspace import read_json


def volume(path: Path, *values: int, dtype: type = np.uint8) -> None:
    """A file of 4 x 4 x 4 voxels that holds these values, and zeros."""
    data = np.zeros(64, dtype)
    data[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.reshape(4, 4, 4), np.eye(4)), path)


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def faults(source: Path | str, wanted: Wanted | None = None) -> dict[str, str]:
    """Field -> message of what find_cases refuses."""
    with pytest.raises(InputError) as caught:
        find_cases(str(source), wanted)
    return {fault.field: fault.message for fault in caught.value.faults}


def refused(*args: Any, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        write_datalist(*args, **options)
    return [str(fault) for fault in caught.value.faults]


def folds_by_patient(listing: Listing) -> dict[str | None, set[int | None]]:
    found: dict[str | None, set[int | None]] = defaultdict(set)
    for case in listing.datalist.training:
        found[case.patient].add(case.fold)
    return dict(found)


@pytest.fixture
def decathlon(odd_path: Path) -> Path:
    """Six training and two testing cases."""
    root = odd_path / "Task99"
    for i in range(6):
        touch(root, f"imagesTr/c_{i}.nii.gz")
        volume(root / f"labelsTr/c_{i}.nii.gz", 1, 2)
    touch(root, "imagesTs/t_0.nii.gz", "imagesTs/t_1.nii.gz")
    plain = {
        "name": "X",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "numTraining": 6,
        "training": [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in range(6)],
        "test": ["./imagesTs/t_0.nii.gz", "./imagesTs/t_1.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(plain), "utf-8")
    return root


@pytest.fixture
def nnunet(odd_path: Path) -> Path:
    """Four training cases of two channels, one testing case with a label and one without."""
    root = odd_path / "Dataset099_X"
    for i in range(4):
        touch(root, f"imagesTr/c_{i}_0000.nii.gz", f"imagesTr/c_{i}_0001.nii.gz")
        volume(root / f"labelsTr/c_{i}.nii.gz", 1, 3)
    touch(root, *(f"imagesTs/t_{i}_{channel:04d}.nii.gz" for i in range(2) for channel in range(2)))
    volume(root / "labelsTs/t_0.nii.gz", 1)
    describe(root)
    return root


def describe(root: Path, **changes: Any) -> None:
    plain: dict[str, Any] = {
        "channel_names": {"0": "T1w", "1": "FLAIR"},
        "labels": {"background": 0, "edema": 1, "core": 3},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    plain = {key: value for key, value in {**plain, **changes}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(plain), "utf-8")


@pytest.fixture
def bids(odd_path: Path) -> Path:
    """Four subjects of two sessions; sub-03 has no labels, only sub-00 a T2w."""
    root = odd_path / "study"
    for subject in range(4):
        for session in ("a", "b"):
            stem = f"sub-0{subject}/ses-{session}/anat/sub-0{subject}_ses-{session}"
            touch(root, f"{stem}_T1w.nii.gz", f"{stem}_FLAIR.nii.gz", f"{stem}_T1w.json", f"{stem}_defacemask.nii.gz")
            if subject == 0:
                touch(root, f"{stem}_T2w.nii.gz")
            if subject < 3:
                volume(root / f"derivatives/manual/{stem}_dseg.nii.gz", 5)
                touch(root, f"derivatives/prep/{stem}_desc-brain_mask.nii.gz", f"derivatives/prep/{stem}_T1w.nii.gz")
    (root / "derivatives" / "prep" / "notes_nii.gz").touch()
    return root


# what is found


def test_decathlon_becomes_a_datalist(decathlon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(decathlon)
    heard: list[Event] = []
    listing = write_datalist(".", notify=heard.append, num_fold=3)
    plain = read_json(decathlon / "datalist.json")
    assert plain["training"][4]["image"] == "imagesTr/c_4.nii.gz"
    assert plain["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert plain["modality"] == {"0": "CT"}
    assert (listing.folds, plain["num_fold"]) == (3, 3)
    assert sorted(entry["fold"] for entry in plain["training"]) == [0, 0, 1, 1, 2, 2]
    assert [case.id for case in listing.datalist.testing] == ["t_0", "t_1"]
    assert load_datalist(decathlon / "datalist.json") == listing.datalist
    assert [event.facts["done"] for event in heard if event.kind == "progress"] == [1, 2, 3, 4, 5, 6]
    assert not [event for event in heard if event.kind == "warning"]


def test_decathlon_names_every_listed_file_that_is_missing(decathlon: Path) -> None:
    (decathlon / "labelsTr/c_1.nii.gz").unlink()
    (decathlon / "imagesTs/t_0.nii.gz").unlink()
    found = faults(decathlon)
    assert found.keys() == {"training[1].label", "testing[0].image"}
    assert all("no such file" in message for message in found.values())


def test_nnunet_raw_folder(nnunet: Path) -> None:
    (nnunet / "imagesTr" / ".c_9_0000.nii.gz").touch()
    found = find_cases(str(nnunet))
    assert [Path(file).name for file in found.training[2].image] == ["c_2_0000.nii.gz", "c_2_0001.nii.gz"]
    assert [bool(case.label) for case in found.testing] == [True, False]
    listing = write_datalist(str(nnunet), nnunet / "datalist.json")
    plain = read_json(listing.path)
    assert plain["channel_names"] == {"0": "T1w", "1": "FLAIR"}
    assert plain["testing"][0] == {
        "image": ["imagesTs/t_0_0000.nii.gz", "imagesTs/t_0_0001.nii.gz"],
        "label": "labelsTs/t_0.nii.gz",
    }
    assert listing.datalist.labels == {1: "edema", 3: "core"}


def test_nnunet_regions_are_copied_and_oddities_are_warned_of(nnunet: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    describe(nnunet, labels=labels, numTraining=7)
    found = find_cases(str(nnunet))
    assert found.labels == labels
    assert "'ignore'" in found.warnings[1]
    assert "numTraining 7, 4 cases" in found.warnings[0]


def test_nnunet_faults_at_once(nnunet: Path) -> None:
    for file in ("imagesTr/c_0_0001", "labelsTr/c_1", "imagesTr/c_2_0000", "imagesTr/c_2_0001"):
        (nnunet / f"{file}.nii.gz").unlink()
    touch(nnunet, "imagesTr/c_3_0002.nii.gz")
    found = faults(nnunet)
    assert "FLAIR is missing" in found["imagesTr/c_0_0001.nii.gz"]
    assert "no label" in found["labelsTr/c_1.nii.gz"]
    assert "only its label" in found["imagesTr/c_2_0000.nii.gz"]
    assert "3 channels" in found["imagesTr/c_3"]
    assert len(found) == 4


def test_nnunet_of_another_ending_or_version(nnunet: Path) -> None:
    describe(nnunet, file_ending=".nrrd")
    assert "4 others such as c_0.nii.gz" in faults(nnunet)["labelsTr"]
    assert "8 others such as c_0_0000.nii.gz" in faults(nnunet)["imagesTr"]
    listed = [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in range(4)]
    old = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "a", "3": "b"}, "training": listed}
    (nnunet / "dataset.json").write_text(json.dumps(old), "utf-8")
    found = find_cases(str(nnunet))
    assert (found.kind, found.channels, len(found.training)) == ("nnU-Net raw folder", ("T1", "T2"), 4)


def test_nnunet_that_lists_its_files(nnunet: Path) -> None:
    entry = {"images": ["imagesTr/c_3_0000.nii.gz", "imagesTr/c_3_0001.nii.gz"], "label": "labelsTr/c_3.nii.gz"}
    describe(nnunet, dataset={"x": entry}, numTraining=1)
    (case,) = find_cases(str(nnunet)).training
    assert case.image[1] == str(nnunet / "imagesTr/c_3_0001.nii.gz")
    describe(nnunet, dataset={"x": entry, "y": {**entry, "images": ["a"]}, "z": {"images": [], "label": "b"}})
    assert faults(nnunet).keys() == {"dataset.y.images", "dataset.z"}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"channel_names": ["CT"], "labels": None}, {"channel_names", "labels"}),
        ({"channel_names": {"1": "CT"}, "file_ending": "nii"}, {"channel_names", "file_ending"}),
        ({"channel_names": None}, {"channel_names"}),
    ],
)
def test_faults_of_nnunets_dataset_json(nnunet: Path, changes: dict[str, Any], fields: set[str]) -> None:
    describe(nnunet, **changes)
    assert faults(nnunet).keys() == fields


def test_bids_tree(bids: Path) -> None:
    heard: list[Event] = []
    listing = write_datalist(str(bids), bids / "datalist.json", heard.append)
    plain = read_json(listing.path)
    assert listing.channels == ("FLAIR", "T1w")
    assert plain["modality"] == {"0": "MRI", "1": "MRI"}
    assert plain["training"][0]["image"][1] == "sub-00/ses-a/anat/sub-00_ses-a_T1w.nii.gz"
    assert plain["training"][0]["label"].startswith("derivatives/manual/sub-00/ses-a")
    assert plain["labels"] == {"0": "background", "5": "class_5"}
    assert len(plain["training"]) == 6
    assert [len(folds) for folds in folds_by_patient(listing).values()] == [1, 1, 1]
    assert [case.id for case in listing.datalist.testing] == ["sub-03_ses-a_FLAIR", "sub-03_ses-b_FLAIR"]
    said = " ".join(event.message for event in heard if event.kind == "warning")
    assert "2 sessions have no label" in said
    assert "T2w (2 of 6)" in said


def test_bids_channels_and_labels_by_name(bids: Path) -> None:
    assert find_cases(str(bids), Wanted(channels=("T1w",))).channels == ("T1w",)
    found = find_cases(str(bids), Wanted(labels="desc-brain_mask"))
    assert found.training[0].label is not None
    assert found.training[0].label.endswith("prep/sub-00/ses-a/anat/sub-00_ses-a_desc-brain_mask.nii.gz")
    assert find_cases(str(bids), Wanted(labels="prep/mask")).training[0].label == found.training[0].label
    assert "did you mean 'T1w'" in faults(bids, Wanted(channels=("T1",)))["--channels"]
    assert faults(bids, Wanted(channels=("T2w",))).keys() == {f"sub-0{s}/ses-{n}" for s in (1, 2) for n in "ab"}
    assert "desc-brain_mask" in faults(bids, Wanted(labels="seg"))["derivatives"]
    assert "--labels" in faults(bids, Wanted(labels="a_b"))


def test_bids_that_leaves_a_choice(bids: Path) -> None:
    stem = "sub-01/ses-a/anat/sub-01_ses-a"
    touch(bids, f"{stem}_acq-low_T1w.nii.gz")
    found = find_cases(str(bids))  # the one without further entities is meant
    assert found.training[2].image[1].endswith("sub-01_ses-a_T1w.nii.gz")
    (bids / f"{stem}_T1w.nii.gz").rename(bids / f"{stem}_acq-high_T1w.nii.gz")
    touch(bids, f"derivatives/second/{stem}_dseg.nii.gz")
    assert "--labels, as in FOLDER/dseg" in faults(bids)["sub-01/ses-a"]
    message = faults(bids, Wanted(labels="manual/dseg"))["sub-01/ses-a"]
    assert "acq-high_T1w.nii.gz" in message
    assert "--channels, as in acq-high_T1w" in message


def test_bids_with_labels_of_nobody(bids: Path) -> None:
    touch(bids, "derivatives/manual/sub-77/anat/sub-77_dseg.nii.gz")
    assert "no image for the label" in faults(bids)["sub-77"]


PAIRS = Wanted(labels="d/{patient}_{case}_seg.nii.gz", channels=("t1", "t1_ce"))


@pytest.fixture
def flat(odd_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: images of two channels and labels side by side in d/, three patients of two cases."""
    monkeypatch.chdir(odd_path)
    for i in range(6):
        stem = f"d/p{i // 2}_scan_{i}"
        touch(odd_path, f"{stem}_t1.nii.gz", f"{stem}_t1_ce.nii.gz")
        volume(odd_path / f"{stem}_seg.nii.gz", 1)
    return odd_path


def test_pattern_of_file_names(flat: Path) -> None:
    listing = write_datalist("d/{patient}_{case}_{channel}.nii.gz", wanted=PAIRS, modality="MRI")
    plain = read_json(flat / "datalist.json")
    assert plain["training"][3]["image"] == ["d/p1_scan_3_t1.nii.gz", "d/p1_scan_3_t1_ce.nii.gz"]
    assert plain["modality"] == "MRI"
    assert {patient: len(folds) for patient, folds in folds_by_patient(listing).items()} == {"p0": 1, "p1": 1, "p2": 1}


def test_pattern_with_testing_images(flat: Path) -> None:
    one, labels = "d/{case}_t1.nii.gz", "d/{case}_seg.nii.gz"
    found = find_cases(one, Wanted(labels, testing="d/{case}_5_t1.nii.gz"))
    assert len(found.training) == 5
    assert [case.label for case in found.testing] == [str(flat / "d/p2_scan_5_seg.nii.gz")]
    touch(flat, "more/x_p0_scan_0_t1.nii.gz", "more/x_new_t1.nii.gz", "d/new_seg.nii.gz", "d/spare_seg.nii.gz")
    found = find_cases(one, Wanted(labels, testing="more/x_{case}_t1.nii.gz"))
    assert len(found.training) == 6
    # the label of a training case is not also a testing case's
    assert [case.label for case in found.testing] == [str(flat / "d/new_seg.nii.gz"), None]
    assert found.warnings == ("1 labels belong to none of the images",)


def test_pattern_faults_at_once(flat: Path) -> None:
    (flat / "d/p0_scan_0_seg.nii.gz").unlink()
    (flat / "d/p1_scan_2_t1_ce.nii.gz").unlink()
    found = faults("d/{patient}_{case}_{channel}.nii.gz", PAIRS)
    assert found["--labels"] == f"no label for {flat / 'd/p0_scan_0_t1.nii.gz'}"
    assert found["{channel}"] == f"t1_ce missing beside {flat / 'd/p1_scan_2_t1.nii.gz'}"


def test_a_channel_that_few_cases_have_is_one_fault(flat: Path) -> None:
    touch(flat, "d/p0_scan_0_old.nii.gz")
    for path in (flat / "d").glob("*_t1_ce.nii.gz"):
        path.rename(path.with_name(path.name.replace("t1_ce", "t2")))
    found = faults("d/{case}_{channel}.nii.gz", Wanted("d/{case}_seg.nii.gz"))
    assert found == {"{channel}": "few cases have 'old' (1 of 6): name those that are meant by --channels"}


def test_patterns_of_folders_and_repeated_fields(odd_path: Path) -> None:
    touch(odd_path, *(f"{case}/{day}/{case}.nii.gz" for case in ("a", "b") for day in ("1", "2")), "a/1/b.nii.gz")
    touch(odd_path, "seg [1]/a.nii.gz", "seg [1]/b.nii.gz")
    labels = Wanted(f"{odd_path}/seg [1]/{{case}}.nii.gz")
    assert "are both case b" in faults(f"{odd_path}/{{case}}/*/{{case}}.nii.gz", labels)["{case}"]
    found = find_cases(f"{odd_path}/**/2/{{case}}.nii.gz", labels)
    assert [case.id for case in found.training] == ["a", "b"]
    found = find_cases(f"{odd_path}/{{case}}/2", Wanted(f"{odd_path}/seg [1]/{{case}}.nii.gz"))  # folders of slices
    assert [case.image for case in found.training] == [(str(odd_path / case / "2"),) for case in "ab"]


@pytest.mark.parametrize(
    ("source", "wanted", "said"),
    [
        ("d/*.nii.gz", Wanted("l/{case}"), {"SOURCE": "lacks {case}"}),
        ("d/{case}.nii.gz", Wanted(), {"--labels": "is needed"}),
        ("d/{cse}.nii.gz", Wanted("l/{case}"), {"SOURCE": "{case}"}),
        ("d/{case}.nii.gz", Wanted("l/{patient}"), {"--labels": "may hold"}),
        ("d/{case}_t1.nii.gz", Wanted("d/{case}_seg.nii.gz", channels=("a",)), {"--channels": "no {channel}"}),
        (
            "d/{case}_t1.nii.gz",
            Wanted("d/{case}_seg.nii.gz", testing="d/{patient}{case}"),
            {"--testing": "same fields"},
        ),
        ("e/{case}.nii.gz", Wanted("d/{case}_sgg.nii.gz"), {"SOURCE": "no such folder", "--labels": "p0_scan_0_seg"}),
    ],
)
def test_patterns_that_fit_nothing(flat: Path, source: str, wanted: Wanted, said: dict[str, str]) -> None:
    found = faults(source, wanted)
    assert found.keys() == said.keys()
    assert all(said[field] in message for field, message in found.items()), found


def test_what_is_no_data_set(decathlon: Path, bids: Path) -> None:
    assert "did you mean 'Task99'" in faults(decathlon.with_name("Tsk99"))["SOURCE"]
    assert "did you mean Task99 in it" in faults(decathlon.parent)["SOURCE"]
    assert "is a file" in faults(decathlon / "imagesTr" / "c_0.nii.gz")["SOURCE"]
    assert "no data set" in faults(decathlon / "imagesTr")["SOURCE"]
    assert "is empty" in faults("")["SOURCE"]
    assert "no such folder" in faults("~nobody-of-that-name/data")["SOURCE"]
    (decathlon / "empty").mkdir()
    assert "it is empty" in faults(decathlon / "empty")["SOURCE"]
    assert faults(decathlon, Wanted("x", "y", ("z",))).keys() == {"--labels", "--testing", "--channels"}
    assert faults(bids, Wanted("x", "y", ("z",))).keys() == {"--testing"}
    assert find_cases(str(decathlon / "dataset.json")).kind == "Decathlon folder"
    (decathlon / "sub-01").mkdir()
    assert "both" in faults(decathlon)["SOURCE"]
    (bids / "dataset.json").write_text("[]")
    for subject in bids.glob("sub-*"):
        subject.rename(bids / f"x{subject.name}")
    assert "not a JSON object" in faults(bids)[""]


# what is written


def test_another_file_is_not_overwritten(decathlon: Path) -> None:
    output = decathlon / "datalist.json"
    assert not write_datalist(str(decathlon), output).unchanged
    before = output.read_text("utf-8")
    assert write_datalist(str(decathlon), output).unchanged
    (message,) = refused(str(decathlon), output, num_fold=2)
    assert "--overwrite" in message
    assert output.read_text("utf-8") == before
    assert write_datalist(str(decathlon), output, num_fold=2, overwrite=True).folds == 2
    assert "read from" in refused(str(decathlon), decathlon / "dataset.json", overwrite=True)[0]
    assert "is a folder" in refused(str(decathlon), decathlon)[0]
    assert "cannot be written" in refused(str(decathlon), "/proc/none.json")[0]


def test_label_maps_are_read_and_their_faults_said_at_once(decathlon: Path) -> None:
    output = decathlon / "datalist.json"
    volume(decathlon / "labelsTr/c_1.nii.gz", 1, 7)
    volume(decathlon / "labelsTr/c_2.nii.gz", 9)
    first, second = refused(str(decathlon), output)
    assert "c_1.nii.gz holds values that are not declared: 7 (1 voxels)" in first
    assert "9 (1 voxels)" in second
    (decathlon / "labelsTr/c_3.nii.gz").write_bytes(b"torn")
    volume(decathlon / "labelsTr/c_4.nii.gz", *np.linspace(0, 1, 30), dtype=np.float32)
    assert [message.split(":")[0].split("/")[-1] for message in refused(str(decathlon), output)] == [
        "c_3.nii.gz", "c_4.nii.gz"
    ]  # fmt: skip
    assert not output.exists()


def test_nothing_labelled_is_refused(flat: Path) -> None:
    for path in (flat / "d").glob("*_seg.nii.gz"):
        volume(path)
    (message,) = refused("d/{patient}_{case}_{channel}.nii.gz", wanted=PAIRS)
    assert "no voxel" in message


def test_patients_by_pattern(flat: Path) -> None:
    single = Wanted("d/{case}_seg.nii.gz")
    listing = write_datalist("d/{case}_t1.nii.gz", wanted=single, patient_pattern=r"(p\d)_")
    assert [len(folds) for folds in folds_by_patient(listing).values()] == [1, 1, 1]
    assert load_datalist(listing.path).training[0].patient == "p0"
    (message,) = refused("d/{patient}_{case}_{channel}.nii.gz", wanted=PAIRS, patient_pattern="x")
    assert "leave it out" in message
    assert (
        "4 folds need as many patients" in refused("d/{patient}_{case}_{channel}.nii.gz", wanted=PAIRS, num_fold=4)[0]
    )


def test_what_a_run_will_ask_for_is_warned_of(flat: Path) -> None:
    def warnings(**options: Any) -> Sequence[str]:
        heard: list[Event] = []
        wanted = Wanted("d/{case}_seg.nii.gz")
        write_datalist("d/{case}_t1.nii.gz", notify=heard.append, wanted=wanted, overwrite=True, **options)
        return [event.message for event in heard if event.kind == "warning"]

    assert "missing" in warnings()[0]
    assert "did you mean 'CT'" in warnings(modality="CTT")[0]
    assert warnings(modality="pet") == []
