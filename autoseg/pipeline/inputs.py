"""What a job is made from, part by part and by name: its fingerprint, and what differs between two such records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg._version import __version__
from autoseg.bundles.marks import FOREIGN, bundle_settings, is_foreign_bundle
from autoseg.errors import InputError
from autoseg.records import Case, to_plain
from autoseg.workspace import file_stamp, read_json

Inputs = dict[str, dict[str, str]]  # by part, by name: a value or the digest of one
VALUES = ("version", "settings")  # parts whose values a person can read
CASES = ("training", "validation", "testing")  # parts by case id
SETTINGS = "hyper_parameters.yaml"
# what a bundle's writer makes from settings, template and installed versions
RENDERED = {f"configs/{name}.yaml" for name in ("train", "inference", "transforms_infer", "transforms_validate")}
RENDERED |= {"configs/metadata.json"}
UNSEEN = "its template, or what it is told of the data, changed"  # of a foreign bundle, whose files are not compared
MOST_NAMED = 6
LONGEST = 40  # characters of a value that is said


def made_from(**parts: Mapping[str, Any]) -> Inputs:
    """The parts as inputs, this version of autoseg among them; what is no text is kept as JSON."""
    return {
        part: {str(name): value if isinstance(value, str) else _text(value) for name, value in values.items()}
        for part, values in {"version": {"autoseg": __version__}, **parts}.items()
    }


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """A digest of all inputs, their order included: that of the cases decides which patches a training sees."""
    return hashlib.blake2b(json.dumps(inputs).encode(), digest_size=16).hexdigest()


def bundle_parts(bundle: Path) -> Inputs:
    """`settings` and `files` of a bundle; of a foreign one, whose settings are its own, what the user set."""
    foreign = is_foreign_bundle(bundle)
    settings = read_json(bundle / FOREIGN)["overrides"] if foreign else bundle_settings(bundle)
    files = sorted(path for part in ("configs", "scripts") for path in (bundle / part).glob("*.*"))
    files = [*files, bundle / FOREIGN] if foreign else [path for path in files if path.name != SETTINGS]
    return {
        "settings": setting_texts(settings),
        "files": {path.relative_to(bundle).as_posix(): _digest(path.read_bytes()) for path in files},
    }


def setting_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters as JSON, so that 1 and "1" are told apart."""
    return {key: _text(value) for key, value in settings.items()}


def case_digests(cases: Sequence[Case]) -> dict[str, str]:
    """By case id a digest of path, size and time of change of every file of the case."""
    stamps = {case.id: [file_stamp(path) for path in (*case.image, case.label) if path] for case in cases}
    return {name: _digest(json.dumps(stamp).encode()) for name, stamp in stamps.items()}


def changes(before: Inputs, now: Inputs) -> list[str]:
    """What differs in the parts that `now` has, in words: values by name, files by name, cases by their number."""
    differing = {}
    for part, values in now.items():
        old = before.get(part, {})
        differing[part] = [name for name in {**old, **values} if old.get(name) != values.get(name)]
    said = []
    for part in (part for part in VALUES if differing.get(part)):
        pairs = [(name, before.get(part, {}).get(name), now[part].get(name)) for name in differing[part]]
        said.append(several([_change(*pair) for pair in pairs]))
    files = differing.get("files", [])
    own = [name for name in files if name not in RENDERED] or ([] if said else files)
    said += [f"{several(own)} changed"] if own else []
    said += _case_changes(before, {part: now[part] for part in CASES if part in now})
    rest = [part for part, names in differing.items() if names and part not in (*VALUES, *CASES, "files")]
    return [*said, *(f"{part} changed: {several(differing[part])}" for part in rest)]


def bundle_changes(bundle: Path, now: Inputs) -> list[str]:
    """`changes` of a bundle that is to be replaced; one reason at least, even of a damaged one."""
    try:
        return changes(bundle_parts(bundle), now) or ["its files changed" if "files" in now else UNSEEN]
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["its files are damaged"]


def _change(name: str, before: str | None, now: str | None) -> str:
    texts = ["not set" if value is None else value for value in (before, now)]
    return f"{name} changed" if max(map(len, texts)) > LONGEST else f"{name} {texts[0]} -> {texts[1]}"


def _case_changes(before: Inputs, now: Inputs) -> list[str]:
    """Of all parts together: a case that went from one to the other is in another fold."""
    old, new = ({name: (part, p[part][name]) for part in now for name in p.get(part, {})} for p in (before, now))
    both = old.keys() & new.keys()
    changed = sum(old[name][1] != new[name][1] for name in both)
    counts = {
        "changed": changed,
        "new": len(new.keys() - old.keys()),
        "gone": len(old.keys() - new.keys()),
        "in another fold": sum(old[name] != new[name] for name in both) - changed,
    }
    said = [f"{count} {word}" for word, count in counts.items() if count]
    return [f"data of {len(new)} cases: {', '.join(said)}"] if said else []


def several(words: Sequence[str]) -> str:
    """The words in one line; of many, the first ones and how many more there are."""
    more = len(words) - MOST_NAMED
    return ", ".join([*words[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _text(value: Any) -> str:
    return json.dumps(to_plain(value), ensure_ascii=False)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
