"""A template as people write them for MONAI's Auto3DSeg: nothing in it knows autoseg."""

from __future__ import annotations

import os
from typing import Any

from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser


class TinynetAlgo(BundleAlgo):
    """A UNet of two levels."""

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict[str, Any]:
        """Fill the placeholders of hyper_parameters.yaml from datastats.yaml and input.yaml."""
        stats = ConfigParser.load_config_file(data_stats_filename)["stats_summary"]
        source = ConfigParser.load_config_file(self.data_list_file)
        path = os.path.join(algo_path, "configs", "hyper_parameters.yaml")
        filled = {
            "bundle_root": os.path.abspath(algo_path),
            "ckpt_path": os.path.join(os.path.abspath(algo_path), "model"),
            "data_list_file_path": source["datalist"],
            "data_file_base_dir": source["dataroot"],
            "fold": int(kwargs.get("fold", 0)),
            "input_channels": int(stats["image_stats"]["channels"]["max"]),
            "output_classes": int(max(stats["label_stats"]["labels"])) + 1,
        }
        config = {**ConfigParser.load_config_file(path), **filled}
        ConfigParser.export_config_file(config, path, fmt="yaml", default_flow_style=None)
        return {"hyper_parameters.yaml": filled}
