"""The examples do what they say, in reduced form: few steps, small volumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from autoseg.config import load_config
from autoseg.demo import make_demo_data

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def python(*words: str, cwd: Path) -> str:
    """What a script prints; its errors are the test's."""
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_input_file_is_a_configuration(odd_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_demo_data(odd_path / "data", training=3, testing=1, shape=(16, 16, 16))
    monkeypatch.chdir(odd_path)
    config = load_config(EXAMPLES / "input.yaml")
    assert config.datalist == str(odd_path / "data" / "datalist.json")
    assert config.num_fold == 3
    assert config.family_settings == {"segresnet": {"learning_rate": 0.002}}


def test_the_notebook(odd_path: Path) -> None:
    said = python(str(EXAMPLES / "notebook.py"), "the run", "32", "4", cwd=odd_path)
    assert "validation Dice of segresnet_0" in said
    prediction = odd_path / "the run" / "ensemble_output" / "test_image_001" / "test_image_001_ensemble.nii.gz"
    assert nib.load(prediction).shape == (32, 32, 32)


def test_the_one_call(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=2, testing=1, shape=(24, 24, 20))
    settings = ["num_iterations=3", "num_warmup_epochs=0"]
    said = python(str(EXAMPLES / "one_call.py"), str(datalist), "MRI", "run", *settings, cwd=odd_path)
    assert "Dice on the testing cases" in said
    assert (odd_path / "run" / "ensemble_output" / "testing_00" / "testing_00_ensemble.nii.gz").is_file()
