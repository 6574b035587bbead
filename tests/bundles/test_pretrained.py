"""Where weights are in what a user names: files, bundles, zips, work_dirs."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from autoseg.bundles.pretrained import Weights, copy_weights, find_weights
from autoseg.errors import InputError
from autoseg.workspace import write_json, write_yaml

SETTINGS = {"name": "segresnet", "init_filters": 8, "input_channels": 4, "output_classes": 5, "learning_rate": 0.1}
SETTINGS |= {"spatial_dims": 3, "roi_multiple": [8, 8, 4]}
NETWORK = {"network_def": {"_target_": "X", "a": "@init_filters", "b": "@input_channels", "c": "@output_classes"}}
OF_NETWORK = {"init_filters": 8, "roi_multiple": [8, 8, 4]}


def bundle(root: Path, content: bytes = b"weights", **changes: Any) -> Path:
    """A trained bundle of ours."""
    (root / "models").mkdir(parents=True)
    (root / "models" / "model.pt").write_bytes(content)
    write_yaml(root / "configs" / "hyper_parameters.yaml", {**SETTINGS, **changes}, versioned=False)
    write_yaml(root / "configs" / "network.yaml", NETWORK, versioned=False)
    return root


def work_dir(root: Path, scores: dict[str, float]) -> Path:
    entries = []
    for name, score in scores.items():
        family, fold = name.rsplit("_", 1)
        write_json(bundle(root / name, name.encode(), name=family) / "algo_object.json", {"_target_": ""})
        entries.append({"algo": family, "fold": int(fold), "status": "done", "mean_dice": score})
    write_json(root / "leaderboard.json", {"entries": entries})
    return root


def test_a_state_dict(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert find_weights(str(tmp_path / "w.pth"), "segresnet") == Weights(tmp_path / "w.pth")


def test_a_bundle_says_how_its_network_is_built_but_not_for_which_data(tmp_path: Path) -> None:
    root = bundle(tmp_path / "segresnet_0")
    wanted = Weights(root / "models" / "model.pt", None, OF_NETWORK)
    assert find_weights(str(root), "segresnet") == wanted
    assert find_weights(str(root / "models" / "model.pt"), "segresnet") == wanted
    assert find_weights(str(root), "segresnettuned") == wanted
    assert find_weights(str(root), "dints") is None


def test_an_architecture_that_was_searched_for_is_that_of_the_weights(tmp_path: Path) -> None:
    root = bundle(tmp_path / "dints_0", name="dints", search=True, arch_code_a=[[0]], arch_code_c=[[0]], node_a=[[0]])
    network = {"_target_": "X", "a": "@arch_code_a", "c": "@arch_code_c", "n": "@node_a"}
    write_yaml(root / "configs" / "network.yaml", {"network_def": network}, versioned=False)
    found = {"arch_code_a": [[1]], "arch_code_c": [[2]], "node_a": [[3]]}
    (root / "architecture.json").write_text(json.dumps({**found, "steps": 5}))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in (path for path in root.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(tmp_path))
    for given in (root, tmp_path / "b.zip"):
        weights = find_weights(str(given), "dints")
        assert weights is not None and {key: weights.settings[key] for key in found} == found
    (root / "architecture.json").write_text("{}")
    with pytest.raises(InputError, match="its bundle cannot be read"):
        find_weights(str(root), "dints")


@pytest.mark.parametrize("value", ["$__import__('os').getcwd()", "@seed", ["%x"], {"_target_": "os.system"}, {"a": 1}])
def test_nothing_of_a_bundle_s_settings_is_run(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"init_filters would be run or resolved"):
        find_weights(str(bundle(tmp_path / "segresnet_0", init_filters=value)), "segresnet")


def test_of_several_bundles_in_a_zip_the_family_s_only_one(tmp_path: Path) -> None:
    for name in ("dints_0", "segresnet_0", "segresnet_1"):
        bundle(tmp_path / "there" / name, name.encode(), name=name.split("_")[0])
    files = sorted(path for path in (tmp_path / "there").rglob("*") if path.is_file())
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(tmp_path))
    found = find_weights(str(tmp_path / "run.zip"), "dints")
    assert found is not None and found.member == "there/dints_0/models/model.pt"
    assert find_weights(str(tmp_path / "run.zip"), "unet") is None
    with pytest.raises(InputError, match="holds several bundles"):
        find_weights(str(tmp_path / "run.zip"), "segresnet")


def test_damaged_content_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/models/model.pt", b"weights" * 1000)
    damaged = bytearray((tmp_path / "w.zip").read_bytes())
    damaged[60:64] = b"\xff\xff\xff\xff"
    (tmp_path / "w.zip").write_bytes(damaged)
    found = find_weights(str(tmp_path / "w.zip"), "unet")
    assert found is not None
    with pytest.raises(InputError, match="cannot be read"):
        copy_weights(found, tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("*"))


def test_a_bundle_of_the_model_zoo(tmp_path: Path) -> None:
    (tmp_path / "zoo" / "models").mkdir(parents=True)
    (tmp_path / "zoo" / "models" / "model.pt").write_bytes(b"weights")
    assert find_weights(str(tmp_path / "zoo"), "unet") == Weights(tmp_path / "zoo" / "models" / "model.pt")


def test_zips(tmp_path: Path) -> None:
    bundle(tmp_path / "there" / "segresnet_0")
    with zipfile.ZipFile(tmp_path / "ours.zip", "w") as archive:
        for path in sorted(p for p in (tmp_path / "there").rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(tmp_path / "there"))
    found = find_weights(str(tmp_path / "ours.zip"), "segresnet")
    assert found == Weights(tmp_path / "ours.zip", "segresnet_0/models/model.pt", OF_NETWORK)
    assert find_weights(str(tmp_path / "ours.zip"), "dints") is None
    assert copy_weights(found, tmp_path / "copies").read_bytes() == b"weights"


def test_of_a_work_dir_the_family_s_best_fold(tmp_path: Path) -> None:
    root = work_dir(tmp_path / "w", {"segresnet_0": 0.7, "segresnet_1": 0.8, "dints_0": 0.9})
    found = find_weights(str(root), "segresnet")
    assert found is not None and found.path == root / "segresnet_1" / "models" / "model.pt"
    assert find_weights(str(root), "swinunetr") is None
    (root / "leaderboard.json").write_text("{")
    assert find_weights(str(root), "segresnet") is not None, "a run that was cut off has weights, too"


def test_copies_are_named_by_their_content(tmp_path: Path) -> None:
    first, second = (bundle(tmp_path / name, name.encode()) for name in ("a_0", "b_0"))
    again = bundle(tmp_path / "c_0", b"a_0")
    names = [
        copy_weights(Weights(root / "models" / "model.pt"), tmp_path / "copies") for root in (first, second, again)
    ]
    assert names[0] == names[2] != names[1] and len(list((tmp_path / "copies").iterdir())) == 2


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    untrained = work_dir(tmp_path / "w", {"segresnet_0": 0.7})
    os.unlink(untrained / "segresnet_0" / "models" / "model.pt")
    torn = bundle(tmp_path / "torn_0")
    (torn / "configs" / "hyper_parameters.yaml").write_text("{a: [")
    said = {
        "away": "no such file or folder",
        "notes.txt": "is no file of weights",
        "cut.zip": "cannot be read",
        "other.zip": "holds no models/model.pt",
        "empty": "is neither a bundle",
        "w": "none of its bundles is trained",
        "torn_0": "cannot be read",
    }
    said["latin_0"] = "its bundle cannot be read"
    (bundle(tmp_path / "latin_0") / "configs" / "hyper_parameters.yaml").write_bytes(b"name: \xe9")
    for name, words in said.items():
        with pytest.raises(InputError, match=words) as refused:
            find_weights(str(tmp_path / name), "segresnet")
        assert [fault.field for fault in refused.value.faults] == ["pretrained"], json.dumps(name)
