"""A bundle as the engine sees it: its hyper-parameters, network, transforms, cases and weights, read from its files."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ComponentLocator, ConfigParser
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, Spacingd

from autoseg.bundles.marks import ARCHITECTURE, architecture_file, is_expression, named_in, scored_windows
from autoseg.bundles.preprocessing import image_item
from autoseg.datalist import load_datalist, unreadable
from autoseg.engine.checkpoints import load_checkpoint
from autoseg.engine.geometry import without_shear
from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.planning.patch import NEAR, planar
from autoseg.records import Case, Datalist
from autoseg.workspace import read_keys, read_yaml

CACHE_VERSION = 2


def expressions(settings: Mapping[str, Any], path: Path) -> list[Fault]:
    """The hyper-parameters of a file that are no plain values: what MONAI would run is refused."""
    message = "would be run or resolved by MONAI: no expression is allowed here"
    return [Fault(str(path), key, f"{value!r} {message}") for key, value in settings.items() if is_expression(value)]


@functools.lru_cache(maxsize=1)
def _locator(modules: int) -> ComponentLocator:
    """What finds MONAI's classes by their names: for as long as so many of its modules are loaded, for it reads all."""
    return ComponentLocator()


class Bundle:
    """A bundle folder and its `settings`: hyper_parameters.yaml, with models/patch.json, overrides and the architecture
    that a search found on top.
    """

    def __init__(self, root: Path, settings: dict[str, Any]):
        self.root, self.settings = root, settings
        self._preprocessing: dict[bool, Compose] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the transforms, which hold what cannot be pickled."""
        return {**self.__dict__, "_preprocessing": {}}

    @classmethod
    def load(cls, root: str | Path, overrides: Mapping[str, Any] | None = None) -> Bundle:
        """Read `root`/configs/hyper_parameters.yaml, whose values are numbers and words, never run as expressions.

        Unknown overrides are refused, all at once, with the nearest known key.
        """
        root = Path(root).resolve()
        path = root / "configs" / "hyper_parameters.yaml"
        settings = read_yaml(path)
        if not isinstance(settings, dict):
            raise InputError([Fault(str(path), "", "does not hold keys and values")])
        faults = Faults()
        for key in overrides or {}:
            if key not in settings:
                faults.add(path, key, f"unknown hyper-parameter{nearest(key, settings)}")
        settings |= {**scored_windows(root), **(overrides or {})}
        if settings.get("search") and architecture_file(root).is_file():
            settings |= dict(zip(ARCHITECTURE, read_keys(architecture_file(root), *ARCHITECTURE), strict=True))
        faults.extend(expressions(settings, path))
        faults.raise_if_any()
        settings["roi_size"] = planar(settings["roi_size"], settings["slice_axis"])
        return cls(root, settings)

    @property
    def name(self) -> str:
        return f"{self.settings['name']}_{self.settings['fold']}"

    @property
    def weights(self) -> Path:
        return self.root / "models" / "model.pt"

    def path(self, key: str) -> Path:
        """A path among the settings, resolved against the bundle."""
        return (self.root / str(self.settings[key])).resolve()

    def content(self, file: str, entry: str) -> Any:
        """The object that `entry` of configs/`file` describes, its `@` references filled from the settings."""
        config = read_yaml(self.root / "configs" / file)
        # no other settings enter MONAI's parser
        parser = ConfigParser({**named_in(json.dumps(config), self.settings), **config})
        parser.locator = _locator(sum(name.startswith("monai") for name in sys.modules))
        return parser.get_parsed_content(entry)

    def network(self) -> torch.nn.Module:
        """The network with fresh weights; seed torch before for the same ones."""
        network: torch.nn.Module = self.content("network.yaml", "network_def")
        return network

    def trained_network(self, weights: Path | None = None) -> torch.nn.Module:
        """The network with its best weights, on the CPU, in evaluation mode."""
        path = weights or self.weights
        if not path.is_file():
            raise InputError([Fault(str(path), "", "no weights: this bundle is not trained")])
        network = self.network()
        network.load_state_dict(load_checkpoint(path))
        return network.eval()

    def patch_transforms(self) -> Compose:
        transforms: Compose = self.content("transforms_train.yaml", "patch_transforms")
        return transforms

    def preprocessing(self, with_label: bool = False) -> Compose:
        """Transforms of {image: paths[, label: path]} to what the network sees; made once."""
        if with_label not in self._preprocessing:
            file, entry = (
                ("transforms_validate.yaml", "preprocessing_with_label")
                if with_label
                else ("transforms_infer.yaml", "preprocessing")
            )
            self._preprocessing[with_label] = self.content(file, entry)
        return self._preprocessing[with_label]

    def preprocess(self, case: Case) -> MetaTensor:
        """The image of a case as the network sees it, [C, X, Y, Z] float32, its affine with it."""
        image: MetaTensor = self.preprocessed(case)["image"]
        return image

    def preprocessed(self, case: Case, with_label: bool = False) -> dict[str, MetaTensor]:
        """The image, and perhaps the label, of a case as the network sees them.

        A sheared image is resampled along its own axes, as if they stood at right angles. Where cases are not
        resampled, one of their spacing is not passed through MONAI's resampling. A training turns off that tensors know
        their affine: here they do.
        """
        steps, tracked = self.preprocessing(with_label), get_track_meta()
        last = len(steps.transforms) - 1
        # bundles of before, whose cases were alike, end with another step
        may_stay = not self.settings["resample"] and isinstance(steps.transforms[last], Spacingd)
        set_track_meta(True)
        try:
            data: dict[str, MetaTensor] = steps(self.item(case, with_label), end=last)
            for key in ["image", "label"][: 1 + with_label]:  # the crop has left its corners beside them
                without_shear(data[key])
            target = np.asarray(self.settings["resample_to_spacing"], float)
            near = np.abs(np.asarray(data["image"].pixdim) / target - 1) <= NEAR
            return data if may_stay and near.all() else steps(data, start=last)
        finally:
            set_track_meta(tracked)

    def item(self, case: Case, with_label: bool = False) -> dict[str, Any]:
        """A case's files as `preprocessing` takes them; InputError where there are too many, too few, or odd ones."""
        wanted = int(self.settings["image_files"])
        if len(case.image) != wanted:
            message = f"{len(case.image)} files, where {self.name} was made for {wanted} a case"
            raise InputError([Fault(case.image[0], "image", message)])
        reasons = {path: unreadable(path) for path in case.image}
        if any(reasons.values()):
            raise InputError(Fault(path, "image", reason) for path, reason in reasons.items() if reason)
        return {**image_item(case.image, self.settings), **({"label": case.label} if with_label else {})}

    def preprocessing_key(self) -> str:
        """Equal for bundles whose preprocessed cases are the same: folds, and families that agree."""
        config = read_yaml(self.root / "configs" / "transforms_validate.yaml")
        text = json.dumps(config, sort_keys=True)
        used = named_in(text, self.settings)
        used |= {"label_values": self.settings["label_values"], "version": CACHE_VERSION}
        return hashlib.blake2b((text + json.dumps(used, sort_keys=True)).encode(), digest_size=8).hexdigest()

    def datalist(self) -> Datalist:
        return load_datalist(self.path("datalist"), self.settings["dataroot"])

    def cases(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training, validation) cases of this bundle's fold."""
        return self.datalist().split(int(self.settings["fold"]))
