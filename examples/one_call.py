"""The one call from Python: labelled volumes and a datalist in, an evaluated ensemble out.

python examples/one_call.py path/to/datalist.json MRI work_dirs/mine
python examples/one_call.py path/to/datalist.json MRI work_dirs/mine num_iterations=200
"""

from __future__ import annotations

import sys

import yaml

from autoseg import AutoRunner


def main(datalist: str, modality: str, work_dir: str, *settings: str) -> None:
    """Run it and print the scores. `settings` are hyper-parameters as key=value."""
    runner = AutoRunner(work_dir=work_dir, input={"modality": modality, "datalist": datalist})
    runner.set_training_params({key: yaml.safe_load(value) for key, value in (s.split("=", 1) for s in settings)})
    result = runner.run()

    for entry in result.leaderboard:
        print(f"{entry.name}: {entry.status}, validation Dice {entry.mean_dice:.4f}")
    print(f"ensemble of {', '.join(result.members)}")
    if result.evaluation is not None:
        print(f"Dice on the testing cases: {result.evaluation.mean_dice:.4f}")
    for case, path in result.predictions.items():
        print(f"{case}: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
