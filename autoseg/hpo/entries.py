"""The entries of a search space as they are written: their forms, how one is put over another, what is wrong with one.

`{low: 0.1, high: 0.9}` numbers between two; `log: true` on a logarithmic scale, `step: 0.1` only every so often
`{times: [0.2, 3.0]}` the same relative to the planned value; a list is scaled as a whole, each axis rounded to the
    multiples in the hyper-parameter that `multiple` names
`{choices: [a, b]}` any of these plain values
`{shorten: [0, 2]}` the planned list without so many of its last items
`null` not searched; any other value, or `{value: x}`: that value in every trial

`when: {optimizer: sgd}` (or a list of values) limits an entry to trials in which another hyper-parameter has a value;
several entries of one hyper-parameter are a list, of which the first that applies counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autoseg.bundles.templates import same_kind
from autoseg.errors import Faults, nearest

FORMS = {
    "range": ("low", "high", "log", "step"),
    "times": ("times", "log", "step", "multiple"),
    "choices": ("choices",),
    "shorten": ("shorten",),
    "value": ("value",),
}
MARKS = {"low": "range", "high": "range", **{form: form for form in ("times", "choices", "shorten", "value")}}
FIELDS = tuple(dict.fromkeys(field for fields in FORMS.values() for field in fields))

BUDGET = "how long a trial trains is the sweep's to say"
DATA = "says what the data are, not how they are learned"
NETWORK = "follows from the family and the data"
NOT_SEARCHED = {
    **dict.fromkeys(("num_epochs", "num_iterations", "max_seconds", "time_limit", "deadline"), BUDGET),
    "num_epochs_per_validation": "trials are compared at the same shares of their budget",
    **dict.fromkeys(("bundle_root", "datalist", "dataroot", "cache_dir", "modality", "input_channels"), DATA),
    **dict.fromkeys(("image_files", "image_dims", "label_values", "regions", "class_names", "mirror_pairs"), DATA),
    **dict.fromkeys(("name", "output_classes", "spatial_dims", "slice_axis", "roi_multiple"), NETWORK),
    "fold": "which cases trials learn from and are scored on is the sweep's to say",
    "seed": "the luckiest seed is no better than another",
}


@dataclass(frozen=True)
class Entry:
    """One entry: its fields, the values of others under which it counts, where it stands, whether the user wrote it."""

    fields: Mapping[str, Any]
    when: Mapping[str, tuple[Any, ...]]
    file: str
    field: str
    given: bool

    @property
    def form(self) -> str:
        return next((MARKS[field] for field in self.fields if field in MARKS), "")

    @property
    def condition(self) -> str:
        """`[optimizer=sgd]`, or nothing: what tells a conditional parameter from others of the same name."""
        return _condition(self.when)


def _listed(plain: Any) -> Any:
    """Tuples, which Python's users write and JSON does not know, as lists."""
    if isinstance(plain, Mapping):
        return {key: _listed(value) for key, value in plain.items()}
    return [_listed(item) for item in plain] if isinstance(plain, (list, tuple)) else plain


def _condition(when: Mapping[str, tuple[Any, ...]]) -> str:
    words = [f"{name}={'|'.join(_word(value) for value in values)}" for name, values in sorted(when.items())]
    return f"[{','.join(words)}]" if words else ""


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_entries(plain: Any, file: str, field: str, given: bool, faults: Faults) -> list[Entry]:
    """What stands for one hyper-parameter: a plain value, an entry, or a list of entries."""
    plain = _listed(plain)
    several = isinstance(plain, list) and bool(plain) and all(isinstance(item, Mapping) for item in plain)
    if not several and not isinstance(plain, Mapping):
        return [Entry({"value": plain}, {}, file, field, given)]
    entries = []
    for fields in plain if several else [plain]:
        when = fields.get("when") or {}
        if not isinstance(when, Mapping):
            faults.add(file, field, f"when: {when!r} is not a mapping such as {{optimizer: sgd}}")
            continue
        wanted = {str(k): tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in when.items()}
        where = field + _condition(wanted)
        unknown = [key for key in fields if key not in (*FIELDS, "when")]
        for key in unknown:
            faults.add(file, where, f"unknown field '{key}'{nearest(str(key), (*FIELDS, 'when'))}")
        found = Entry({k: v for k, v in fields.items() if k in FIELDS and v is not None}, wanted, file, where, given)
        forms = {MARKS[key] for key in found.fields if key in MARKS}
        if len(forms) > 1:
            faults.add(file, where, f"mixes {' and '.join(sorted(forms))}: give one of them")
        elif not unknown:
            entries.append(found)
    if len({entry.condition for entry in entries}) < len(entries):
        faults.add(file, field, "two entries under the same condition")
    return entries


def put_over(base: list[Entry], new: list[Entry]) -> list[Entry]:
    """`new` over `base`: entries of the same condition are merged field by field where their form is the same.

    A value without a condition replaces all that there is.
    """
    fixed = any(entry.form == "value" and not entry.when for entry in new)
    found = {} if fixed else {entry.condition: entry for entry in base}
    for entry in new:
        old = found.get(entry.condition)
        if old is not None and entry.form in ("", old.form):
            # steps and a logarithmic scale exclude one another: the new one puts away the old one
            gone = "log" if "step" in entry.fields else "step" if entry.fields.get("log") else ""
            kept = {key: value for key, value in old.fields.items() if key != gone}
            entry = replace(entry, fields={**kept, **entry.fields})
        found[entry.condition] = entry
    return sorted(found.values(), key=lambda entry: not entry.when)


def check_entry(entry: Entry, default: Any, known: Mapping[str, Any], faults: Faults) -> None:
    """Everything that is wrong with one entry, for a hyper-parameter of that `default`."""
    form, fields = entry.form, entry.fields
    wrong: list[str] = []
    if not form:
        wrong.append(f"says none of low and high, {', '.join(f for f in FORMS if f != 'range')}")
    elif alien := [key for key in fields if key not in FORMS[form]]:
        wrong.append(f"{', '.join(alien)}: nothing that {form} could have")
    elif form in ("range", "times"):
        wrong += _wrong_range(fields, default) if form == "range" else _wrong_times(fields, default, known)
    elif form == "shorten":
        wrong += _wrong_shorten(fields["shorten"], default)
    else:
        values = fields["choices"] if form == "choices" else [fields["value"]]
        wrong += _wrong_choices(values, default)
    for message in wrong:
        faults.add(entry.file, entry.field, message)


def wrong_value(value: Any, default: Any) -> str | None:
    """Why a hyper-parameter of that `default` cannot have the value; None where it can."""
    if not same_kind(value, default):
        return f"{value!r} is not of the kind of its default, {default!r}"
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"{value!r} is not a plain, finite value"
    if any(f'"{sign}' in text for sign in "$@%"):
        return f"{value!r} would be run or resolved by MONAI: no expression is allowed here"
    return None


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong_range(fields: Mapping[str, Any], default: Any) -> list[str]:
    if default is not None and (isinstance(default, bool) or not isinstance(default, (int, float))):
        return [f"a range is of numbers, and its default is {default!r}: give choices"]
    missing = [key for key in ("low", "high") if key not in fields]
    if missing:
        return [f"{' and '.join(missing)} missing"]
    wrong = _wrong_bounds("low", fields["low"], "high", fields["high"], fields)
    numbers = [fields[key] for key in ("low", "high", "step") if is_number(fields.get(key))]
    if isinstance(default, int) and any(not isinstance(n, int) for n in numbers):
        wrong.append("is of whole numbers: low, high and step must be some")
    return wrong


def _wrong_times(fields: Mapping[str, Any], default: Any, known: Mapping[str, Any]) -> list[str]:
    if isinstance(default, (str, bool)):
        return [f"there are no multiples of its default, {default!r}: give choices"]
    times = fields["times"]
    if not isinstance(times, (list, tuple)) or len(times) != 2:
        return [f"times: {times!r} is not a list of two factors such as [0.5, 2]"]
    if any(is_number(bound) and bound <= 0 for bound in times):
        return [f"times: {times!r} has a factor that is not above 0"]
    wrong = _wrong_bounds("the first of times", times[0], "the second", times[1], {**fields, "step": None})
    step = fields.get("step")
    if step is not None and (not is_number(step) or step <= 0 or (isinstance(default, int) and step % 1)):
        wrong.append(f"step: {step!r} is not a {'whole ' if isinstance(default, int) else ''}number above 0")
    elif step is not None and fields.get("log"):
        wrong.append("log and step: give one of them")
    multiple = fields.get("multiple")
    if multiple is not None and multiple not in known:
        wrong.append(f"multiple: no such hyper-parameter as '{multiple}'{nearest(str(multiple), known)}")
    return wrong


def _wrong_bounds(first: str, low: Any, second: str, high: Any, fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with two bounds, the scale and the step between them."""
    log, step = fields.get("log", False), fields.get("step")
    wrong = [f"{name}: {value!r} is not a number" for name, value in ((first, low), (second, high))
             if not is_number(value)]  # fmt: skip
    if not isinstance(log, bool):
        wrong.append(f"log: {log!r} is neither true nor false")
    if step is not None and (not is_number(step) or step <= 0):
        wrong.append(f"step: {step!r} is not a number above 0")
    if wrong:
        return wrong
    if low > high:
        wrong.append(f"{first}, {low:g}, is above {second}, {high:g}")
    elif step is not None and step > high - low > 0:
        wrong.append(f"step: {step:g} is larger than the range from {low:g} to {high:g}")
    if log and low <= 0:
        wrong.append(f"{first} is {low:g}: a logarithmic scale begins above 0")
    if log and step is not None:
        wrong.append("log and step: give one of them")
    return wrong


def _wrong_choices(values: Any, default: Any) -> list[str]:
    if not isinstance(values, (list, tuple)) or not values:
        return [f"choices: {values!r} is not a list of values"]
    wrong = [message for value in values if (message := wrong_value(value, default))]
    first = next((value for value in values if value is not None), None)
    if not wrong and any(not same_kind(value, first) for value in values):
        wrong.append(f"choices: {list(values)!r} are not of one kind")
    if any(value in values[:number] for number, value in enumerate(values)):
        wrong.append(f"choices: {list(values)!r} holds a value twice")
    return wrong


def _wrong_shorten(shorten: Any, default: Any) -> list[str]:
    if not isinstance(default, (list, tuple)) and default is not None:
        return [f"only lists can be shorter, and its default is {default!r}"]
    pair = isinstance(shorten, (list, tuple)) and len(shorten) == 2
    if not pair or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in shorten):
        return [f"shorten: {shorten!r} is not a list of two whole numbers such as [0, 1]"]
    return [f"shorten: {shorten[0]} is above {shorten[1]}"] if shorten[0] > shorten[1] else []
