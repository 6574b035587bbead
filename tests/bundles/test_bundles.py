"""A bundle on disk: what MONAI's specification and its readers want of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNetDS

from autoseg.bundles import available_templates, find_templates, load_algo, template_settings
from autoseg.bundles.writer import escape
from autoseg.config import load_config
from autoseg.demo import make_demo_data
from autoseg.errors import InputError
from autoseg.pipeline import analyze
from autoseg.workspace import read_yaml, write_yaml

MakeBundle = Callable[..., Path]
FILES = [
    "LICENSE",
    "configs/hyper_parameters.yaml",
    "configs/inference.yaml",
    "configs/metadata.json",
    "configs/network.yaml",
    "configs/train.yaml",
    "configs/transforms_infer.yaml",
    "configs/transforms_train.yaml",
    "configs/transforms_validate.yaml",
    "docs/README.md",
    "scripts/algo.py",
    "scripts/infer.py",
    "scripts/train.py",
    "scripts/validate.py",
]


def test_a_bundle_has_every_file_and_no_absolute_path_but_dataroot(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == sorted(FILES)
    settings = yaml.safe_load((root / "configs" / "hyper_parameters.yaml").read_text())
    absolute = [key for key, value in settings.items() if isinstance(value, str) and value.startswith("/")]
    assert absolute == ["dataroot"]


def test_the_channels_of_the_prediction_are_named(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    formats = json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "organ", "2": "nodule"}
    readme = (root / "docs" / "README.md").read_text()
    assert readme.startswith("# SegResNet\n") and "pytorch-ignite" in readme


@pytest.mark.parametrize("file", ["train.yaml", "inference.yaml"])
def test_each_config_parses_alone_and_builds_its_network(make_bundle: MakeBundle, file: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(make_bundle() / "configs" / file))
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, SegResNetDS)
    assert network.eval()(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    for key in ("bundle_root", "device", "dataset_dir", "run"):
        assert parser.get(key) is not None


def test_data_derived_names_cannot_become_expressions(make_bundle: MakeBundle) -> None:
    root = make_bundle(class_names={"1": "$__import__('os').system('touch /tmp/owned')", "2": "@roi_size"})
    assert not [file for file in (root / "configs").iterdir() if "$__import__" in file.read_text()]
    names = yaml.safe_load((root / "configs" / "hyper_parameters.yaml").read_text())["class_names"]
    assert names["2"] == "_roi_size"
    assert escape("$a@b%c") == "_a_b_c"


def test_the_algo_is_named_as_monai_names_it_and_its_settings_are_known() -> None:
    for name, folder in available_templates().items():
        algo = load_algo(name, folder)
        assert type(algo).__name__ == f"{name.capitalize()}Algo"
        assert type(algo).__module__ == f"{name}.scripts.algo"
        assert "_" not in name
        assert {"num_epochs", "learning_rate", "num_images_per_batch"} <= set(template_settings(folder))


@pytest.fixture(scope="module")
def undeclared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work_dir with the statistics of labels 1 and 3, which its datalist does not declare."""
    folder = tmp_path_factory.mktemp("undeclared")
    datalist = make_demo_data(folder / "data", training=4, testing=0, shape=(20, 20, 16), labels=(1, 3))
    plain = json.loads(datalist.read_text())
    del plain["labels"]
    datalist.write_text(json.dumps(plain))
    analyze(load_config(None, work_dir=str(folder / "work"), datalist=str(datalist), modality="MRI"))
    return folder / "work"


def exported(work: Path, target: Path, **given: Any) -> dict[str, Any]:
    """Settings of a bundle that is generated as MONAI's BundleGen does: its input.yaml, no plan."""
    datalist = work.parent / "data" / "datalist.json"
    source = {"modality": "MRI", "datalist": str(datalist), "dataroot": str(datalist.parent), **given}
    write_yaml(target / "input.yaml", source, versioned=False)
    algo = load_algo("segresnet", available_templates()["segresnet"])
    algo.set_data_stats(str(work / "datastats.yaml"))
    algo.set_data_source(str(target / "input.yaml"))
    algo.export_to_disk(str(target), "segresnet_0", fold=0)
    settings: dict[str, Any] = read_yaml(target / "segresnet_0" / "configs" / "hyper_parameters.yaml")
    return settings


def test_labels_that_the_statistics_call_alike_change_places(undeclared: Path, tmp_path: Path) -> None:
    stats = read_yaml(undeclared / "datastats.yaml")
    assert stats["autoseg"]["alike_across"] == [[], [], []]
    assert exported(undeclared, tmp_path / "before")["mirror_pairs"] == []
    stats["autoseg"]["alike_across"] = [[[1, 3]], [], []]
    (tmp_path / "data").symlink_to(undeclared.parent / "data")
    write_yaml(tmp_path / "alike" / "datastats.yaml", stats, versioned=False)
    assert exported(tmp_path / "alike", tmp_path / "after")["mirror_pairs"] == [[1, 3]]
    assert exported(tmp_path / "alike", tmp_path / "own", mirror_pairs=[])["mirror_pairs"] == []


@pytest.mark.parametrize(
    ("given", "names", "regions"),
    [
        ({}, ["class_1", "class_3"], None),
        ({"class_names": ["a", "b"]}, ["a", "b"], None),
        ({"class_names": ["background", "a", "b"], "sigmoid": True}, ["a", "b"], [[1], [3]]),
        ({"sigmoid": True}, ["class_1", "class_3"], [[1], [3]]),
        ({"class_names": [{"name": "whole", "index": [1, 3]}, {"name": "b", "index": [3]}]}, None, [[1, 3], [3]]),
    ],
)
def test_labels_that_no_datalist_declares_are_those_of_the_data(
    undeclared: Path, tmp_path: Path, given: dict[str, Any], names: list[str] | None, regions: list[list[int]] | None
) -> None:
    settings = exported(undeclared, tmp_path, **given)
    assert settings["label_values"] == [0, 1, 3] and settings["regions"] == regions
    assert settings["output_classes"] == (len(regions) if regions else 3)
    if names:
        keys = ["1", "2"] if regions else ["1", "3"]
        assert settings["class_names"] == dict(zip(keys, names, strict=True))


def test_names_must_be_as_many_as_the_labels_of_the_data(undeclared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class_names: 1 names, where the data have the labels \[1, 3\]"):
        exported(undeclared, tmp_path, class_names=["a"])


def test_unknown_families_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="segresnet"):
        find_templates(("segrestnet",))


def test_a_moved_work_dir_still_trains(make_bundle: MakeBundle) -> None:
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.trainer import Trainer

    root = make_bundle(num_iterations=1)
    moved = root.parent.with_name("elsewhere")
    shutil.move(root.parent, moved)
    assert Trainer(Bundle.load(moved / root.name)).run().step == 1
