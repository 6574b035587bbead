"""Write a bundle: the skeleton all families share, rendered with the hyper-parameters of one (family, fold)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.bundles.inference import inference_config
from autoseg.bundles.metadata import bundle_metadata
from autoseg.bundles.preprocessing import preprocessing
from autoseg.bundles.templates import SKELETON
from autoseg.bundles.training import train_config
from autoseg.workspace import atomic_file, read_yaml, write_json, write_yaml

HEADER = "Every number that a person or a sweep may turn; the other files refer to it with @."


def relative(path: str | Path, start: str | Path) -> str:
    """`path` as seen from the bundle, so that a work_dir can be moved."""
    return Path(os.path.relpath(path, start)).as_posix()


def write_bundle(root: Path, settings: Mapping[str, Any]) -> None:
    """Complete the family's files at `root` (configs/network.yaml, docs/) to a MONAI bundle."""
    configs = root / "configs"
    network = read_yaml(configs / "network.yaml")
    names = {k: escape(str(v)) for k, v in settings["class_names"].items()}
    safe = {**settings, "class_names": names, "modality": escape(settings["modality"])}
    write_yaml(configs / "hyper_parameters.yaml", safe, versioned=False, header=HEADER)
    for name in ("train", "validate", "infer"):
        shutil.copyfile(SKELETON / "scripts" / f"{name}.py", root / "scripts" / f"{name}.py")
    patch_transforms = root / "configs" / "transforms_train.yaml"
    if not patch_transforms.exists():
        shutil.copyfile(SKELETON / "configs" / "transforms_train.yaml", patch_transforms)
    write_yaml(configs / "transforms_infer.yaml", {"preprocessing": preprocessing(safe, ["image"])}, versioned=False)
    both = {"preprocessing_with_label": preprocessing(safe, ["image", "label"])}
    write_yaml(configs / "transforms_validate.yaml", both, versioned=False)
    write_yaml(configs / "train.yaml", train_config(safe, network), versioned=False)
    write_yaml(configs / "inference.yaml", inference_config(safe, network), versioned=False)
    write_json(configs / "metadata.json", bundle_metadata(safe, network.get("required_packages", [])))
    use = (SKELETON / "docs" / "use.md").read_text("utf-8")
    readme = root / "docs" / "README.md"
    own = readme.read_text("utf-8") if readme.exists() else f"# {settings['name']}\n"
    with atomic_file(readme) as file:
        file.write(own.removesuffix(use) + use)
    (root / "search_space.yaml").unlink(missing_ok=True)  # the family's: a bundle is one point of it
    (root / "models").mkdir(exist_ok=True)
    shutil.copyfile(SKELETON / "LICENSE", root / "LICENSE")


def escape(text: str) -> str:
    """A data-derived name that ConfigParser will neither run (`$`) nor resolve (`@`, `%`)."""
    return "".join("_" if c in "$@%" else c for c in text if c.isprintable())
