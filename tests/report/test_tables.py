"""Tables: what stands in them, in lines of 100 characters, from records and from the plain values of their files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from autoseg.devices import Devices, Gpu
from autoseg.records import LeaderboardEntry, Slot, to_plain
from autoseg.report.tables import (
    cross_validation_table,
    devices_table,
    duration,
    evaluation_table,
    jobs_table,
    leaderboard_table,
    plan_table,
    render,
)

NAN = math.nan
LABELS = {1: "anterior", 2: "postérieur [bold]"}


def lines(table: Any, **options: Any) -> list[str]:
    text = render(table, **options)
    assert "\x1b" not in text and "\u2026" not in text
    assert max(map(len, text.splitlines())) <= options.get("width", 100)
    return text.splitlines()


def row(table: Any, *words: str, **options: Any) -> list[str]:
    """The cells of the one line that holds these words."""
    [line] = [line for line in lines(table, **options) if all(word in line for word in words)]
    return line.split()


def test_leaderboard() -> None:
    good = LeaderboardEntry("segresnet", 0, "done", 0.88765, {"1": 0.9, "2": 0.875}, 100, 90.0)
    bad = LeaderboardEntry("segresnet", 1, "failed", NAN)
    whole = LeaderboardEntry("segresnet", 5, "done", NAN, seconds=60.0, recall_dice=0.95)
    for entries in ([good, bad, whole], to_plain([good, bad, whole])):
        table = leaderboard_table(entries, LABELS)
        assert row(table, "0.8877") == ["segresnet", "0", "done", "0.8877", "0.9000", "0.8750", "1.5"]
        assert row(table, "failed") == ["segresnet", "1", "failed", "-", "-", "-", "-"]
        assert row(table, "all cases") == ["segresnet", "5", "(all", "cases)", "done", "-", "-", "-", "1.0"]
        assert any("postérieur [bold]" in line for line in lines(table))
    unnamed = row(leaderboard_table([good]), "algo")
    assert unnamed[-5:] == ["class", "1", "class", "2", "minutes"]


def test_leaderboard_of_many_classes_names_the_lowest() -> None:
    labels = {value: f"organ {value}" for value in range(1, 26)}
    dice = {str(value): 0.5 + value / 100 for value in labels} | {"25": NAN, "7": 0.1}
    table = leaderboard_table([LeaderboardEntry("segresnet", 0, "done", 0.6, dice)], labels)
    assert any("organ 7 0.1000, organ 1 0.5100" in line for line in lines(table))


def test_cross_validation() -> None:
    scores = {"mean_dice": 0.885, "dice": {"1": {"mean": 0.9, "low": 0.89, "high": 0.91}}, "n_cases": 180}
    table = cross_validation_table({"segresnet": scores, "dints": {"mean_dice": None, "dice": {}}}, LABELS)
    assert row(table, "anterior") == ["anterior", "0.9000", "[0.8900,", "0.9100]", "-"]
    assert row(table, "mean", "0.8850") == ["mean", "0.8850", "-"]


@dataclass(frozen=True)
class Span:
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """As the Evaluation record looks."""

    mean_dice: float
    dice: dict[str, Span]
    metrics: dict[str, dict[str, Span]]
    cases: tuple[dict[str, Any], ...]
    labels: dict[str, str] = field(default_factory=dict)
    tolerance_mm: float = 1.0


def scores() -> Scores:
    span, none = Span(0.9, 0.885, 0.914), Span(NAN, NAN, NAN)
    metrics = {"hd95": {"1": Span(12.345, 1.0, 20.0), "2": none}, "surface_dice": {"1": span, "2": none}}
    cases = ({"case": "a", "label": 1, "iou": 0.5}, {"case": "b", "label": 1, "iou": 0.7}, {"case": "b", "label": 2})
    return Scores(0.9, {"1": span, "2": none}, metrics, cases, {"1": "anterior", "2": "postérieur"})


def test_evaluation_from_record_and_file() -> None:
    for given in (scores(), to_plain(scores())):
        table = evaluation_table(given)
        cells = ["anterior", "0.900", "[0.885,", "0.914]", "12.35", "[1.00,", "20.00]", "0.900", "[0.885,", "0.914]"]
        assert row(table, "anterior") == [*cells, "0.600"]  # IoU has no summary: over the cases
        assert row(table, "postérieur") == ["postérieur", "-", "-", "-", "-"]
        assert any("2 cases" in line for line in lines(table))
        assert any("surface Dice (1 mm)" in line for line in lines(table))
    assert row(evaluation_table(scores(), {1: "eins"}), "eins")[0] == "eins"


def test_the_least_that_design_promises_of_evaluation_json() -> None:
    table = evaluation_table({"schema_version": 1, "mean_dice": 0.9, "dice": {"1": {"mean": 0.9}}, "cases": []})
    assert row(table, "class 1") == ["class", "1", "0.900"]
    assert row(table, "mean Dice") == ["mean", "Dice", "0.9000"]


def test_devices_and_plan() -> None:
    devices = Devices(16, 128 * 2**30, (Gpu("0", "Some GPU", 80 * 2**30),))
    table = devices_table(devices, [Slot("gpu0", "cuda", 16, "0", 80 * 2**30), Slot("cpu0", "cpu", 4)])
    assert row(table, "gpu0") == ["gpu0", "cuda", "0", "Some", "GPU", "16", "80.0", "GiB"]
    assert row(table, "cpu0") == ["cpu0", "cpu", "-", "4", "-"]
    settings = {"roi_size": {"value": [40, 56, 40], "reason": "why " * 40}, "amp": {"value": True, "reason": "[x]"}}
    families = {"segresnet": {"skip": None, "settings": settings}, "dints": {"skip": "needs a GPU", "settings": {}}}
    table = plan_table(families)
    assert row(table, "40, 56, 40")[:2] == ["segresnet", "roi_size"]
    assert row(table, "[x]") == ["amp", "True", "[x]"]
    assert row(table, "dints") == ["dints", "left", "out", "needs", "a", "GPU"]
    assert "\n".join(lines(table)).count("why") == 40


def test_ascii() -> None:
    text = "\n".join(lines(leaderboard_table([], {1: "Größe"}), unicode=False))
    assert text.isascii() and "Gr??e" in text


def test_jobs_fit_80_characters() -> None:
    running = {"id": "segresnet_0", "state": "running", "device": "gpu10", "step": 1200, "steps": 40000, "tries": 1}
    running |= {"loss": 0.43, "best_dice": 0.812345, "seconds": 3725.2, "seconds_left": 59.6}
    table = jobs_table([running, {"id": "segresnet_1", "state": "waiting", "device": ""}], 0, 2)
    cells = ["segresnet_0", "running", "gpu10", "1200/40000", "0.4300", "0.8123", "1:02:05", "1:00"]
    assert row(table, "segresnet_0", width=80) == cells
    assert row(table, "segresnet_1", width=80) == ["segresnet_1", "waiting", *["-"] * 6]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (None, "-"), (NAN, "-")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
