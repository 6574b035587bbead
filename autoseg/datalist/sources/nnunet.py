"""nnU-Net's raw folder: dataset.json, imagesTr/<case>_0000<ending>, labelsTr/<case><ending>, imagesTs, labelsTs.

Layout and keys: nnU-Net's documentation/dataset_format.md (version 2); version 1 has `modality` for `channel_names`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.datalist.complaints import Complaints, kind_of
from autoseg.datalist.sources.found import Found, case_of
from autoseg.records import Case

Channels = dict[int, Path]


def is_nnunet(folder: Path, plain: Mapping[str, Any]) -> bool:
    """Whether a dataset.json is nnU-Net's. Version 1 lists cases as Decathlon does, but by names that no file has."""
    if "channel_names" in plain or "file_ending" in plain:
        return True
    listed = plain.get("training")
    if isinstance(listed, list) and listed and isinstance(listed[0], dict):
        image = listed[0].get("image")
        if not isinstance(image, str) or (folder / image).exists():
            return False
    return any((folder / "imagesTr").glob("*_0000.*"))


def find_nnunet(folder: Path, plain: Mapping[str, Any]) -> Found:
    """The cases of labelsTr with their channels, and those of imagesTs; raises InputError with every fault."""
    source = folder / "dataset.json"
    complaints = Complaints(source)
    channels = _channel_names(plain, complaints)
    ending = plain.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        complaints.add("keys", "file_ending", f"{ending!r} is not an ending such as .nii.gz")
    labels = plain.get("labels")
    if not isinstance(labels, dict) or not labels:
        complaints.add("keys", "labels", 'missing: an object such as {"background": 0, "liver": 1}')
    complaints.raise_if_any()
    layout = _Layout(folder, str(ending), channels, complaints)
    training = layout.listed(plain["dataset"]) if "dataset" in plain else layout.training()
    testing = layout.testing()
    complaints.raise_if_any()
    return Found(
        "nnU-Net raw folder", source, training, testing=testing, labels=dict(labels or {}), channels=channels,
        warnings=_warnings(plain, len(training)),
    )  # fmt: skip


def _channel_names(plain: Mapping[str, Any], complaints: Complaints) -> tuple[str, ...]:
    key = "modality" if "channel_names" not in plain and "modality" in plain else "channel_names"
    named = plain.get(key)
    wanted = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    if not isinstance(named, dict) or not named or sorted(named, key=lambda k: (len(k), k)) != wanted:
        said = "missing" if named is None else f"is {kind_of(named)}" if not isinstance(named, dict) else f"{[*named]}"
        complaints.add("keys", key, f'{said}: names by the numbers of channels are wanted, as {{"0": "CT"}}')
        return ()
    return tuple(str(named[number]) for number in wanted)


def _warnings(plain: Mapping[str, Any], found: int) -> tuple[str, ...]:
    said, labels = plain.get("numTraining"), plain.get("labels") or {}
    warnings = []
    if isinstance(said, int) and said != found:
        warnings.append(f"dataset.json says numTraining {said}, {found} cases were found")
    if "ignore" in labels:
        warnings.append("the label 'ignore' is kept as a class of its own: nothing is left out of training here")
    return tuple(warnings)


class _Layout:
    """The files of a raw folder, complaining of what is missing."""

    def __init__(self, folder: Path, ending: str, channels: tuple[str, ...], complaints: Complaints):
        self.folder, self.ending, self.channels, self.complain = folder, ending, channels, complaints.add

    def training(self) -> tuple[Case, ...]:
        """Every case of imagesTr and labelsTr; one that is not in both is a fault."""
        images, labels = self._images("imagesTr"), self._labels("labelsTr")
        for name, found in (("imagesTr", images), ("labelsTr", labels)):
            if not found:
                self.complain("folders", name, self._why_empty(name))
        if not images or not labels:
            return ()
        for case in sorted(images.keys() - labels.keys()):
            self.complain("missing labels", f"labelsTr/{case}{self.ending}", "no such file: this image has no label")
        for case in sorted(labels.keys() - images.keys()):
            self.complain("labels without images", f"imagesTr/{case}_0000{self.ending}", "no such file, only its label")
        return tuple(self._case("imagesTr", c, images[c], labels[c]) for c in sorted(images) if c in labels)

    def testing(self) -> tuple[Case, ...]:
        """Every case of imagesTs, with its label where labelsTs holds one."""
        images, labels = self._images("imagesTs"), self._labels("labelsTs")
        for case in sorted(labels.keys() - images.keys()):
            self.complain("labels without images", f"imagesTs/{case}_0000{self.ending}", "no such file, only its label")
        return tuple(self._case("imagesTs", case, images[case], labels.get(case)) for case in sorted(images))

    def listed(self, dataset: Any) -> tuple[Case, ...]:
        """The training cases that dataset.json itself lists: {case: {"images": [...], "label": ...}}."""
        cases = []
        for case, entry in dataset.items() if isinstance(dataset, dict) else ():
            images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
            paths = [*images, label] if isinstance(images, list) and images else []
            if not paths or not all(isinstance(path, str) and path for path in paths):
                self.complain("entries", f"dataset.{case}", 'is not {"images": [one path a channel], "label": a path}')
                continue
            *files, last = [self.folder / str(path) for path in paths]
            self._count(f"dataset.{case}.images", len(files))
            cases.append(case_of(files, last))
        if not cases:
            self.complain("entries", "dataset", f"lists no case: it is {kind_of(dataset)}")
        return tuple(cases)

    def _case(self, folder: str, case: str, channels: Channels, label: Path | None) -> Case:
        for number in range(len(self.channels)):
            if number not in channels:
                file = f"{folder}/{case}_{number:04d}{self.ending}"
                self.complain("missing channels", file, f"no such file: the channel {self.channels[number]} is missing")
        if max(channels) >= len(self.channels):
            self._count(f"{folder}/{case}", max(channels) + 1)
        return case_of((channels[number] for number in sorted(channels)), label)

    def _count(self, where: str, files: int) -> None:
        if files != len(self.channels):
            message = f"{files} channels, where dataset.json names {len(self.channels)} ({', '.join(self.channels)})"
            self.complain("channel counts", where, message)

    def _images(self, folder: str) -> dict[str, Channels]:
        found: dict[str, Channels] = defaultdict(dict)
        pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(self.ending)}")
        for path in (self.folder / folder).glob("[!.]*"):
            match = pattern.fullmatch(path.name)
            if match:
                found[match[1]][int(match[2])] = path
        return dict(found)

    def _labels(self, folder: str) -> dict[str, Path]:
        files = (self.folder / folder).glob("[!.]*")
        return {p.name.removesuffix(self.ending): p for p in files if p.name.endswith(self.ending)}

    def _why_empty(self, name: str) -> str:
        wanted = f"<case>{'_0000' if name.startswith('images') else ''}{self.ending}"
        if not (self.folder / name).is_dir():
            return f"no such folder: files named {wanted} are looked for there"
        others = sorted(path.name for path in (self.folder / name).glob("[!.]*"))
        return f"holds no file named {wanted}" + (f", but {len(others)} others such as {others[0]}" if others else "")
