"""What benchmarks/versus_nnunet.py has trained, on the listed testing cases, which nothing was chosen by.

    .venv/bin/python benchmarks/versus_testing.py --minutes 2 5 15 45     # after versus_nnunet.py of these minutes

Both tools' networks of fold 0 predict the cases that the data set lists as `testing`, by their own commands; no clock
runs. The table is that of versus_nnunet.py, its seconds and its commit are those of the trainings. Scores are kept
beside the trained networks and in `benchmarks/results/versus_nnunet`, as `hippocampus_listed`: the same command goes on
where it was ended.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hippocampus_data import DATA, missing
from versus_nnunet import RESULTS, NnUNet, command, environment, linked, print_kept, question, scored

from autoseg.datalist import load_datalist
from autoseg.records import Case, Datalist
from autoseg.workspace import read_json, write_json


def main() -> int:
    """Predict what is not predicted yet, score, print; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 5.0])
    parser.add_argument("--tools", nargs="+", choices=["autoseg", "nnunet"], default=["autoseg", "nnunet"])
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/versus"), help="that of versus_nnunet.py")
    parser.add_argument("--venv", type=Path, help="that of versus_nnunet.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table of what is kept")
    given = parser.parse_args()
    given.data, given.unseen = "hippocampus", "fold"
    home, keep = given.work_dir.absolute() / question(given), given.results / f"{given.data}_listed"
    asked = [(tool, minutes) for minutes in given.minutes for tool in given.tools]
    if not given.show and missing(DATA):
        return 1
    for tool, minutes in [] if given.show else asked:
        folder = home / f"{tool}_{minutes:g}"
        result = folder / "result.json"
        if not result.is_file() or not read_json(result)["cases"]:
            print(f"{folder}: nothing is trained there")
            continue
        done = folder / "listed.json"
        if not done.is_file():
            listed = load_datalist(DATA / "datalist.json")
            write_json(done, {**read_json(result), "cases": scored(listed, predicted(tool, listed, folder, given))})
        write_json(keep / f"{folder.name}.json", read_json(done))
    print_kept(asked, keep)
    return 0


def predicted(tool: str, listed: Datalist, folder: Path, given: argparse.Namespace) -> Path:
    """The folder of what a tool's networks, trained in `folder`, predict of the listed testing cases."""
    images, target = folder / "listed_images", folder / "listed_predictions"
    for left in (images, target):
        shutil.rmtree(left, ignore_errors=True)
    if tool == "autoseg":
        by_autoseg(listed.testing, images, target, folder)
    else:
        nnunet = NnUNet(folder.parent, folder, load_datalist(folder.parent / "datalist.json"), given)
        nnunet.predict(linked(listed.testing, images), target)
    return target


def by_autoseg(cases: Sequence[Case], images: Path, target: Path, folder: Path) -> None:
    """By `autoseg predict`; cases of one image each."""
    images.mkdir()
    for case in cases:
        (images / f"{case.id}.nii.gz").symlink_to(case.image[0])
    argv: list[str | Path] = [sys.executable, "-m", "autoseg", "predict", "--work_dir", folder / "run"]
    command([*argv, "--input", images, "--output", target], folder / "output.log", environment())


if __name__ == "__main__":
    raise SystemExit(main())
