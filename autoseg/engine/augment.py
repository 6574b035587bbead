"""A random transform of patches that MONAI does not have, by name in a bundle's transforms_train.yaml."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import CenterSpatialCrop, MapTransform, RandAffine, RandomizableTransform


class RandAffineCropd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """The middle of `roi_size` voxels of each key [C, ...], rotated and scaled about it with probability `prob`.

    As MONAI's RandAffined and CenterSpatialCropd one after the other, but that no voxel is computed to be cut off, as
    two of five are at the usual margin. `rotate_range` in radians and `scale_range`, an axis each, `mode` of each key
    as there. What the rotation asks for beyond the image is zero.
    """

    def __init__(
        self,
        keys: Sequence[str],
        roi_size: Sequence[int],
        prob: float,
        rotate_range: Sequence[float],
        scale_range: Sequence[float],
        mode: Sequence[str],
    ):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.modes = dict(zip(self.keys, mode, strict=True))
        self.crop = CenterSpatialCrop(roi_size)
        self.affine = RandAffine(
            prob=1.0,
            rotate_range=rotate_range,
            scale_range=scale_range,
            spatial_size=roi_size,
            padding_mode="zeros",
            cache_grid=True,
        )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandAffineCropd:
        """Give it, and the affine transform in it, one random state."""
        super().set_random_state(seed, state)
        self.affine.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same rotation and scaling for every key."""
        found = dict(data)
        self.randomize(None)
        if self._do_transform:
            self.affine.randomize()
        for key in self.key_iterator(found):
            given = found[key]
            found[key] = (
                self.affine(given, mode=self.modes[key], randomize=False) if self._do_transform else self.crop(given)
            )
        return found
