"""A bundle of a template written for MONAI's Auto3DSeg as the engine sees it: probabilities by its own InferClass."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import LoadImage

from autoseg.bundles.marks import FOREIGN, bundle_settings, bundle_weights, is_foreign_bundle
from autoseg.engine.bundle import Bundle
from autoseg.engine.geometry import AxisMap, file_grid, longest_axis
from autoseg.engine.streaming import PlaneStore
from autoseg.errors import Fault, InputError
from autoseg.records import Case
from autoseg.workspace import read_json


def open_bundle(root: str | Path, overrides: Mapping[str, Any] | None = None) -> Bundle:
    """A bundle, ours or foreign."""
    root = Path(root).resolve()
    return ForeignBundle(root, bundle_settings(root)) if is_foreign_bundle(root) else Bundle.load(root, overrides)


def config_files(root: Path) -> list[str]:
    """Every configuration file of a foreign bundle, as MONAI hands them to its scripts."""
    return [str(p) for p in sorted((root / "configs").iterdir()) if p.suffix in (".yaml", ".json")]


class ForeignBundle(Bundle):
    """`settings` are those of its foreign.json: labels, fold, datalist; its own hyper-parameters stay its own."""

    @property
    def weights(self) -> Path:
        return bundle_weights(self.root)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the user set, for its train.py."""
        return dict(read_json(self.root / FOREIGN)["overrides"])

    def preprocessing_key(self) -> str:
        """Its own: nothing is known of what it preprocesses."""
        return str(self.root)

    @functools.cached_property
    def inferer(self) -> Any:
        """An instance of its InferClass, kept until `release`."""
        return self.made_inferer()

    def release(self) -> None:
        """Forget the instance of InferClass, weights and all: the next use makes another."""
        self.__dict__.pop("inferer", None)

    def made_inferer(self) -> Any:
        """A new instance of its InferClass, weights and all; InputError with what it raises."""
        path = self.root / "scripts" / "infer.py"
        try:
            spec = importlib.util.spec_from_file_location(f"{self.root.name}_infer", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.InferClass(config_files(self.root))
        except Exception as error:
            message = f"cannot be made: {type(error).__name__}: {error}"
            raise InputError([Fault(str(path), "InferClass", message)]) from error

    def stored(self, case: Case, scratch: Path | None) -> tuple[PlaneStore, AxisMap, npt.NDArray[np.float64]]:
        """(probabilities on the image's own grid, the way from that grid to itself, its affine).

        MONAI's channels go by label value, so that gaps have channels too: those are left out. ValueError where the
        shape is not the image's, or the channels are neither so many nor one an output.
        """
        image = LoadImage(image_only=True, ensure_channel_first=True)(case.image[0])
        affine, shape = file_grid(image)
        item = {"image": case.image[0] if len(case.image) == 1 else list(case.image)}
        with torch.inference_mode():
            given = torch.as_tensor(self.inferer.infer(item)).as_subclass(torch.Tensor).float()
        values, outputs = self.settings["label_values"], int(self.settings["output_classes"])
        if given.dim() == 3 and shape[2] == 1:  # of a picture
            given = given[..., None]
        if not self.settings["regions"] and len(given) == max(values) + 1:
            given = given[values]
        if tuple(given.shape) != (outputs, *shape):
            found, wanted = tuple(given.shape), (outputs, *shape)
            raise ValueError(f"{self.root.name} gives probabilities of shape {found}, not {wanted}")
        axis = longest_axis(affine, shape)
        store = PlaneStore(shape, outputs, scratch, axis)
        store.write(0, given.clamp(0, 1))
        return store, AxisMap.between(affine, shape, affine, shape, axis), affine
