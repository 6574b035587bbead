"""`train.py run --config_file a,b [--num_epochs 3]`: whole volumes, Adam, the best weights by the validation fold."""

from __future__ import annotations

import os

import fire
import torch
import yaml
from monai.auto3dseg import datafold_read
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.transforms import Compose, EnsureTyped, LoadImaged, NormalizeIntensityd


def run(config_file=None, **override):
    """Train on every fold but one; writes <ckpt_path>/best_metric_model.pt and progress.yaml."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(config_file.split(",") if isinstance(config_file, str) else list(config_file))
    parser.update(override)
    values = {key: parser.get_parsed_content(key) for key in ("ckpt_path", "fold", "num_epochs", "learning_rate")}
    listed = parser.get_parsed_content("data_list_file_path")
    parts = datafold_read(listed, parser.get_parsed_content("data_file_base_dir"), fold=values["fold"])
    steps = [
        LoadImaged(keys=["image", "label"], ensure_channel_first=True, image_only=True),
        NormalizeIntensityd(keys="image", channel_wise=True),
        EnsureTyped(keys=["image", "label"], track_meta=False),
    ]
    training, validation = (DataLoader(Dataset(part, Compose(steps)), batch_size=1) for part in parts)
    network = parser.get_parsed_content("network")
    betas = parser["betas"]  # as its caller writes a list: '0.8,0.99'
    betas = [float(word) for word in betas.split(",")] if isinstance(betas, str) else betas
    optimizer = torch.optim.Adam(network.parameters(), float(values["learning_rate"]), betas)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    os.makedirs(values["ckpt_path"], exist_ok=True)
    best, history = -1.0, []
    for epoch in range(1, int(values["num_epochs"]) + 1):
        for batch in training:
            optimizer.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
        if epoch % int(parser["num_epochs_per_validation"]) and epoch < int(values["num_epochs"]):
            continue
        score = validate(network, validation)
        if score > best:
            best = score
            torch.save(network.state_dict(), os.path.join(values["ckpt_path"], "best_metric_model.pt"))
        history.append({"epoch": epoch, "betas": list(betas), "best_avg_dice_score": best})
        with open(os.path.join(values["ckpt_path"], "progress.yaml"), "w") as file:
            yaml.safe_dump(history, file)
        print(f"tinynet: epoch {epoch}, Dice {score:.3f}", flush=True)


@torch.no_grad()
def validate(network, cases):
    """Mean Dice of the foreground over the cases."""
    scores = []
    for batch in cases:
        found, wanted = network(batch["image"]).argmax(1, keepdim=True) > 0, batch["label"] > 0
        scores.append(2.0 * float((found & wanted).sum()) / max(1.0, float(found.sum() + wanted.sum())))
    return sum(scores) / len(scores)


if __name__ == "__main__":
    fire.Fire({"run": run})
