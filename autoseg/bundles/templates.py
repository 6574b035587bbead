"""Find algorithm templates and read what they can be told. A template is a folder with `scripts/algo.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import autoseg
from autoseg.bundles.contract import check_template
from autoseg.errors import Fault, InputError, nearest
from autoseg.workspace import parse_yaml

SKELETON = Path(__file__).resolve().parent / "skeleton"


def templates_folder() -> Path:
    """The templates that come with autoseg: inside the installed package, or beside it in a checkout."""
    package = Path(autoseg.__file__).resolve().parent
    inside = package / "algorithm_templates"
    return inside if inside.is_dir() else package.parent / "algorithm_templates"


def available_templates(folder: str | Path | None = None) -> dict[str, Path]:
    """Template folders by name, below `folder` or autoseg's own."""
    root = Path(folder).expanduser().absolute() if folder else templates_folder()
    if not root.is_dir():
        raise InputError([Fault(str(root), "templates_path_or_url", "no such folder of algorithm templates")])
    return {path.parents[1].name: path.parents[1] for path in sorted(root.glob("*/scripts/algo.py"))}


def find_templates(names: tuple[str, ...], folder: str | Path | None = None) -> dict[str, Path]:
    """The folders of the named families, in that order: below `folder`, else autoseg's own.

    Unknown names and templates that break Auto3DSeg's contract are refused, with every breach at once.
    """
    known = {**available_templates(), **available_templates(folder)}
    faults: list[Fault] = []
    for name in names:
        beside = Path(folder).expanduser().absolute() / name if folder else None
        if name in known:
            faults += check_template(known[name])
        elif beside is not None and beside.is_dir():
            faults += check_template(beside)
        else:
            hint = f"{nearest(name, known)}; known: {', '.join(known) or 'none'}"
            faults.append(Fault("", "algos", f"unknown algorithm '{name}'{hint}"))
    if faults:
        raise InputError(faults)
    return {name: known[name] for name in names}


def skeleton_settings() -> dict[str, Any]:
    """Hyper-parameters that every family has, with their defaults."""
    settings: dict[str, Any] = parse_yaml((SKELETON / "configs" / "hyper_parameters.yaml").read_text("utf-8"))
    return settings


def template_settings(folder: Path) -> dict[str, Any]:
    """Every hyper-parameter of a family with its default: the shared ones and its own (not of foreign templates)."""
    own = parse_yaml((folder / "configs" / "hyper_parameters.yaml").read_text("utf-8"))
    return {**skeleton_settings(), **(own or {})}


def same_kind(value: Any, default: Any) -> bool:
    """Whether a hyper-parameter's value is a number, list, text, ... as its default is; null stands for any."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float))
    if isinstance(default, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in default)
        return isinstance(value, (list, tuple)) and not (
            numbers and default and any(isinstance(item, (str, Mapping)) for item in value)
        )
    return isinstance(value, type(default))
