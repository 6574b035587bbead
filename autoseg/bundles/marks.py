"""What can be said of a bundle from its files alone, ours or foreign. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoseg.workspace import read_json, read_yaml

FOREIGN = "foreign.json"
TUNED = "tuned"  # ends the name of a family that a sweep made of another
WEIGHTS = (".pt", ".pth", ".ckpt", ".ts")


def family_and_fold(bundle: Path) -> tuple[str, int]:
    """Of which family and fold a bundle is, by its folder's name."""
    family, fold = bundle.name.rsplit("_", 1)
    return family, int(fold)


def base_family(name: str) -> str:
    """The family itself, of one that a sweep made of it."""
    return name.removesuffix(TUNED)


def is_foreign_bundle(bundle: Path) -> bool:
    """Whether the bundle comes from a template written for MONAI's Auto3DSeg."""
    return (bundle / FOREIGN).is_file()


def bundle_settings(bundle: Path) -> dict[str, Any]:
    """The hyper-parameters of a bundle; of a foreign one, those that the engine needs to know."""
    if is_foreign_bundle(bundle):
        settings: dict[str, Any] = read_json(bundle / FOREIGN)["settings"]
    else:
        settings = read_yaml(bundle / "configs" / "hyper_parameters.yaml")
    return settings


def patch_file(bundle: Path) -> Path:
    """Says the `roi_size` that the weights beside it were trained with, where memory ran out for the planned one."""
    return bundle / "models" / "patch.json"


def bundle_weights(bundle: Path) -> Path:
    """The file of a bundle's best weights, there or not; of a foreign one its largest checkpoint, else scores.json."""
    if is_foreign_bundle(bundle):
        found = [path for path in bundle.rglob("*") if path.suffix in WEIGHTS and path.is_file()]
        return max(found, key=lambda path: path.stat().st_size, default=bundle / "scores.json")
    return bundle / "models" / "model.pt"
