"""What families start from: the weights that the user names, copied into the work_dir and tried before training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.bundles.pretrained import FIELD, Weights, copy_weights, find_weights
from autoseg.config import RunConfig
from autoseg.errors import Fault, Faults, InputError
from autoseg.pipeline.session import Session
from autoseg.planning import Plan
from autoseg.records import Event
from autoseg.workspace import Workspace, read_json, read_yaml, write_json

REASON = "as in the pretrained weights"
COPIES = "copies.json"  # which copy was made of what, by family and path: the run goes on where that is gone


def named_weights(config: RunConfig, family: str) -> str | None:
    """The path that the user names for a family; one for that family alone wins over the one for all."""
    for said in (config.family_settings.get(family, {}), config.settings, {FIELD: config.pretrained}):
        if FIELD in said:
            return None if said[FIELD] is None else str(said[FIELD])
    return None


def _weights(config: RunConfig, path: str, family: str) -> Weights | None:
    """As `find_weights`; those that are gone since are the run's own copy of them."""
    try:
        return find_weights(path, family)
    except InputError:
        folder = Workspace(config.work_dir).pretrained
        kept = read_json(folder / COPIES).get(f"{family} {path}") if (folder / COPIES).is_file() else None
        if kept is None or Path(path).exists():
            raise
        return Weights(folder / kept["copy"], None, kept["settings"])


def refuse_bad_start(config: RunConfig, folders: Mapping[str, Path]) -> None:
    """What is named is there, and holds weights for every family of which that was said, or for any."""
    faults, missing = Faults(), dict[str, list[str]]()
    for family in folders:
        path = named_weights(config, family)
        try:
            if path is not None and _weights(config, path, family) is None:
                missing.setdefault(path, []).append(family)
        except InputError as error:
            faults.extend(error.faults)
    for path, without in missing.items():
        asked = [family for family in without if FIELD in config.family_settings.get(family, {})]
        if asked or len(without) == len(folders):
            faults.add(path, FIELD, f"holds no weights of {', '.join(asked or without)}")
    faults.raise_if_any()


def start_from_weights(session: Session, folders: Mapping[str, Path]) -> None:
    """Copy the weights into the work_dir, and let the session's configuration say what they ask of each family."""
    config, starts, copies = session.config, dict[str, dict[str, Any]](), dict[str, Any]()
    for family in folders:
        path = named_weights(config, family)
        if path is None:
            continue
        weights = _weights(config, path, family)
        if weights is None:
            starts[family] = {FIELD: None}
            continue
        said = {**config.settings, **config.family_settings.get(family, {})}
        own = {key: value for key, value in weights.settings.items() if key not in said}
        copy = copy_weights(weights, session.workspace.pretrained)
        starts[family] = {**own, FIELD: str(copy)}
        copies[f"{family} {path}"] = {"copy": copy.name, "settings": weights.settings}
    if copies:
        write_json(session.workspace.pretrained / COPIES, copies)
    session.config = replace(config, starts=starts)


def try_weights(session: Session, plans: Mapping[str, Plan], folders: Mapping[str, Path]) -> None:
    """Whether the networks, as planned, can take over their weights; says what each does.

    One that cannot starts from scratch, where others can and the user did not name the file for it; else InputError.
    """
    from autoseg.bundles import template_settings
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.transfer import begin

    config, misfits = session.config, dict[str, InputError]()
    tried = {family: plan for family, plan in plans.items() if plan.settings.get(FIELD)}
    for family in (family for family in plans if family not in tried and named_weights(config, family)):
        message = f"{family} starts from scratch: there is nothing of it in {named_weights(config, family)}"
        session.notify(Event("warning", message))
    for family, plan in tried.items():
        for key in config.starts.get(family, {}):
            plan.reasons[key] = REASON
        settings = {**template_settings(folders[family]), **plan.settings}
        try:
            _, transfer = begin(Bundle(folders[family], settings))
            session.stage(f"{family} starts from {named_weights(config, family)}: {transfer}")
        except InputError as error:
            misfits[family] = error
    asked = [family for family in misfits if FIELD in config.family_settings.get(family, {})]
    if asked or (misfits and len(misfits) == len(tried)):
        raise InputError(
            _said(config, family, fault) for family in asked or misfits for fault in misfits[family].faults
        )
    for family, misfit in misfits.items():
        plans[family].set(FIELD, None, "they do not fit")
        session.notify(Event("warning", f"{family} starts from scratch: {misfit.faults[0].message}"))


def _said(config: RunConfig, family: str, fault: Fault) -> Fault:
    """With the path as the user gave it, not that of its copy."""
    path = named_weights(config, family) if fault.field == FIELD else ""
    return Fault(str(path), fault.field, f"{family}: {fault.message}")


def network_settings(folder: Path) -> set[str]:
    """The hyper-parameters of a family that its network is built from: those are the weights' to say."""
    from autoseg.bundles import template_settings

    network = json.dumps(read_yaml(folder / "configs" / "network.yaml"))
    return {key for key in template_settings(folder) if f"@{key}" in network}
