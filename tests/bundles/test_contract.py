"""A template folder that breaks Auto3DSeg's contract is refused before anything runs, every breach in a line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.bundles import available_templates, find_templates
from autoseg.bundles.contract import check_template, is_foreign
from autoseg.cli import main
from autoseg.errors import InputError

TINYNET = Path(__file__).resolve().parents[1] / "templates" / "tinynet"
Broken = Callable[..., Path]


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """`broken(file, old, new)`: a copy of the foreign template with a text replaced, or without the file."""

    def make(file: str, old: str = "", new: str = "", name: str = "tinynet", source: Path = TINYNET) -> Path:
        folder = tmp_path / "templates" / name
        if not folder.exists():
            shutil.copytree(source, folder)
        path = folder / file
        if not old:
            path.unlink()
        else:
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))
        return folder

    return make


def test_what_keeps_the_contract_has_no_fault_and_is_told_apart() -> None:
    assert check_template(TINYNET) == [] and is_foreign(TINYNET)
    for folder in available_templates().values():
        assert check_template(folder) == [] and not is_foreign(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("scripts/algo.py", "", "", "no such file"),
        ("scripts/algo.py", "class TinynetAlgo(", "class TinyNetAlgo(", "TinynetAlgo: no such class (there is TinyNet"),
        ("scripts/algo.py", "class TinynetAlgo(", "class TinynetAlgo[", "is not Python"),
        (
            "scripts/algo.py",
            "    def fill_template_config(",
            "    def __init__(self, template_path): ...\n    def f(",
            "default",
        ),
        (
            "scripts/algo.py",
            "    def fill_template_config(",
            "    def __init__(self): ...\n    def f(",
            "template_path",
        ),
        ("scripts/train.py", "", "", "no such file"),
        ("scripts/train.py", "def run(", "def start(", "run: no such function"),
        ("scripts/train.py", ", **override):", "):", "does not take overrides"),
        ("scripts/train.py", "def run(config_file=None, ", "def run(", "does not take config_file"),
        ("scripts/train.py", 'if __name__ == "__main__":', "if False:", "does nothing as a program"),
        ("scripts/infer.py", "", "", "no such file"),
        ("scripts/infer.py", "class InferClass:", "class Infer:", "InferClass: no such class"),
        ("scripts/infer.py", "def infer(", "def predict(", "InferClass.infer: no such method"),
        ("scripts/infer.py", "def __init__(self, config_file=None, **override)", "def __init__(self)", "config_file"),
    ],
)
def test_every_breach_is_named(broken: Broken, file: str, old: str, new: str, said: str) -> None:
    folder = broken(file, old, new)
    faults = [str(fault) for fault in check_template(folder)]
    assert any(said in fault and str(folder / file) in fault for fault in faults), faults
    assert all("\n" not in fault for fault in faults)
    if file != "scripts/infer.py" or new != "def __init__(self)":
        assert len(faults) == 1


def test_an_algo_that_derives_from_nothing_must_have_all_methods(broken: Broken) -> None:
    folder = broken("scripts/algo.py", "TinynetAlgo(BundleAlgo)", "TinynetAlgo")
    assert {fault.field for fault in check_template(folder)} >= {"TinynetAlgo.export_to_disk", "TinynetAlgo.get_score"}


def test_names_and_configurations(broken: Broken) -> None:
    faults = check_template(broken("configs/network.yaml", name="tiny_net"))
    assert "letters and digits" in faults[0].message
    folder = broken("configs/network.yaml", name="tinynet")
    shutil.rmtree(folder / "configs")
    (fault,) = check_template(folder)
    assert fault.file == str(folder / "configs") and "holds no configuration" in fault.message


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("scripts/algo.py", "def plan(", "def plans(", "SegresnetAlgo.plan: no such method"),
        ("configs/network.yaml", "network_def:", "network:", "network_def: is missing"),
        ("configs/network.yaml", "", "", "no such file"),
        ("configs/hyper_parameters.yaml", "dsdepth: 4", "dsdepth: [", "cannot be parsed"),
    ],
)
def test_templates_of_our_kind(broken: Broken, file: str, old: str, new: str, said: str) -> None:
    folder = broken(file, old, new, name="segresnet", source=available_templates()["segresnet"])
    (fault,) = check_template(folder)
    assert said in str(fault)


def test_nothing_of_a_template_is_executed(broken: Broken, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
    folder = broken("scripts/algo.py", "import os\n", f"import os\n{trap}")
    assert check_template(folder) == []
    assert not (tmp_path / "executed").exists()


def test_all_faults_of_all_templates_are_said_at_once_with_exit_code_2(
    broken: Broken, demo_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken("scripts/infer.py")
    folder = broken("scripts/train.py", "def run(", "def start(")
    other = broken("scripts/algo.py", name="segnet", source=TINYNET)
    with pytest.raises(InputError) as error:
        find_templates(("tinynet", "segnet", "tinyynet"), folder.parent)
    assert [fault.file for fault in error.value.faults] == [
        str(folder / "scripts" / "train.py"),
        str(folder / "scripts" / "infer.py"),
        str(other / "scripts" / "algo.py"),
        "",
    ]
    words = ["run", "--datalist", str(demo_data), "--modality", "MRI", "--work_dir", str(tmp_path / "w")]
    words += ["--algos", "tinynet,segnet", "--templates_path_or_url", str(folder.parent)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "run: no such function" in said and str(other / "scripts" / "algo.py") in said
    assert "Traceback" not in said and not (tmp_path / "w").exists()
