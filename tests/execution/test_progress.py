"""Reading a metrics.jsonl that another process is writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoseg.execution.progress import MetricsReader


def append(path: Path, *lines: object, torn: str = "") -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines) + torn)


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, from_start=True)
    reader.update(0.0)
    assert reader.facts(0.0)["step"] is None
    append(path, {"step": 1}, torn='{"step": 2, "lo')
    reader.update(1.0)
    assert reader.facts(1.0)["step"] == 1
    append(path, 'ss": 0.25}')
    reader.update(2.0)
    assert (reader.facts(2.0)["step"], reader.facts(2.0)["loss"]) == (2, 0.25)


def test_rubbish_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 5, "mean_dice": 0.5}\n\xff\xfe\n[1]\n3\n{"step": null, "loss": NaN, "mean_dice": "x"}\n'
    )
    reader = MetricsReader(path, from_start=True)
    reader.update(0.0)
    facts = reader.facts(0.0)
    assert (facts["step"], facts["loss"], facts["best_dice"]) == (5, None, 0.5)


def test_best_and_last_dice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, from_start=True)
    for step, dice in enumerate([0.2, 0.9, 0.7]):
        append(path, {"step": step, "mean_dice": dice}, {"step": step, "loss": 1.0})
        reader.update(float(step))
    assert (reader.facts(2.0)["mean_dice"], reader.facts(2.0)["best_dice"]) == (0.7, 0.9)


def test_a_replaced_or_shortened_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 100}, {"step": 200})
    reader = MetricsReader(path, from_start=False)
    reader.update(0.0)
    assert reader.facts(0.0)["step"] is None
    path.write_text('{"step": 1}\n')
    reader.update(1.0)
    assert reader.facts(1.0)["step"] == 1
    other = tmp_path / "other"
    append(other, {"step": 7}, {"step": 8}, {"step": 9})
    other.replace(path)
    reader.update(2.0)
    assert reader.facts(2.0)["step"] == 9


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ({"step": 25, "num_iterations": 100, "seconds": 10}, 30.0),
        ({"step": 25, "num_iterations": 100, "seconds": 10, "max_seconds": 15}, 5.0),
        ({"step": 25, "num_iterations": 30, "seconds": 10, "max_seconds": 15}, 2.0),
        ({"step": 25, "seconds": 10, "max_seconds": None}, None),
        ({"step": 0, "num_iterations": 100, "seconds": 10}, None),
        ({"step": 25, "num_iterations": 100}, None),
    ],
)
def test_seconds_left(tmp_path: Path, line: dict[str, float], left: float | None) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, line)
    reader = MetricsReader(path, from_start=True)
    reader.update(50.0)
    assert reader.facts(50.0)["seconds_left"] == left
    assert reader.facts(51.0)["seconds_left"] == (None if left is None else left - 1)
    assert reader.facts(500.0)["seconds_left"] in (None, 0.0)


def test_all_of_a_long_file_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.execution.progress.MAX_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 201)))
    reader = MetricsReader(path, from_start=True)
    reader.catch_up(0.0)
    assert reader.facts(0.0)["step"] == 200


def test_validations_are_handed_out_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "mean_dice": 0.1 * step, "dice": {"1": 0.5}, "loss": None} for step in range(4)]
    append(path, lines[0], {"step": 1, "loss": 0.5}, {"step": 1, "mean_dice": None}, lines[1], torn='{"mean_dice": 0.9')
    append(path, "}", '{"mean_dice": NaN}')
    first = MetricsReader(path, from_start=True)
    first.update(0.0)
    assert first.validations() == [*lines[:2], {"mean_dice": 0.9}] and first.validations() == []
    path.unlink()
    append(path, *lines[:3])  # back to a checkpoint, and on
    first.update(1.0)
    assert first.validations() == [lines[2]]
    append(path, lines[3])
    second = MetricsReader(path, from_start=True, before=first)
    second.update(2.0)
    assert second.validations() == [lines[3]] and second.facts(2.0)["best_dice"] == pytest.approx(0.3)
