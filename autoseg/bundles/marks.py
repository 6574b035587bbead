"""What can be said of a bundle from its files alone, ours or foreign. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.workspace import read_json, read_yaml

FOREIGN = "foreign.json"
TUNED = "tuned"  # ends the name of a family that a sweep made of another
ARCHITECTURE = ("arch_code_a", "arch_code_c", "node_a")  # of DiNTS: what a search finds
# in a bundle: what was found, not in models/, where the training's own files are; its picture; from where a search goes
# on, and how far it is
FOUND, PICTURE = "architecture.json", "docs/architecture.svg"
SEARCH_STATE, SEARCH_LINES = "models/search.pt", "search.jsonl"
WINDOWS = ("roi_size", "overlap", "mirror_axes_inference")  # hyper-parameters of those that a network predicts in
WEIGHTS = (".pt", ".pth", ".ckpt", ".ts")


def family_and_fold(bundle: Path) -> tuple[str, int]:
    """Of which family and fold a bundle is, by its folder's name."""
    family, fold = bundle.name.rsplit("_", 1)
    return family, int(fold)


def named_in(text: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that a configuration refers to (`@name`)."""
    names = set(re.findall(r"@(\w+)", text))
    return {key: value for key, value in settings.items() if key in names}


def is_expression(value: Any) -> bool:
    """Whether MONAI's ConfigParser would run (`$`), resolve (`@`, `%`) or make (`_target_`) a value, or part of it."""
    if isinstance(value, dict):
        return "_target_" in value or any(is_expression(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return any(map(is_expression, value))
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


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
    """Says the `WINDOWS` that the weights beside it were scored in, where those are not the bundle's: where memory ran
    out for the planned patch, a time limit left no time for as many, or others were asked for.
    """
    return bundle / "models" / "patch.json"


def scored_windows(bundle: Path) -> dict[str, Any]:
    """What `patch_file` says, where there is one."""
    found = read_json(patch_file(bundle)) if patch_file(bundle).is_file() else {}
    return {key: found[key] for key in WINDOWS if key in found}


def validation_folder(bundle: Path) -> Path:
    """Where a bundle's predictions of its validation fold are."""
    return bundle / "validation"


def out_of_fold_file(bundle: Path, case: str) -> Path:
    """The probabilities of a validation case, by its id."""
    return validation_folder(bundle) / f"{case}.npz"


def architecture_file(bundle: Path) -> Path:
    """What a search found for the bundle, to be put over its hyper-parameters: those of `ARCHITECTURE`."""
    return bundle / FOUND


def less_file(bundle: Path) -> Path:
    """Says how little a training's next try must take at a time, where memory ran out for one that could not go on."""
    return bundle / "models" / "checkpoint_less.json"


def bundle_weights(bundle: Path) -> Path:
    """The file of a bundle's best weights, there or not; of a foreign one its largest checkpoint, else scores.json."""
    if is_foreign_bundle(bundle):
        found = [path for path in bundle.rglob("*") if path.suffix in WEIGHTS and path.is_file()]
        return max(found, key=lambda path: path.stat().st_size, default=bundle / "scores.json")
    return bundle / "models" / "model.pt"


def same_files(draft: Path, target: Path) -> bool:
    """Whether every file of the draft's configs and scripts stands in `target` unchanged."""
    files = [p for part in ("configs", "scripts") for p in (draft / part).rglob("*") if p.is_file()]
    return target.is_dir() and all(
        (target / p.relative_to(draft)).is_file() and (target / p.relative_to(draft)).read_bytes() == p.read_bytes()
        for p in files
    )
