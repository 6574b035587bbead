"""A family as a sweep set it, as a template of its own: it is trained beside the family that it comes from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from autoseg.bundles.contract import algo_class
from autoseg.bundles.marks import TUNED
from autoseg.workspace import atomic_file


def write_variant(template: Path, folder: Path) -> Path:
    """Write the variant of the family at `template` into `folder`: the same files, its Algo under the other name."""
    family = template.name
    target = folder / f"{family}{TUNED}"
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "search_space.yaml")
    shutil.copytree(template, target, ignore=ignored)
    script = target / "scripts" / "algo.py"
    renamed = re.sub(rf"\b{algo_class(family)}\b", algo_class(target.name), script.read_text("utf-8"))
    with atomic_file(script) as file:
        file.write(renamed)
    return target
