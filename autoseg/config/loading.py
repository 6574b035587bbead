"""From a file, a mapping and flags to the run configuration."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.config.keys import ACCEPTED, KNOWN, READERS
from autoseg.config.record import RunConfig
from autoseg.config.settings import merged_settings
from autoseg.config.sweep import SweepConfig, read_sweep
from autoseg.errors import Faults, InputError, nearest
from autoseg.workspace import Workspace, read_json, read_yaml

logger = logging.getLogger(__name__)

MODALITIES = {"ct": "CT", "mr": "MRI", "mri": "MRI", "pet": "PET", "pt": "PET"}
MODALITIES |= dict.fromkeys(("flair", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "adc", "dwi"), "MRI")
IN_SETTINGS = " (hyper-parameters stand in `settings`)"
PATHS = ("datalist", "dataroot", "templates_path_or_url", "pretrained")


def load_config(
    source: str | Path | Mapping[str, Any] | None = None, *, check_paths: bool = True, **flags: Any
) -> RunConfig:
    """One configuration of a YAML or JSON file (or a mapping) and flags; flags that are not None win.

    Without `source` and a `datalist` flag, `input.yaml` of the work_dir is read, as Auto3DSeg does. Paths are
    relative to the current directory and, for those in a file that are not found there, to the file's folder.
    `settings`, `family_settings` and `hpo_params` of flags are put over the source's key by key. `check_paths=False`
    is for verbs that need a finished run but not its data. Raises InputError with all faults.
    """
    faults = Faults()
    source = _default_source(source, flags)
    file, plain = _read_source(source, faults)
    readable = not faults
    given: dict[str, tuple[str, Any]] = {str(k): (file, v) for k, v in plain.items() if v is not None}
    flags = {key: value for key, value in flags.items() if value is not None}
    settings, family_settings = merged_settings(file, plain, flags, faults)
    sweep = _read_sweep(file, plain, flags, faults)
    given |= {key: ("", value) for key, value in flags.items()}
    values: dict[str, Any] = {}
    for key, (origin, value) in given.items():
        reader = READERS.get(key) or ACCEPTED.get(key)
        if key not in KNOWN:
            faults.add(origin, key, f"unknown key{nearest(key, KNOWN, 0.7) or IN_SETTINGS}")
        elif reader is not None:
            try:
                values[key] = reader(value)
            except ValueError as error:
                faults.add(origin, key, str(error))
    if "mlflow_tracking_uri" in values:
        logger.warning("nothing is sent to MLflow: losses and scores are in metrics.jsonl and TensorBoard's files")
    origins = {key: origin for key, (origin, _) in given.items()}
    _resolve_paths(values, origins)
    if check_paths:
        _check_files(values, origins, faults)
    if readable and "datalist" not in origins:
        faults.add(file, "datalist", "missing: the path of a JSON file that lists images and labels")
        if "modality" not in origins:
            faults.add(file, "modality", "missing: CT, MRI or PET")
    _check_modality(values, origins, faults)
    if values.get("train_on_all") and values.get("num_fold", 1) > 1:
        faults.add(origins["num_fold"], "num_fold", "training on all cases has no folds: leave it out")
    if values.get("train_on_all") and values.get("refit"):
        faults.add(origins["refit"], "refit", "trains on all cases beside the folds: give it or train_on_all")
    if values.get("hpo") and values.get("hpo_backend", "optuna") != "optuna":
        message = f"'{values['hpo_backend']}' is not there: sweeps are Optuna's, leave it out or give optuna"
        faults.add(origins["hpo_backend"], "hpo_backend", message)
    if "time_limit" in values and "minutes" in values:
        faults.add(origins["minutes"], "minutes", "bounds the trainings, which time_limit does, too: give one of them")
    known = {f.name: values[f.name] for f in dataclasses.fields(RunConfig) if f.name in values}
    complete = {"datalist", "dataroot", "modality", "work_dir"} <= known.keys()
    if "tune" in values and values["tune"] >= values.get("time_limit", math.inf):
        faults.add(origins["tune"], "tune", "leaves none of the time_limit to the trainings")
    if "tune" in values:
        known["hpo"], sweep = True, dataclasses.replace(sweep, time_limit=values["tune"])
    known |= {"settings": settings, "family_settings": family_settings, "hpo_params": sweep}
    config = RunConfig(**known) if complete else None
    if faults or config is None:
        raise InputError(faults.items, partial=config)
    return config


def _read_sweep(file: str, plain: Mapping[Any, Any], flags: Mapping[str, Any], faults: Faults) -> SweepConfig:
    """`hpo_params` of the source, and the flags' over them."""
    given: dict[str, dict[Any, Any]] = {}
    for origin, mapping in ((file, plain), ("", flags)):
        params = mapping.get("hpo_params")
        if params is not None and not isinstance(params, Mapping):
            faults.add(origin, "hpo_params", "is not a mapping such as {n_trials: 30}")
        elif params is not None:
            given[origin] = {**given.get(origin, {}), **params}
    return read_sweep(given, faults)


def _default_source(source: Any, flags: Mapping[str, Any]) -> Any:
    """The work_dir's input.yaml where nothing is given; a datalist among the flags says that a new run is meant."""
    if source is not None or flags.get("datalist") is not None:
        return source
    stored: Path = Workspace(str(flags.get("work_dir") or "work_dir")).input_yaml
    return stored if stored.is_file() else None


def _read_source(source: Any, faults: Faults) -> tuple[str, Mapping[Any, Any]]:
    """(name for faults, mapping) of whatever was given as input."""
    if source is None:
        return "", {}
    if isinstance(source, Mapping):
        return "input", source
    if not isinstance(source, (str, Path)):
        faults.add("input", "", f"is a {type(source).__name__}, not a file or a mapping")
        return "input", {}
    path = Path(source).expanduser().absolute()
    try:
        plain = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    except InputError as error:
        faults.extend(error.faults)
        return str(path), {}
    if plain is not None and not isinstance(plain, Mapping):
        faults.add(path, "", "does not hold keys and values such as `modality: MRI`")
        return str(path), {}
    if isinstance(plain, Mapping) and "training" in plain:
        faults.add(path, "", "is a datalist, not a configuration: give it as `datalist`")
        return str(path), {}
    return str(path), plain or {}


def _resolve_paths(values: dict[str, Any], origins: Mapping[str, str]) -> None:
    """Absolute paths in `values`, a work_dir and a dataroot among them."""
    for key in PATHS:
        if key not in values:
            continue
        path = Path(values[key]).expanduser()
        file = Path(origins[key])
        if file.is_absolute() and not path.exists():
            # a work_dir that was moved brings its datalist along
            moved = (file.name, path.name) == ("input.yaml", "datalist.json") and key == "datalist"
            beside = file.parent / (path.name if moved else path)
            path = beside if beside.exists() else path
        values[key] = str(path.absolute())
    if "datalist" in values:
        values.setdefault("dataroot", str(Path(values["datalist"]).parent))
    values["work_dir"] = str(Path(values.get("work_dir", "work_dir")).expanduser().absolute())


def _check_files(values: Mapping[str, Any], origins: Mapping[str, str], faults: Faults) -> None:
    """Files and folders that are not there, or are the one instead of the other."""
    datalist = Path(values.get("datalist", ""))
    if "datalist" in values and not datalist.is_file():
        folders = {datalist.parent, Path(origins["datalist"]).parent}
        others = [p.name for folder in folders if folder.is_dir() for p in folder.glob("*.json")]
        what = "is a folder, not a file" if datalist.is_dir() else "no such file"
        faults.add(origins["datalist"], "datalist", f"{what}: {datalist}{nearest(datalist.name, others)}")
    for key in ("dataroot", "templates_path_or_url"):
        if key in origins and key in values and not Path(values[key]).is_dir():
            faults.add(origins[key], key, f"no such folder: {values[key]}")
    work_dir = Path(values["work_dir"])
    if work_dir.exists() and not work_dir.is_dir():
        faults.add(origins.get("work_dir", ""), "work_dir", f"is a file, not a folder: {work_dir}")


def _check_modality(values: dict[str, Any], origins: Mapping[str, str], faults: Faults) -> None:
    """`values["modality"]` in its one spelling, CT+PET where channels differ; by default the datalist's own words."""
    said = _one_spelling(_listed_modalities(values.get("datalist")))
    file = origins.get("modality", values.get("datalist", ""))
    given = str(values.get("modality", "")).split("+") if "modality" in origins else said.split("+")
    values["modality"] = _one_spelling(given)
    if not values["modality"]:
        if "modality" not in origins and Path(file).is_file():
            faults.add(file, "modality", "missing, in the configuration as well: CT, MRI or PET")
        return
    unknown = dict.fromkeys(word.strip() for word in given if word.strip().lower() not in MODALITIES)
    if unknown and "normalization" not in origins:
        for word in unknown:
            hint = nearest(word, ("CT", "MRI", "PET"))
            message = f"'{word}' is none of CT, MRI, PET{hint}; for others give `normalization` (ct or zscore) as well"
            faults.add(file, "modality", message)
    elif said and said != values["modality"]:
        logger.warning("modality is %s, though the datalist says %s", values["modality"], said)


def _one_spelling(words: Sequence[str]) -> str:
    """The modalities of the channels, in their order, joined by +; one word where all are alike."""
    named = [MODALITIES.get(word.strip().lower(), word.strip().upper()) for word in words]
    return named[0] if len(set(named)) == 1 else "+".join(named)


def _listed_modalities(datalist: str | None) -> list[str]:
    """What the datalist says of its channels ({"0": "MRI"}); its own faults are told by load_datalist."""
    try:
        plain = read_json(datalist) if datalist else {}
    except InputError:
        return []
    listed = plain.get("modality") or plain.get("channel_names") if isinstance(plain, dict) else None
    if isinstance(listed, dict):
        listed = [listed[key] for key in sorted(listed, key=lambda key: (len(key), key))]  # "10" comes after "9"
    words = listed if isinstance(listed, list) else [listed]
    return [word for word in words if isinstance(word, str) and word.strip()]
