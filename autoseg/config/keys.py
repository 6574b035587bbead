"""How each key of a configuration is read: a function of the given value that raises ValueError with what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from autoseg.errors import nearest
from autoseg.workspace import parse_yaml

ENSEMBLE_METHODS = ("auto", "AlgoEnsembleBestByFold", "AlgoEnsembleBestN", "AlgoEnsembleAll")
ENSEMBLE_MODES = ("mean", "vote")
NORMALIZATIONS = ("ct", "zscore")


def boolean(value: Any) -> bool:
    """True or false, as a word too."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def integer(low: int) -> Callable[[Any], int]:
    """A reader of whole numbers from `low` on."""

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value % 1 != 0:
            raise ValueError(f"{value!r} is not a whole number")
        if value < low:
            raise ValueError(f"{value!r} is less than {low}")
        return int(value)

    return read


def positive(value: Any) -> float:
    """A number above 0."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{value!r} is not a number above 0")
    return number


SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(value: Any) -> float:
    """Seconds of 90s, 40m, 6h, 1h30m, 2d."""
    text = str(value).replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0 or not math.isfinite(seconds):
        raise ValueError(f"{value!r} is not a span of time such as 40m, 6h or 1h30m")
    return seconds


def text(value: Any) -> str:
    """Text that is not empty, or a path."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not text")
    return value


def _choice(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        by_lower = {word.lower(): word for word in known}
        if str(value).lower() not in by_lower:
            raise ValueError(f"'{value}' is none of {', '.join(known)}{nearest(str(value), known)}")
        return by_lower[str(value).lower()]

    return read


def _names(value: Any) -> tuple[str, ...]:
    """A list of different names, or one string with commas."""
    names = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{value!r} is not a list of names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice")
    return tuple(names)


def _normalization(value: Any) -> str | tuple[str, ...]:
    """One word for all channels, or a list (commas in text) with a word for each."""
    read = _choice(*NORMALIZATIONS)
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    if isinstance(value, (list, tuple)) and value:
        return tuple(read(word.strip() if isinstance(word, str) else word) for word in value)
    return read(value)


def _class_names(value: Any) -> tuple[Any, ...]:
    """Names of the labels; or regions, [{name: WT, index: [1, 2, 3]}, ...], whose indices are label values."""
    if not isinstance(value, (list, tuple)) or not any(isinstance(item, Mapping) for item in value):
        return _names(value)
    regions = []
    for item in value:
        index = item.get("index") if isinstance(item, Mapping) else None
        index = [index] if isinstance(index, int) else index
        if not isinstance(index, (list, tuple)) or set(item) != {"name", "index"}:
            raise ValueError(f"{item!r} is not a region such as {{name: tumour, index: [1, 2, 3]}}")
        regions.append({"name": str(item["name"]), "index": list(index)})
    return tuple(regions)


def _algos(value: Any) -> tuple[str, ...]:
    """Names; or Auto3DSeg's {name: {_target_, template_path}}, which may not name another folder."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            folder = entry.get("template_path", name) if isinstance(entry, Mapping) else name
            if Path(str(folder)).name != str(name):
                raise ValueError(f"template_path '{folder}' of '{name}': give its parent as templates_path_or_url")
        value = list(value)
    names = _names(value)
    for name in names:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
            raise ValueError(f"'{name}' is not the name of an algorithm (letters and digits)")
    return names


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    """[[3, 4], [5, 6]], as text too."""
    read = integer(1)
    if isinstance(value, str):
        try:
            value = parse_yaml(value if value.lstrip().startswith("[") else f"[{value}]")
        except yaml.YAMLError as error:
            raise ValueError(f"'{value}' is not a list of pairs of label values") from error
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is not a list of pairs of label values")
    if len(value) == 2 and not any(isinstance(item, (list, tuple)) for item in value):
        value = [value]  # 3,4 on a command line
    pairs = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{pair!r} is not a pair of label values")
        pairs.append((read(pair[0]), read(pair[1])))
    values = [number for pair in pairs for number in pair]
    if len(set(values)) < len(values):
        raise ValueError(f"{value!r} names a label value twice")
    return tuple(pairs)


def _pattern(value: Any) -> str:
    try:
        re.compile(text(value))
    except re.error as error:
        raise ValueError(f"'{value}' is not a regular expression: {error}") from error
    return str(value)


def _path(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise ValueError("is a Python object: write the datalist to a JSON file and give its path")
    return text(value)


def _local(value: Any) -> str:
    if "://" in text(value):
        raise ValueError(f"'{value}' is a URL: nothing is downloaded, give a path")
    return str(value)


def _unused(value: Any) -> str:
    return str(value)


READERS: dict[str, Callable[[Any], Any]] = {
    **{"work_dir": text, "datalist": _path, "dataroot": text, "modality": text, "algos": _algos},
    **{"num_fold": integer(1), "class_names": _class_names, "templates_path_or_url": _local},
    "pretrained": _local,
    **{"train_on_all": boolean, "refit": integer(0), "patient_pattern": _pattern, "seed": integer(0)},
    **{"ensemble_method": _choice(*ENSEMBLE_METHODS), "n_best": integer(1), "ensemble_mode": _choice(*ENSEMBLE_MODES)},
    **{"normalization": _normalization, "mirror_pairs": _pairs},
    **dict.fromkeys(("check", "analyze", "algo_gen", "train", "ensemble", "not_use_cache", "allow_skip"), boolean),
    **{
        "sigmoid": boolean,
        "hpo": boolean,
        "tune": duration,
        "multigpu": boolean,
        "uncertainty_maps": boolean,
        "minutes": positive,
        "predict_seconds_per_case": positive,
        "time_limit": duration,
        "max_parallel": integer(1),
        "max_tries": integer(1),
        "stuck_minutes": positive,
        "tolerance_mm": positive,
    },
}
# Auto3DSeg's keys that are nothing to this project; what would change the result is refused.
ACCEPTED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("name", "task", "hpo_backend", "mlflow_tracking_uri", "mlflow_experiment_name"), _unused),
    "schema_version": _unused,
}
KNOWN = (*READERS, "settings", "family_settings", "hpo_params", *ACCEPTED)
