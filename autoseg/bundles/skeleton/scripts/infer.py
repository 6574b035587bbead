"""Predict with this bundle: `InferClass(...).infer(image)`, or `python scripts/infer.py run --image F --output G`."""

from pathlib import Path

import fire

from autoseg.engine.entry import Inferer, infer


class InferClass(Inferer):
    """Auto3DSeg's inferer: `infer` takes a path or {"image": path}, returns probabilities [C, ...] on its grid."""

    def __init__(self, config_file=None, **override):
        super().__init__(Path(__file__).resolve().parents[1], override)


def run(image, output, config_file=None, **override):
    """Write the label map of one image."""
    infer(Path(__file__).resolve().parents[1], image, output, override)


if __name__ == "__main__":
    fire.Fire({"run": run})
