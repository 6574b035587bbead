"""What a job is made from: every part counts, and what differs is said in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoseg.pipeline import inputs
from autoseg.pipeline.inputs import case_digests, changes, fingerprint, made_from, setting_texts
from autoseg.records import Case

FOLD = {"training": {"a": "1", "b": "2"}, "validation": {"c": "3"}}


def made(settings: dict[str, Any] | None = None, files: dict[str, str] | None = None, **cases: dict[str, str]) -> Any:
    return made_from(settings=setting_texts(settings or {"lr": 0.003}), files=files or {"scripts/a.py": "x"}, **cases)


def test_nothing_changed_is_nothing_said() -> None:
    assert changes(made(**FOLD), made(**FOLD)) == []
    assert fingerprint(made(**FOLD)) == fingerprint(made(**FOLD))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (made({"lr": 0.001}, **FOLD), ["lr 0.003 -> 0.001"]),
        (made({"lr": 0.003, "mode": "ct"}, **FOLD), ['mode not set -> "ct"']),
        (made({"lr": list(range(40))}, **FOLD), ["lr changed"]),
        (made(files={"scripts/a.py": "y", "configs/network.yaml": "n"}, **FOLD),
         ["scripts/a.py, configs/network.yaml changed"]),
        (made(files={"scripts/a.py": "x", "configs/train.yaml": "n"}, **FOLD), ["configs/train.yaml changed"]),
        (made({"lr": 1}, {"scripts/a.py": "x", "configs/train.yaml": "n"}, **FOLD), ["lr 0.003 -> 1"]),
        (made(training={"a": "1", "b": "9"}, validation={"c": "3"}), ["data of 3 cases: 1 changed"]),
        (made(training={"a": "1", "d": "4"}, validation={"c": "3"}), ["data of 3 cases: 1 new, 1 gone"]),
        (made(training={"a": "1", "c": "3"}, validation={"b": "2"}), ["data of 3 cases: 2 in another fold"]),
    ],
)  # fmt: skip
def test_what_changed_is_named(now: Any, said: list[str]) -> None:
    before = made(**FOLD)
    assert changes(before, now) == said
    assert fingerprint(before) != fingerprint(now)


def test_many_settings_are_counted() -> None:
    before, now = ({f"s{i}": value for i in range(9)} for value in (0, 1))
    (said,) = changes(made(before), made(now))
    assert said.startswith("s0 0 -> 1, ") and said.endswith("s5 0 -> 1, and 3 more")


def test_another_version_is_another_input(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(**FOLD)
    monkeypatch.setattr(inputs, "__version__", "9.9")
    assert changes(before, made(**FOLD)) == [f"autoseg {before['version']['autoseg']} -> 9.9"]


def test_the_order_of_the_cases_counts() -> None:
    turned = {"training": {"b": "2", "a": "1"}, "validation": {"c": "3"}}
    assert fingerprint(made(**FOLD)) != fingerprint(made(**turned))


def test_a_case_counts_by_all_its_files(tmp_path: Path) -> None:
    image, label = tmp_path / "i.nii", tmp_path / "l.nii"
    image.touch()
    label.touch()
    case = Case("a", (str(image),), str(label))
    before = case_digests([case])
    for path in (image, label):
        os.utime(path, ns=(1, 1))
        assert case_digests([case]) != before
        before = case_digests([case])
