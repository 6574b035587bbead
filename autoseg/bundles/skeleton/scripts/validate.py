"""Predict and score the validation fold with the best weights: `python scripts/validate.py run`."""

from pathlib import Path

import fire

from autoseg.engine.lean import start_lean


def run(config_file=None, **override):
    """Validate; writes scores.json and validation/ in the bundle."""
    from autoseg.engine.entry import validate

    validate(Path(__file__).resolve().parents[1], override)


if __name__ == "__main__":
    start_lean()
    fire.Fire({"run": run})
