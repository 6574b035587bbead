"""What families start from: the weights that the user names, copied into the work_dir and tried before training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.bundles.marks import named_in
from autoseg.bundles.pretrained import DATA, FIELD, Weights, copy_weights, find_weights
from autoseg.bundles.templates import same_kind, template_settings
from autoseg.config import RunConfig
from autoseg.errors import Fault, Faults, InputError, one_line, root_cause
from autoseg.pipeline.session import Session
from autoseg.planning import Plan
from autoseg.records import Event
from autoseg.workspace import Workspace, read_json, read_yaml, write_json

COPIES = "copies.json"  # which copy was made of what, by family and path: the run goes on where that is gone
FROM_SCRATCH: dict[str, Any] = {FIELD: None, "frozen": []}
SHAPELESS = ("dropout",)  # of a network's settings, those by which its weights do not change


def named_weights(config: RunConfig, family: str) -> str | None:
    """The path that the user names for a family; one for that family alone wins over the one for all."""
    path = config.said(family).get(FIELD, config.pretrained)
    return None if path is None else str(path)


def start_reasons(config: RunConfig, family: str) -> dict[str, str]:
    """Why hyper-parameters are as they are that `config.starts` says of a family, for plan.json."""
    start = config.starts.get(family, {})
    return dict.fromkeys(start, "as in the pretrained weights" if start.get(FIELD) else "it starts from scratch")


def names_weights(config: RunConfig) -> bool:
    """Whether weights are named for any family."""
    return bool(config.pretrained) or config.says(FIELD)


def refuse_bad_start(config: RunConfig, folders: Mapping[str, Path]) -> None:
    """What is named is there, and holds weights for every family of which that was said, or for any."""
    faults, missing = Faults(), dict[str, list[str]]()
    named = {family: path for family in folders if (path := named_weights(config, family)) is not None}
    for family, path in named.items():
        try:
            _refuse_own(config, path)
            if _weights(config, path, family) is None:
                missing.setdefault(path, []).append(family)
            elif _searches(config, family, folders[family]):
                faults.add("", f"--set {family}.search", "weights to start from have an architecture: none is searched")
        except InputError as error:
            faults.extend(error.faults)
    for path, without in missing.items():
        asked = [family for family in without if FIELD in config.family_settings.get(family, {})]
        if asked or len(without) == len(folders):
            faults.add(path, FIELD, f"holds no weights of {', '.join(asked or without)}")
    if config.says("frozen") and not names_weights(config):
        faults.add("", "--set frozen", "nothing is pretrained that could be kept as it is")
    faults.raise_if_any()


def _searches(config: RunConfig, family: str, folder: Path) -> bool:
    """Whether an architecture would be searched for: of a family that knows such a search."""
    own = template_settings(folder)
    return bool("search" in own and config.said(family).get("search", own["search"]))


def _refuse_own(config: RunConfig, path: str) -> None:
    """The networks of this very run are replaced by those that would start from them."""
    own, given = Workspace(config.work_dir), Path(path).expanduser().absolute()
    if given.is_relative_to(own.root) and not given.is_relative_to(own.pretrained):
        message = "lies in the run's own work_dir, whose networks are trained anew: give another work_dir"
        raise InputError([Fault(path, FIELD, message)])


def _weights(config: RunConfig, path: str, family: str) -> Weights | None:
    """As `find_weights`; those that are gone since are the run's own copy of them."""
    try:
        return find_weights(path, family)
    except InputError:
        kept = _copies(Workspace(config.work_dir)).get(f"{family} {path}")
        if kept is None or Path(path).expanduser().exists():
            raise
        return Weights(Workspace(config.work_dir).pretrained / kept["copy"], None, kept["settings"]) if kept else None


def _copies(workspace: Workspace) -> dict[str, dict[str, Any]]:
    file = workspace.pretrained / COPIES
    found: dict[str, dict[str, Any]] = read_json(file)["copies"] if file.is_file() else {}
    return found


def start_from_weights(session: Session, folders: Mapping[str, Path]) -> None:
    """Copy the weights into the work_dir, and let the session's configuration say what they ask of each family."""
    config, workspace = session.config, session.workspace
    starts, copies, made = dict[str, dict[str, Any]](), dict[str, Any](), dict[tuple[Path, str | None], Path]()
    for family, folder in folders.items():
        path = named_weights(config, family)
        if path is None:
            continue
        weights = _weights(config, path, family)
        if weights is None:
            starts[family], copies[f"{family} {path}"] = FROM_SCRATCH, {}
            continue
        said = config.said(family)
        own = {key: value for key, value in _known(weights, folder).items() if key not in said}
        place = (weights.path, weights.member)  # of several families it may be one file, which can be large
        copy = made[place] = made.get(place) or copy_weights(weights, workspace.pretrained)
        starts[family] = {**own, FIELD: str(copy)}
        copies[f"{family} {path}"] = {"copy": copy.name, "settings": weights.settings}
    if copies:
        write_json(workspace.pretrained / COPIES, {"copies": {**_copies(workspace), **copies}})
    session.config = replace(config, starts=starts)


def _known(weights: Weights, folder: Path) -> dict[str, Any]:
    """Of the hyper-parameters that the weights ask for those that the family has; they must be of the same kind."""
    defaults = template_settings(folder)
    known = {key: value for key, value in weights.settings.items() if key in defaults}
    message = "its bundle has {!r}, which is not of the kind of {!r}"
    odd = [key for key, value in known.items() if not same_kind(value, defaults[key])]
    if odd:
        raise InputError(Fault(str(weights.path), key, message.format(known[key], defaults[key])) for key in odd)
    return known


def try_weights(session: Session, plans: Mapping[str, Plan], folders: Mapping[str, Path]) -> list[str]:
    """Whether the networks, as planned, can take over their weights; the families that cannot, to be planned anew.

    Those start from scratch, where others can and the user did not name the file for them; else InputError.
    """
    config, misfits = session.config, dict[str, InputError]()
    wanted = [family for family in plans if named_weights(config, family)]
    tried = [family for family in wanted if plans[family].settings.get(FIELD)]
    if wanted and not tried:
        path = str(named_weights(config, wanted[0]))
        raise InputError([Fault(path, FIELD, f"holds no weights of {', '.join(wanted)}, which are to be trained")])
    for family in (family for family in wanted if family not in tried):
        message = f"{family} starts from scratch: there is nothing of it in {named_weights(config, family)}"
        session.notify(Event("warning", message))
    for family in tried:
        try:
            found = _transfer(folders[family], plans[family])
            session.stage(f"{family} starts from {named_weights(config, family)}: {found}")
        except InputError as error:
            misfits[family] = error
    asked = [family for family in misfits if FIELD in config.family_settings.get(family, {})]
    if asked or (misfits and len(misfits) == len(tried)):
        faults = [(family, fault) for family in asked or misfits for fault in misfits[family].faults]
        raise InputError(_said(config, family, fault) for family, fault in faults)
    for family, misfit in misfits.items():
        session.notify(Event("warning", f"{family} starts from scratch: {misfit.faults[0].message}"))
    session.config = replace(config, starts={**config.starts, **dict.fromkeys(misfits, FROM_SCRATCH)})
    return list(misfits)


def _transfer(folder: Path, plan: Plan) -> str:
    """What the planned network takes over, in words; InputError where it cannot, or cannot be built."""
    from autoseg.engine.bundle import Bundle, expressions
    from autoseg.engine.transfer import begin

    settings, path = {**template_settings(folder), **plan.settings}, folder / "configs" / "hyper_parameters.yaml"
    if faults := expressions(settings, path):
        raise InputError(faults)
    try:
        return str(begin(Bundle(folder, settings))[1])
    except InputError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise InputError([Fault(str(path), "", f"its network: {one_line(root_cause(error))}")]) from error


def _said(config: RunConfig, family: str, fault: Fault) -> Fault:
    """With the path as the user gave it, not that of its copy."""
    path = named_weights(config, family) if fault.field == FIELD else ""
    return Fault(str(path), fault.field, f"{family}: {fault.message}")


def shape_settings(folder: Path) -> set[str]:
    """The hyper-parameters of a family by which its network's weights have their shape: the weights' to say."""
    network = json.dumps(read_yaml(folder / "configs" / "network.yaml"))
    return set(named_in(network, template_settings(folder))) - {*DATA, *SHAPELESS}
