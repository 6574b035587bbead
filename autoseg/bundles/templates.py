"""Find algorithm templates and read what they can be told. A template is a folder with `scripts/algo.py`."""

from __future__ import annotations

import functools
import logging
import re
import shutil
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

import autoseg
from autoseg.bundles.contract import NAME, algo_class, check_template
from autoseg.errors import Fault, Faults, InputError, nearest, one_line
from autoseg.workspace import atomic_file, parse_yaml

logger = logging.getLogger(__name__)
ENTRY_POINTS = "autoseg.templates"
SKELETON = Path(__file__).resolve().parent / "skeleton"


def templates_folder() -> Path:
    """The templates that come with autoseg: inside the installed package, or beside it in a checkout."""
    package = Path(autoseg.__file__).resolve().parent
    inside = package / "algorithm_templates"
    return inside if inside.is_dir() else package.parent / "algorithm_templates"


def available_templates(folder: str | Path | None = None) -> dict[str, Path]:
    """Template folders by name, below `folder`; without one autoseg's own, and those that installed packages offer."""
    root = Path(folder).expanduser().absolute() if folder else templates_folder()
    if not root.is_dir():
        raise InputError([Fault(str(root), "templates_path_or_url", "no such folder of algorithm templates")])
    found = {path.parents[1].name: path.parents[1] for path in sorted(root.glob("*/scripts/algo.py"))}
    return found if folder else {**_offered(), **found}


def _offered() -> dict[str, Path]:
    """Families of installed packages: entry points of the group `autoseg.templates`.

    `mynet = "mypackage.mynet"` names a package whose folder is the template `mynet`. One that is broken is left out.
    """
    folders: dict[str, Path] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = util.find_spec(entry.value)
        except Exception as error:  # whatever the package's own code raises
            _warn_once(f"the family {entry.name} of an installed package is left out: {one_line(error)}")
            continue
        for place in map(Path, (spec.submodule_search_locations if spec is not None else None) or ()):
            if faults := check_template(place):
                _warn_once(f"the family {entry.name} of an installed package is left out: {faults[0]}")
            else:
                folders[place.name] = place
    return folders


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


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


def copy_template(template: Path, target: Path) -> None:
    """The same files as a family of another name, `target`'s: its Algo is named after it."""
    shutil.copytree(template, target, ignore=shutil.ignore_patterns("__pycache__"))
    script = target / "scripts" / "algo.py"
    renamed = re.sub(rf"\b{algo_class(template.name)}\b", algo_class(target.name), script.read_text("utf-8"))
    with atomic_file(script) as file:
        file.write(renamed)


def new_template(name: str, folder: str | Path) -> Path:
    """Write a small family that trains as it stands, to be changed: `folder`/`name`. InputError on a bad or known name.

    Nothing that is there already is touched.
    """
    target = Path(folder).expanduser().absolute() / name
    faults = Faults()
    if not NAME.fullmatch(name):
        faults.add("", "name", f"'{name}': letters and digits alone make a family's name")
    elif name.lower() in {known.lower() for known in available_templates()}:
        faults.add("", "name", f"'{name}' is one of autoseg's own families")
    if target.exists():
        faults.add(target, "name", "is there already")
    faults.raise_if_any()
    copy_template(SKELETON / "family", target)
    return target


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
