"""How processes of our own import MONAI."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autoseg.engine.lean import UNUSED

JOBS = {
    "the command": "import autoseg.__main__ as m; sys.argv = ['autoseg', '--version']; m.run(); import monai",
    "a job of the engine": "import autoseg.engine.__main__ as m; m.start_lean(); import autoseg.engine.entry",
    "what MONAI gives": (
        "from autoseg.engine.lean import start_lean; start_lean(); import monai, inspect; "
        "assert monai.__version__ and inspect.getsource(monai); from monai.networks.nets import SegResNetDS"
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_packages_that_nothing_needs_are_left_out_and_can_be_had(job: str) -> None:
    script = f"import sys; {JOBS[job]}; found = [name for name in {UNUSED!r} if name in sys.modules]; "
    script += "assert 'monai' in sys.modules and not found, found; import scipy.signal; "
    script += "assert sum(type(f).__name__ == '_Finder' and 'lean' in type(f).__module__ for f in sys.meta_path) == 0"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_others_get_monai_as_it_is() -> None:
    script = "import sys, autoseg, autoseg.engine.entry; sys.exit('scipy.signal' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
