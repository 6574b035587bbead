"""Cases by a pattern of file names: `data/{case}_{channel}.nii.gz` beside `labels/{case}.nii.gz`.

`{case}`, `{channel}` and `{patient}` stand for a part of a name, `*` for any part, `**/` for any folders. Where a name
can be read in several ways, the case takes as much as it can, the others as little.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.datalist.complaints import Complaints
from autoseg.datalist.sources.found import Found, Wanted, case_of
from autoseg.errors import nearest

FIELDS = {"case": r"[^/]+", "channel": r"[^/]+?", "patient": r"[^/]+?"}
PARTS = re.compile(r"(\{[^{}]*\}|\*\*/|\*)")


@dataclass(frozen=True)
class Match:
    """A file that fits a pattern, and what the pattern's fields stand for in its name."""

    path: Path
    fields: Mapping[str, str]


Cases = dict[tuple[str, ...], dict[str, Match]]  # by the name of the case and, "" without, the channel


class Pattern:
    """A pattern of paths, absolute or relative to the current folder."""

    def __init__(self, text: str, flag: str, complaints: Complaints, channels: Sequence[str] = ()):
        self.text, self.flag = text, flag
        self.parts = PARTS.split(os.path.abspath(os.path.expanduser(text)))
        self.fields = {part[1:-1] for part in self.parts if part.startswith("{")}
        self.channels = "|".join(re.escape(name) for name in sorted(channels, key=len, reverse=True))
        unknown = sorted(self.fields - FIELDS.keys())
        for name in unknown:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            complaints.add("patterns", flag, f"{{{name}}} is none of {known}{nearest(name, FIELDS)}")
        if "case" not in self.fields and not unknown:
            complaints.add("patterns", flag, f"'{text}' lacks {{case}}, the part of the names that tells cases apart")

    def matches(self) -> list[Match]:
        """The files that fit, hidden ones left out; folders (of DICOM slices) where no file fits."""
        text = "".join("*" if p.startswith("{") else p if PARTS.fullmatch(p) else glob.escape(p) for p in self.parts)
        regex, paths = self._regex(), sorted(glob.glob(text, recursive=True))
        found = [Match(Path(path), match.groupdict()) for path in paths if (match := regex.fullmatch(path))]
        return [match for match in found if match.path.is_file()] or found

    def _regex(self) -> re.Pattern[str]:
        whole, seen = "", set()
        for part in self.parts:
            name = part[1:-1] if part.startswith("{") else ""
            if not name:
                whole += {"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
            elif name in seen:
                whole += f"(?P={name})"
            else:
                whole += f"(?P<{name}>{self.channels if name == 'channel' and self.channels else FIELDS[name]})"
                seen.add(name)
        return re.compile(whole)

    def why_none(self) -> str:
        """That no file fits, and what there is instead."""
        folder = Path(self.parts[0] if self.parts[0].endswith("/") else os.path.dirname(self.parts[0]))
        if not folder.is_dir():
            return f"no file fits '{self.text}': no such folder: {folder}"
        there = sorted(path.name for path in folder.glob("[!.]*"))
        shown = ", ".join(there[:4]) + (f" and {len(there) - 4} more" if len(there) > 4 else "")
        return f"no file fits '{self.text}': {folder} holds {shown or 'nothing'}"


def find_by_pattern(text: str, wanted: Wanted) -> Found:
    """The cases whose files fit the pattern, with the labels that fit `wanted.labels`; raises InputError.

    Images that fit `wanted.testing` are testing cases, even where they fit `text`, too. A training image without a
    label is a fault, and so is a case that lacks a channel which others have.
    """
    complaints = Complaints(Path(text))
    images = Pattern(text, "SOURCE", complaints, wanted.channels)
    labels = Pattern(wanted.labels or "{case}", "--labels", complaints)
    testing = Pattern(wanted.testing, "--testing", complaints, wanted.channels) if wanted.testing else None
    if not wanted.labels:
        complaints.add("patterns", "--labels", "is needed beside a pattern of images, as in 'labels/{case}.nii.gz'")
    elif not labels.fields & FIELDS.keys() <= {"case", *images.fields} - {"channel"}:
        complaints.add("patterns", "--labels", "may hold {case} and, where the images' pattern does, {patient}")
    if testing is not None and testing.fields != images.fields:
        complaints.add("patterns", "--testing", "must hold the same fields in braces as the images' pattern")
    if wanted.channels and "channel" not in images.fields:
        complaints.add("patterns", "--channels", f"'{text}' has no {{channel}}")
    complaints.raise_if_any()
    maps = labels.matches()
    taken = {match.path for match in maps}  # data/{case}_seg is no channel of data/{case}_{channel}
    training = {match.path: match for match in images.matches() if match.path not in taken}
    tested = {match.path: match for match in testing.matches() if match.path not in taken} if testing else {}
    for pattern, files in ((images, training), (labels, taken), (testing, tested)):
        if pattern is not None and not files:
            complaints.add("patterns", pattern.flag, pattern.why_none())
    complaints.raise_if_any()
    # a testing image that fits the images' pattern has there the name by which its label is found
    tested = {path: training.pop(path, match) for path, match in tested.items()}
    names = [name for name in ("patient", "case") if name in labels.fields]
    by_case = [_by_case(files, names, complaints) for files in (training.values(), tested.values(), maps)]
    return _found(text, wanted.channels, by_case, complaints)


def _by_case(matches: Iterable[Match], names: Sequence[str], complaints: Complaints) -> Cases:
    found: Cases = {}
    for match in matches:
        key, channel = tuple(match.fields[name] for name in names), match.fields.get("channel", "")
        other = found.setdefault(key, {}).setdefault(channel, match)
        if other is not match:
            message = f"{match.path} and {other.path} are both {' '.join(['case', *key, channel]).strip()}"
            complaints.add("cases of two files", "{case}", message)
    return found


def _found(text: str, named: Sequence[str], by_case: Sequence[Cases], complaints: Complaints) -> Found:
    """Training, testing and label files put together."""
    training, tested, maps = by_case
    channels = named or _channels([*training.values(), *tested.values()], complaints)
    hint = "" if named else "; --channels names those that are meant"
    for files in (*training.values(), *tested.values()):
        lacking = [channel for channel in channels if channel not in files]
        if lacking:
            where = next(iter(files.values())).path
            complaints.add("missing channels", "{channel}", f"{', '.join(lacking)} missing beside {where}{hint}")
    for key in sorted(training.keys() - maps.keys()):
        file = min(match.path for match in training[key].values())
        complaints.add("missing labels", "--labels", f"no label for {file}")
    complaints.raise_if_any()
    cases = []
    for part in (training, tested):
        for key, files in sorted(part.items()):
            # a label of a training case is not a testing case's, whose name may be the same in another folder
            label = maps[key][""].path if key in maps and (part is training or key not in training) else None
            patient = next(iter(files.values())).fields.get("patient")
            cases.append(case_of((files[channel].path for channel in channels), label, patient))
    spare = len(maps.keys() - training.keys() - tested.keys())
    return Found(
        "pattern of file names",
        Path(text),
        tuple(cases[: len(training)]),
        testing=tuple(cases[len(training) :]),
        channels=() if all(not name or name.isdigit() for name in channels) else tuple(channels),
        warnings=(f"{spare} labels belong to none of the images",) if spare else (),
    )


def _channels(cases: Sequence[Mapping[str, Match]], complaints: Complaints) -> list[str]:
    """The channels of all cases, sorted; one that few cases have is a fault of its own, and no channel."""
    counts = Counter(channel for files in cases for channel in files)
    rare = {channel: count for channel, count in sorted(counts.items()) if 2 * count < len(cases)}
    if rare and len(rare) < len(counts):
        found = ", ".join(f"'{channel}' ({count} of {len(cases)})" for channel, count in rare.items())
        complaints.add("channels", "{channel}", f"few cases have {found}: name those that are meant by --channels")
        return sorted(counts.keys() - rare.keys())
    return sorted(counts)
