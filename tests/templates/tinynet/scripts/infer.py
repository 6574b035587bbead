"""InferClass: the probabilities of an image on its own grid."""

from __future__ import annotations

import os

import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage, NormalizeIntensity


class InferClass:
    """Loads the best weights once; `infer` takes {"image": path or paths} or a path."""

    def __init__(self, config_file=None, **override):
        parser = ConfigParser()
        parser.read_config(config_file)
        parser.update({key: value for key, value in override.items() if key in parser})
        self.network = parser.get_parsed_content("network")
        weights = os.path.join(parser.get_parsed_content("ckpt_path"), "best_metric_model.pt")
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.network.eval()

    @torch.no_grad()
    def infer(self, image_file):
        """Class probabilities [C, X, Y, Z]."""
        path = image_file["image"] if isinstance(image_file, dict) else image_file
        image = NormalizeIntensity(channel_wise=True)(LoadImage(image_only=True, ensure_channel_first=True)(path))
        return torch.softmax(self.network(image[None])[0], 0)
