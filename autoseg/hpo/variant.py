"""A family as a sweep set it, as a template of its own: it is trained beside the family that it comes from."""

from __future__ import annotations

import shutil
from pathlib import Path

from autoseg.bundles.marks import TUNED
from autoseg.bundles.templates import copy_template


def write_variant(template: Path, folder: Path) -> Path:
    """Write the variant of the family at `template` into `folder`: the same files, its Algo under the other name."""
    target = folder / f"{template.name}{TUNED}"
    shutil.rmtree(target, ignore_errors=True)
    copy_template(template, target)
    (target / "search_space.yaml").unlink(missing_ok=True)
    return target
