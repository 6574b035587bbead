"""Train this bundle: `python scripts/train.py run`, from any folder; `--num_epochs 2` and the like override a value."""

from pathlib import Path

import fire

from autoseg.engine.entry import train


def run(config_file=None, **override):
    """Train; `config_file` is accepted as Auto3DSeg passes it, the bundle's own files are read."""
    train(Path(__file__).resolve().parents[1], override)


if __name__ == "__main__":
    fire.Fire({"run": run})
