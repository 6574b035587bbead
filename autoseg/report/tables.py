"""Results as tables for a terminal or a plain log. Pure: records or the plain values of their files in, a table out."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoseg.devices import Devices
from autoseg.records import LeaderboardEntry, Slot, to_plain

MOST_CLASS_COLUMNS = 6  # more do not fit a line of 100 characters
UNKNOWN = "-"
STATE_STYLES = {
    **{"running": "cyan", "done": "green", "kept": "green"},
    **{"failed": "bold red", "skipped": "yellow", "stopped": "yellow"},
}
METRIC_TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 (mm)",
    "asd": "ASD (mm)",
    "surface_dice": "surface Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "volume_difference": "volume difference",
}
SHOWN_METRICS = ("dice", "hd95", "surface_dice", "asd", "iou")
WITH_INTERVAL = ("dice", "hd95", "surface_dice")  # intervals of all would not fit a line of 100 characters


def render(table: Table, width: int = 100, *, unicode: bool = True) -> str:
    """A table as plain text without colour codes; with `unicode=False` in ASCII, other letters as '?'."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if unicode else "ascii", errors="replace", newline="\n")
    Console(file=stream, width=width, no_color=True, force_terminal=False, highlight=False).print(table)
    stream.flush()
    stream.seek(0)
    return "".join(line.rstrip() + "\n" for line in stream.read().splitlines())


def leaderboard_table(
    entries: Iterable[LeaderboardEntry | Mapping[str, Any]], labels: Mapping[Any, str] | None = None
) -> Table:
    """A row a (family, fold): status, mean Dice, Dice by class, minutes. With many classes, only the lowest two.

    A network without validation cases is said to be of all cases.
    `labels` maps label values (int or str) to names.
    """
    rows = [_plain(entry) for entry in entries]
    names = _names(labels, (value for row in rows for value in row.get("dice") or {}))
    table = _table("Leaderboard (validation Dice)")
    for title in ("algo", "fold", "status"):
        _column(table, title)
    _column(table, "mean Dice", right=True)
    wide = len(names) > MOST_CLASS_COLUMNS
    for name in ["lowest classes"] if wide else names.values():
        _column(table, name, right=not wide, fold=True)
    _column(table, "minutes", right=True)
    for row in rows:
        dice = {str(value): _float(score) for value, score in (row.get("dice") or {}).items()}
        scores: list[str | Text] = [_lowest(dice, names)] if wide else [_fixed(dice.get(v, math.nan)) for v in names]
        status = str(row.get("status", ""))
        minutes = _float(row.get("seconds")) / 60
        table.add_row(
            _text(row.get("algo", "")),
            str(row.get("fold", "")) if row.get("recall_dice") is None else f"{row['fold']} (all cases)",
            Text(status, STATE_STYLES.get(status, "")),
            Text(_fixed(row.get("mean_dice")), "bold"),
            *scores,
            _fixed(minutes, 1) if minutes > 0 else UNKNOWN,
        )
    return table


def cross_validation_table(families: Mapping[str, Any], labels: Mapping[Any, str] | None = None) -> Table:
    """A row a class, a column a family: mean Dice over the cases of all folds, with its 95 % interval.

    `families` is that of cross_validation.json: by family {"mean_dice", "dice": {label: {mean, low, high}}}.
    """
    plain = {str(name): _plain(scores) for name, scores in families.items()}
    names = _names(labels, (value for scores in plain.values() for value in scores.get("dice") or {}))
    table = _table("Cross-validation (mean Dice, 95 % interval)")
    _column(table, "class", fold=True)
    for name, scores in plain.items():
        cases = scores.get("n_cases")
        _column(table, f"{name} ({cases} cases)" if cases else name, right=True, fold=True)
    for value, name in names.items():
        table.add_row(_text(name), *(_interval((s.get("dice") or {}).get(value)) for s in plain.values()))
    table.add_section()
    table.add_row(Text("mean", "bold"), *(Text(_fixed(s.get("mean_dice")), "bold") for s in plain.values()))
    return table


def evaluation_table(evaluation: Any, labels: Mapping[Any, str] | None = None) -> Table:
    """A row a class: mean and 95 % interval of Dice, HD95 and surface Dice; mean of surface distance and IoU.

    Takes the Evaluation record, or the plain value of evaluation.json. Where a metric's summary is missing, its mean
    is taken over the cases.
    """
    plain = _plain(evaluation)
    summaries = {name: _summary(plain, name) for name in SHOWN_METRICS}
    shown = {name: by_class for name, by_class in summaries.items() if by_class}
    names = _names(labels or plain.get("labels"), (value for by_class in shown.values() for value in by_class))
    cases = len({case["case"] for case in plain.get("cases") or () if "case" in case})
    counted = f", {cases} case{'s' if cases != 1 else ''}" if cases else ""
    table = _table(f"Evaluation (mean, 95 % interval{counted})")
    _column(table, "class", fold=True)
    for metric in shown:
        title = METRIC_TITLES[metric]
        if metric == "surface_dice" and plain.get("tolerance_mm"):
            title += f" ({plain['tolerance_mm']:g} mm)"
        _column(table, title, right=True)
    for value, name in names.items():
        table.add_row(_text(name), *(_score(metric, by_class.get(value)) for metric, by_class in shown.items()))
    table.add_section()
    table.add_row(Text("mean Dice", "bold"), Text(_fixed(plain.get("mean_dice")), "bold"))
    return table


def devices_table(devices: Devices, slots: Sequence[Slot]) -> Table:
    """The slots that jobs run on, under what this process may use."""
    gpus = f", {len(devices.gpus)} GPU{'s' if len(devices.gpus) != 1 else ''}" if devices.gpus else ""
    table = _table(f"Devices ({devices.cores} cores, {_gib(devices.memory)} of memory{gpus})")
    for title in ("slot", "device", "GPU"):
        _column(table, title, fold=title == "GPU")
    _column(table, "cores", right=True)
    _column(table, "memory", right=True)
    models = {gpu.index: gpu.name for gpu in devices.gpus}
    for slot in slots:
        gpu = f"{slot.gpu} {models.get(slot.gpu, '')}".strip() if slot.gpu is not None else UNKNOWN
        memory = _gib(slot.memory) if slot.memory else UNKNOWN
        table.add_row(_text(slot.id), slot.device, _text(gpu), str(slot.cpus), memory)
    return table


def plan_table(families: Mapping[str, Any]) -> Table:
    """A row a setting with its value and reason; `families` is that of plan.json."""
    table = _table("Plan")
    for title in ("family", "setting", "value", "reason"):
        _column(table, title, fold=title in ("value", "reason"))
    for name, plan in families.items():
        plain = _plain(plan)
        if plain.get("skip"):
            table.add_row(_text(name), Text("left out", "yellow"), "", _text(plain["skip"]))
        for number, (key, choice) in enumerate((plain.get("settings") or {}).items()):
            known = isinstance(choice, dict) and "value" in choice
            value, reason = (choice["value"], choice.get("reason", "")) if known else (choice, "")
            table.add_row(_text(name if number == 0 else ""), _text(key), _text(value), _text(reason))
        table.add_section()
    return table


def jobs_table(
    rows: Sequence[Mapping[str, Any]], finished: int, total: int, seconds_left: float | None = None
) -> Table:
    """The live table, from the facts of a "jobs" event."""
    table = _table(f"Jobs: {finished} of {total} finished{left_in_all(total, seconds_left)}")
    table.padding = (0, 1, 0, 0)  # fits a terminal of 80 characters
    _column(table, "job", fold=True)
    for title in ("state", "device"):
        _column(table, title)
    for title in ("step", "loss", "best Dice", "time", "left"):
        _column(table, title, right=True)
    for row in rows:
        state = str(row.get("state", ""))
        tries = row.get("tries") or 0
        table.add_row(
            _text(row.get("id", "")),
            Text(
                state + (f", try {tries}" if tries > 1 and state == "running" else ""), STATE_STYLES.get(state, "dim")
            ),
            _text(row.get("device") or UNKNOWN),
            steps(row),
            _fixed(row.get("loss")),
            Text(_fixed(row.get("best_dice")), "bold"),
            duration(row.get("seconds") or None),
            duration(row.get("seconds_left")),
        )
    return table


def outlook_table(rows: Iterable[Any]) -> Table:
    """A row a job: what a run would do with it, and why; `rows` have id, fate and reason."""
    table = _table("What would run")
    for title in ("job", "fate", "why"):
        _column(table, title, fold=title == "why")
    for row in map(_plain, rows):
        fate = str(row["fate"])
        table.add_row(_text(row["id"]), Text(fate, STATE_STYLES.get(fate, "cyan")), _text(row["reason"]))
    return table


def trials_table(ranking: Sequence[Mapping[str, Any]]) -> Table:
    """The best trials of a sweep, best first, and what each changed of the plan."""
    table = _table("Best trials")
    for title in ("trial", "family", str(ranking[0]["objective"]) if ranking else "value", "folds"):
        _column(table, title, right=title not in ("trial", "family"))
    _column(table, "hyper-parameters", fold=True)
    for row in ranking:
        changed = ", ".join(f"{key} {_setting(value)}" for key, value in row["overrides"].items())
        name = f"{row['trial']} (default)" if row["default"] else str(row["trial"])
        shown = "as planned" if row["default"] else changed
        table.add_row(name, str(row["family"]), _fixed(row["value"]), str(row["folds"]), _text(shown))
    return table


def _setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def job_line(name: str, job: Mapping[str, Any]) -> str:
    """A job of `autoseg status`: its state and, as far as they are known, step, Dice, time left, tries, last error."""
    facts = [str(job["device"])] if job.get("device") and job["status"] == "running" else []
    if job.get("step") is not None:
        facts.append(f"step {steps(job)}")
    if job.get("best_dice") is not None:
        facts.append(f"best Dice {_fixed(job['best_dice'])}")
    if job.get("seconds_left") is not None:
        facts.append(f"{duration(job['seconds_left'])} left")
    if job.get("tries", 1) > 1:
        facts.append(f"try {job['tries']}")
    if job.get("error"):
        facts.append(job["error"].splitlines()[0])
    return f"job {name}: {job['status']}" + (f" ({', '.join(facts)})" if facts else "")


def steps(row: Mapping[str, Any]) -> str:
    """'120/400', or what is known of it."""
    if row.get("step") is None:
        return UNKNOWN
    return f"{row['step']}/{row['steps']}" if row.get("steps") else str(row["step"])


def duration(seconds: Any) -> str:
    """Seconds as 0:42, 12:05 or 3:07:59."""
    number = _float(seconds)
    if not math.isfinite(number):
        return UNKNOWN
    minutes, rest = divmod(max(0, round(number)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def left_in_all(jobs: int, seconds: float | None) -> str:
    """What the jobs together still take, where it is known and not said by a single one."""
    return f", about {duration(seconds)} left in all" if seconds and jobs > 1 else ""


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _column(table: Table, title: str, *, right: bool = False, fold: bool = False) -> None:
    """Folded where it may be long: an ellipsis is no ASCII, and hides what was asked for."""
    table.add_column(
        Text(str(title)), justify="right" if right else "left", overflow="fold", no_wrap=not fold, vertical="top"
    )


def _text(value: Any) -> Text:
    """What comes from data is text, never markup."""
    return Text(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def _plain(record: Any) -> dict[str, Any]:
    plain = to_plain(record)
    return plain if isinstance(plain, dict) else dict(vars(record))


def _names(labels: Mapping[Any, str] | None, values: Iterable[Any]) -> dict[str, str]:
    """Label value -> name, in the order of the values; a value without a name is called by its number."""
    known = {str(value): str(name) for value, name in (labels or {}).items() if str(value) != "0"}
    found = {str(value) for value in values} | set(known)
    ordered = sorted(found, key=lambda v: (not v.lstrip("-").isdigit(), int(v) if v.lstrip("-").isdigit() else 0, v))
    return {value: known.get(value, f"class {value}") for value in ordered}


def _lowest(dice: Mapping[str, float], names: Mapping[str, str]) -> Text:
    finite = sorted((score, value) for value, score in dice.items() if math.isfinite(score))
    return _text([f"{names.get(value, value)} {score:.4f}" for score, value in finite[:2]] or UNKNOWN)


def _summary(evaluation: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """label -> {mean, low, high} of a metric, wherever the evaluation holds it."""
    for place in (evaluation, evaluation.get("metrics") or {}):
        if isinstance(place, Mapping) and isinstance(place.get(metric), Mapping) and place[metric]:
            return {str(value): interval for value, interval in place[metric].items()}
    by_class: dict[str, list[float]] = {}
    for case in evaluation.get("cases") or ():
        score = _float(case.get(metric))
        if math.isfinite(score):
            by_class.setdefault(str(case.get("label")), []).append(score)
    return {value: {"mean": sum(scores) / len(scores)} for value, scores in by_class.items()}


def _score(metric: str, value: Any) -> str:
    digits = 2 if metric in ("hd95", "asd") else 3
    if metric in WITH_INTERVAL or not isinstance(value, Mapping):
        return _interval(value, digits)
    return _fixed(value.get("mean"), digits)


def _interval(value: Any, digits: int = 4) -> str:
    """'0.8871 [0.8802, 0.8930]'; without bounds the mean alone."""
    if not isinstance(value, Mapping):
        return _fixed(value, digits)
    mean, low, high = (_fixed(value.get(key), digits) for key in ("mean", "low", "high"))
    return mean if UNKNOWN in (mean, low, high) else f"{mean} [{low}, {high}]"


def _fixed(value: Any, digits: int = 4) -> str:
    number = _float(value)
    return f"{number:.{digits}f}" if math.isfinite(number) else UNKNOWN


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
