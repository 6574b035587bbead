"""Train this bundle: `python scripts/train.py run`, from any folder; `--num_epochs 2` and the like override a value."""

from pathlib import Path

import fire

from autoseg.engine.lean import start_lean


def run(config_file=None, **override):
    """Train; `config_file` is accepted as Auto3DSeg passes it, the bundle's own files are read."""
    from autoseg.engine.entry import train

    train(Path(__file__).resolve().parents[1], override)


if __name__ == "__main__":
    start_lean()
    fire.Fire({"run": run})
