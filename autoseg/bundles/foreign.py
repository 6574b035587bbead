"""Bundles of templates written for MONAI's Auto3DSeg: planned and written by their own Algo, described for ours.

`foreign.json` beside such a bundle's own files says what the engine must know of it, and marks it as foreign.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.auto3dseg import algo_to_json

from autoseg.bundles.algo import load_algo
from autoseg.bundles.marks import FOREIGN
from autoseg.bundles.templates import skeleton_settings
from autoseg.bundles.writer import escape, relative
from autoseg.datalist import plain_datalist
from autoseg.errors import Fault, InputError
from autoseg.planning import Plan, read_statistics
from autoseg.planning.plan import BY_USER
from autoseg.records import Datalist
from autoseg.workspace import Workspace, read_json, read_yaml, write_json, write_yaml

logger = logging.getLogger(__name__)


def plan_foreign(
    name: str, folder: Path, workspace: Workspace, datalist: Datalist, overrides: Mapping[str, Any]
) -> Plan:
    """What the user says goes to its train.py as it stands; its own Algo plans the rest and may ask to be left out."""
    algo = _told(name, folder, workspace, datalist)
    skip, reason = _own_code(folder, "pre_check_skip_algo", algo.pre_check_skip_algo)
    plan = Plan(skip=(str(reason) or "its pre_check_skip_algo says so") if skip else None)
    for key, value in overrides.items():
        plan.set(key, value, BY_USER)
    return plan


def write_foreign(
    name: str, fold: int, workspace: Workspace, datalist: Datalist, plan: Plan, remove: Callable[[Path], None]
) -> Path:
    """The bundle of a fold, from the template's copy in the work_dir.

    Its files hold absolute paths, so it is written where it stays; one that was made of the same is left alone, any
    other is given to `remove` before.
    """
    template, target = workspace.templates / name, workspace.bundle(name, fold)
    if stands(target, template, workspace, datalist, plan):
        return target
    remove(target)
    algo = _told(name, template, workspace, datalist)
    _own_code(template, "export_to_disk", lambda: algo.export_to_disk(str(workspace.root), target.name, fold=fold))
    algo_to_json(algo, template_path=str(workspace.templates))
    values = sorted({0, *datalist.labels})
    settings = {
        "name": name,
        "fold": fold,
        "input_channels": read_statistics(read_yaml(workspace.datastats_yaml)).channels,
        "image_files": len(datalist.training[0].image),
        "label_values": values,
        "class_names": {str(key): name for key, name in datalist.scored.items()},
        "regions": [list(region) for region in datalist.regions.values()] or None,
        "output_classes": len(datalist.regions) or len(values),
        "dataroot": datalist.dataroot,
        "datalist": relative(workspace.datalist_json, target),
    }
    stamp = _stamp(template, workspace, datalist, plan, target)
    found = {"stamp": stamp, "overrides": plan.settings, "settings": {**skeleton_settings(), **settings}}
    write_json(target / FOREIGN, found)  # last: where it stands, the bundle is whole
    return target


def stands(target: Path, template: Path, workspace: Workspace, datalist: Datalist, plan: Plan) -> bool:
    """Whether the bundle at `target` was made of the same: template, plan, and what `workspace` says of the data."""
    described = target / FOREIGN
    stamp = _stamp(template, workspace, datalist, plan, target)
    return described.is_file() and read_json(described).get("stamp") == stamp


def _told(name: str, folder: Path, workspace: Workspace, datalist: Datalist) -> Any:
    algo = load_algo(name, folder)
    algo.set_data_stats(str(workspace.datastats_yaml))
    algo.set_data_source(str(_source(workspace, datalist)))
    return algo


def _source(workspace: Workspace, datalist: Datalist) -> Path:
    """input.yaml, its names escaped; where cases to validate on are listed apart, its datalist has them as fold 0.

    That is how MONAI's AutoRunner hands such a list to its templates, which know folds alone. They copy what they are
    told into configurations that MONAI's parser runs.
    """
    given = read_yaml(workspace.input_yaml)
    told = given | {key: _escaped(given[key]) for key in ("modality", "class_names") if key in given}
    if datalist.validation:
        apart = [replace(case, fold=fold) for fold in (0, 1) for case in (datalist.validation, datalist.training)[fold]]
        listed = workspace.root / "datalist_foreign.json"
        write_json(listed, plain_datalist(replace(datalist, training=tuple(apart), validation=())))
        told["datalist"] = str(listed)
    if told == given:
        return Path(workspace.input_yaml)
    path = workspace.root / "input_foreign.yaml"
    write_yaml(path, told, versioned=False)
    return path


def _escaped(names: Any) -> Any:
    """A name, names or regions {name, index} that MONAI's parser takes for words."""
    if isinstance(names, list):
        return [_escaped(name) for name in names]
    if isinstance(names, dict):
        return {**names, "name": escape(names["name"])}
    return escape(names)


def _own_code(folder: Path, method: str, call: Any) -> Any:
    """Run a method of a template's Algo; whatever it raises is the template's fault."""
    try:
        return call()
    except Exception as error:
        logger.debug("%s of %s", method, folder, exc_info=True)
        message = f"{type(error).__name__}: {error}"
        raise InputError([Fault(str(folder / "scripts" / "algo.py"), method, message)]) from error


def _stamp(template: Path, workspace: Workspace, datalist: Datalist, plan: Plan, target: Path) -> str:
    """Differs where the bundle would: by template, statistics, labelled cases, source, user's settings, its place.

    Not by the testing cases, nor by what input.yaml says of the ensemble, the machine or the scores.
    """
    source = read_yaml(workspace.input_yaml)
    told = [source.get(key) for key in ("modality", "class_names", "sigmoid", "normalization", "dataroot")]
    seen = [str(target), plan.settings, told, plain_datalist(replace(datalist, testing=()))]
    digest = hashlib.blake2b(json.dumps(seen, default=str).encode(), digest_size=16)
    own = [path for path in sorted(template.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    for path in (*own, workspace.datastats_yaml):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
