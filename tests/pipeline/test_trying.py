"""A family of one's own: written by a command, tried by another; what is wrong with one is named by the step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoseg import cli
from autoseg.bundles import available_templates
from autoseg.bundles.templates import new_template
from autoseg.errors import InputError
from autoseg.pipeline.trying import check_family
from autoseg.records import Event

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


def tried(folder: Path) -> list[str]:
    events: list[Event] = []
    check_family(folder, events.append)
    return [event.message for event in events]


def test_a_new_family_keeps_the_contract_and_trains_as_it_stands(
    odd_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["new-family", "mynet", "--output", str(odd_path)]) == 0
    assert "autoseg check-family" in capsys.readouterr().out
    lines = [
        line
        for path in odd_path.rglob("*.*")
        if path.suffix in (".py", ".yaml")
        for line in path.read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert len(lines) < 30
    found = tried(odd_path / "mynet")
    steps = ("plans", "its network", "trains two", "predicts", "resumes at the third", "is exported")
    assert [
        message for message, step in zip(found, steps, strict=True) if not message.startswith(f"mynet {step}")
    ] == []


def test_names_and_places_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_template("mynet", tmp_path)
    for name, said in (("my_net", "letters and digits"), ("SegResNet", "autoseg's own"), ("mynet", "there already")):
        assert cli.main(["new-family", name, "--output", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mynet"]


@pytest.mark.parametrize(
    ("file", "old", "new", "step", "said"),
    [
        ("scripts/algo.py", "TRAITS.width(machine)", "TRAITS.height(machine)", "", "no attribute 'height'"),
        ("configs/network.yaml", "UNet", "UNot", "network", "UNot"),
        ("configs/network.yaml", "'@output_classes'", "2", "network", "gives [1, 2, "),
    ],
)
def test_a_step_that_fails_is_named(tmp_path: Path, file: str, old: str, new: str, step: str, said: str) -> None:
    folder = new_template("mynet", tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        check_family(folder, lambda event: None)
    (fault,) = refused.value.faults
    assert not step or (fault.file, fault.field) == (str(folder), step)


def test_breaches_are_named_one_by_one(tmp_path: Path) -> None:
    folder = new_template("mynet", tmp_path)
    (folder / "configs" / "network.yaml").write_text("[")
    (folder / "scripts" / "algo.py").write_text("class Other: ...")
    with pytest.raises(InputError) as refused:
        check_family(folder, lambda event: None)
    assert len(refused.value.faults) == 2
    with pytest.raises(InputError, match="no such folder"):
        check_family(tmp_path / "away", lambda event: None)


def test_a_template_written_for_monai_is_tried_as_it_stands() -> None:
    assert [message.split(" ", 1)[1].split(",")[0] for message in tried(TEMPLATES / "tinynet")][-1] == "trains"


def test_an_installed_package_offers_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_template("mynet", tmp_path / "theirpackage")
    (tmp_path / "theirpackage" / "__init__.py").touch()
    (tmp_path / "theirpackage" / "mynet" / "__init__.py").touch()
    described = tmp_path / "theirpackage-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: theirpackage\nVersion: 1.0\n")
    (tmp_path / "bad.py").write_text("raise RuntimeError('no')")
    (tmp_path / "theirpackage" / "my_net").mkdir()
    (tmp_path / "theirpackage" / "my_net" / "__init__.py").touch()
    points = "mynet = theirpackage.mynet\nbroken = nowhere.atall\nother = bad.net\nlast = theirpackage.my_net\n"
    (described / "entry_points.txt").write_text(f"[autoseg.templates]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert available_templates()["mynet"] == tmp_path / "theirpackage" / "mynet"
    assert not {"atall", "net", "my_net"} & set(available_templates())
