"""A bundle on disk: what MONAI's specification and its readers want of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNetDS

from autoseg.bundles import available_templates, find_templates, load_algo, template_settings
from autoseg.bundles.writer import escape
from autoseg.errors import InputError

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
