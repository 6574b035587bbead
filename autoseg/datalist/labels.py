"""The labels that a datalist declares: names by value, and regions, which are sets of values."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.datalist.complaints import Complaints, kind_of

MOST_REGIONS = 32
Labels = dict[int, str]
Regions = dict[str, tuple[int, ...]]

logger = logging.getLogger(__name__)


def read_labels(declared: Any, class_names: Sequence[Any] | None, complaints: Complaints) -> tuple[Labels, Regions]:
    """(label value -> name, without background; region -> its values).

    `declared` is {"1": "liver"}, or nnU-Net's {"liver": 1}, where a list of values makes a region, and then a single
    value as well. `class_names` rename the labels, or are regions {name, index} instead of those declared. Where
    regions alone are declared, their values are the labels.
    """
    before = len(complaints.by_kind.get("faulty labels", []))
    if declared is not None and not isinstance(declared, dict):
        example = '{"0": "background", "1": "liver"}'
        complaints.add("faulty labels", "labels", f"is {kind_of(declared)}, not an object such as {example}")
        declared = None
    sets = _declared_sets(declared or {})
    given = [(f"labels.{key}", key, values) for key, values in sets.items()]
    labels = _named_labels({key: item for key, item in (declared or {}).items() if key not in sets}, complaints)
    background = labels.pop(0, "background")
    if "back" not in background.lower() and declared:
        logger.warning("the label value 0 is the background here, though the datalist calls it '%s'", background)
    faulty = len(complaints.by_kind.get("faulty labels", [])) > before
    if declared is not None and not labels and not given and not faulty:
        complaints.add("faulty labels", "labels", "declares nothing but the background")
        faulty = True
    if class_names and any(isinstance(item, Mapping) for item in class_names):
        given = [(f"class_names[{i}]", str(r["name"]), r["index"]) for i, r in enumerate(class_names)]
    elif class_names:
        labels = _renamed(labels, class_names, bool(declared) and not faulty, complaints)
    regions = _read_regions(given, labels, complaints)
    if regions and not labels:
        labels = {value: f"class_{value}" for values in regions.values() for value in values}
        labels |= {values[0]: name for name, values in regions.items() if len(values) == 1}
    return dict(sorted(labels.items())), regions


def _declared_sets(declared: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Regions by name; where there are some, {"core": 3} means one of a single value, as it does to nnU-Net."""
    sets = {key: item for key, item in declared.items() if isinstance(item, list)}
    if not sets:
        return {}
    single = {k: [item] for k, item in declared.items() if isinstance(item, int) and item != 0 and not _is_value(k)}
    return {key: (sets | single)[key] for key in declared if key in sets or key in single}


def _is_value(key: str) -> bool:
    """Whether the key of a label is its value, not its name."""
    return bool(re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", key))


def _named_labels(declared: Mapping[str, Any], complaints: Complaints) -> Labels:
    """Values and names, background included."""
    labels: Labels = {}
    for key, item in declared.items():
        number, name = (key, item) if _is_value(key) else (item, key)
        if isinstance(number, bool) or not re.fullmatch(r"\s*\d+\s*", str(number)):
            complaints.add("faulty labels", f"labels.{key}", f"{number!r} is not a label value (0, 1, 2, ...)")
        elif not isinstance(name, str) or not name.strip():
            complaints.add("faulty labels", f"labels.{key}", f"{name!r} is not a label's name")
        elif int(number) in labels or name in labels.values():
            twice = f"value {int(number)}" if int(number) in labels else f"name '{name}'"
            complaints.add("faulty labels", f"labels.{key}", f"the {twice} is declared twice")
        else:
            labels[int(number)] = name
    return labels


def _renamed(labels: Labels, class_names: Sequence[Any], known: bool, complaints: Complaints) -> Labels:
    """The labels under their new names; `known`: they are declared, and so is their number."""
    names = [*class_names[1:]] if str(class_names[0]).lower() == "background" else [*class_names]
    if not names or not all(isinstance(name, str) and name for name in names) or len({*map(str, names)}) < len(names):
        complaints.add("faulty labels", "class_names", "is not a list of different names")
        names = [str(name) for name in names]
    elif known and len(names) != len(labels):
        message = f"{len(names)} names, where the datalist declares {len(labels)} labels: {sorted(labels)}"
        complaints.add("faulty labels", "class_names", message)
    return dict(zip(sorted(labels) or range(1, len(names) + 1), names, strict=False))


def _read_regions(given: Sequence[tuple[str, str, Any]], labels: Labels, complaints: Complaints) -> Regions:
    """Regions of (where it stands, name, values); where labels are declared, of none but their values."""
    regions: Regions = {}
    for where, name, index in given:
        wrong = [v for v in index if isinstance(v, bool) or not isinstance(v, int) or v < 1]
        unknown = [v for v in index if v not in wrong and labels and v not in labels]
        same = None if wrong else next((other for other, values in regions.items() if {*values} == {*index}), None)
        if not name.strip() or name in regions or _is_value(name):  # a number would pass for a label's value
            complaints.add("faulty regions", where, f"'{name}' is no name of its own for a region")
        elif not index or wrong:
            shown = ", ".join(map(repr, wrong)) or "nothing"
            complaints.add("faulty regions", where, f"region '{name}' holds {shown}: label values above 0 are wanted")
        elif unknown:
            message = f"region '{name}' names {unknown}, which are no labels; declared are {sorted(labels)}"
            complaints.add("faulty regions", where, message)
        elif same:
            complaints.add("faulty regions", where, f"region '{name}' is the same as '{same}'")
        else:
            regions[name] = tuple(dict.fromkeys(index))
    if len(regions) > MOST_REGIONS:
        complaints.add("faulty regions", "labels", f"{len(regions)} regions; {MOST_REGIONS} are the most")
    return regions
