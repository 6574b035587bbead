"""Hyper-parameters as a user sets them: `--set` words and mappings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from autoseg.errors import Fault, Faults, InputError
from autoseg.workspace import parse_reason, parse_yaml, read_yaml


def parse_settings(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings of every family, settings by family) of the words after `--set`; later words win.

    A word is `key=value` or `family.key=value`, the value YAML or numbers with commas, or `@file.yaml`: a mapping of
    such keys, or of families to their keys.
    """
    faults = Faults()
    settings: dict[str, Any] = {}
    families: dict[str, dict[str, Any]] = {}
    for word in [words] if isinstance(words, str) else words:
        where = f"--set {word}"
        key, equals, text = word.partition("=")
        try:
            if word.startswith("@"):
                _sort_settings(read_yaml(Path(word[1:]).expanduser()), where, settings, families)
            elif not equals or not text.strip():
                raise ValueError("is not key=value" if not equals else "has no value (for none, write null)")
            else:
                _place_setting(key.strip(), parse_value(text), settings, families)
        except InputError as error:
            faults.extend(Fault(f.file, f"{where}: {f.field}" if f.field else where, f.message) for f in error.faults)
        except ValueError as error:
            faults.add("", where, str(error))
        except yaml.YAMLError as error:
            faults.add("", where, f"the value is not YAML: {parse_reason(error)}")
    faults.raise_if_any()
    return settings, families


def parse_value(text: str) -> Any:
    """A hyper-parameter's value as a person writes it: YAML, or numbers with commas for a list."""
    if re.fullmatch(r"\s*[-+\d.eE]+(\s*,\s*[-+\d.eE]+)+\s*", text):
        text = f"[{text}]"
    return parse_yaml(text)


def _sort_settings(
    plain: Any, where: str, settings: dict[str, Any], families: dict[str, dict[str, Any]], family: str = ""
) -> None:
    """A mapping's settings into `settings` and `families`; raises ValueError for what is none."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where} is not a mapping of keys to values")
    for key, value in plain.items():
        if isinstance(value, Mapping) and not family and "." not in str(key):
            _sort_settings(value, where, settings, families, str(key))
        else:
            _place_setting(f"{family}.{key}" if family else str(key), value, settings, families)


def _place_setting(key: str, value: Any, settings: dict[str, Any], families: dict[str, dict[str, Any]]) -> None:
    family, dot, name = key.rpartition(".")
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or (dot and not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", family)):
        raise ValueError(f"'{key}' is not the name of a hyper-parameter (key, or family.key)")
    (families.setdefault(family, {}) if dot else settings)[name] = value


def _of_mappings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, Mapping) for item in value.values())


def merged_settings(
    file: str, plain: Mapping[Any, Any], flags: Mapping[str, Any], faults: Faults
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of the source, and the flags' over them."""
    settings: dict[str, Any] = {}
    families: dict[str, dict[str, Any]] = {}
    for origin, mapping in ((file, plain), ("", flags)):
        for key in ("settings", "family_settings"):
            if mapping.get(key) is not None:
                try:
                    if key == "family_settings" and not _of_mappings(mapping[key]):
                        raise ValueError("is not a mapping of families to their keys and values")
                    _sort_settings(mapping[key], key, settings, families)
                except ValueError as error:
                    faults.add(origin, key, str(error))
    return settings, families
