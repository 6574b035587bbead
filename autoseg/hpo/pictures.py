"""Pictures of a sweep, drawn without any of matplotlib's global state (which Optuna's own drawings change)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autoseg.errors import one_line
from autoseg.workspace import atomic_file

BLUE, ORANGE, GREY, RED = "#2b6cb0", "#dd6b20", "#a8a8a8", "#b03030"
COLOURS = "viridis_r"  # dark is good, or late
DPI = 110
MOST_PANELS, MOST_AXES, MOST_BARS = 20, 12, 20
RING: dict[str, Any] = {"facecolors": "none", "linewidths": 1.8, "s": 90, "marker": "o", "zorder": 5}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """What is drawn: trials, names and directions of the objectives, shares by parameter, the number of the default."""

    trials: Sequence[FrozenTrial]
    objectives: Sequence[str]
    directions: Sequence[str]
    importances: Mapping[str, float]
    default: int | None = 0

    def of(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == state]

    @cached_property
    def done(self) -> list[FrozenTrial]:
        """The trials that came to their end with finite values."""
        return [trial for trial in self.of(TrialState.COMPLETE) if np.isfinite(trial.values).all()]

    @cached_property
    def default_trial(self) -> FrozenTrial | None:
        return next((trial for trial in self.done if trial.number == self.default), None)

    def values(self, objective: int = 0) -> NDArray[np.float64]:
        return np.array([trial.values[objective] for trial in self.done])

    def better(self, objective: int = 0) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.directions[objective] == "maximize" else -1

    def best(self, objective: int = 0) -> FrozenTrial:
        return self.done[int(np.argmax(self.better(objective) * self.values(objective)))]

    def varied(self, most: int, of: FrozenTrial | None = None) -> tuple[list[str], int]:
        """At most `most` parameters (of a trial) that differ among the trials that are done, and of how many.

        Those that the most trials have come first, and of these the most important.
        """
        seen: dict[str, list[Any]] = {}
        for trial in self.done:
            for name in trial.params if of is None else trial.params.keys() & of.params.keys():
                seen.setdefault(name, []).append(trial.params[name])
        names = sorted(name for name, values in seen.items() if len(set(values)) > 1)
        names.sort(key=lambda name: (-len(seen[name]), -self.importances.get(name, 0.0)))
        return names[:most], len(names)


def draw(sweep: History, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Draws all that the trials suffice for: the PNG files, and the reasons of those left out by file name."""
    pictures: dict[str, Callable[[], Figure]] = {
        "history": partial(history, sweep),
        "importances": partial(importances, sweep),
        "parallel": partial(parallel, sweep),
        "learning_curves": partial(learning_curves, sweep),
    }
    for index in range(len(sweep.objectives)):
        name = "slice" if len(sweep.objectives) == 1 else f"slice_{index + 1}"
        pictures[name] = partial(slices, sweep, index)
    if len(sweep.objectives) == 2:
        pictures["pareto"] = partial(pareto, sweep)
    files: list[Path] = []
    left_out: dict[str, str] = {}
    for name, make in pictures.items():
        path = folder / f"{name}.png"
        try:
            figure = make()
            with atomic_file(path, "wb") as file:
                FigureCanvasAgg(figure).print_figure(file, format="png", dpi=DPI)
        except OSError:
            raise
        except Exception as error:  # a picture is no reason for a sweep to end without its result
            left_out[path.name] = str(error) if isinstance(error, TooLittleError) else one_line(error)
            logger.debug("no picture %s", name, exc_info=True)
        else:
            files.append(path)
    return files, left_out


class TooLittleError(ValueError):
    """The trials do not suffice for a picture."""


def _need(enough: Any, reason: str) -> None:
    if not enough:
        raise TooLittleError(reason)


def history(sweep: History) -> Figure:
    """Each objective by the number of the trial, with the best so far; pruned trials by the last they reported."""
    _need(sweep.done, "no trial is done")
    count = len(sweep.objectives)
    figure = Figure((8, 1.2 + 3 * count), layout="constrained")
    axes = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
    for objective, ax in enumerate(axes):
        values, numbers = sweep.values(objective), [trial.number for trial in sweep.done]
        clip = _limits(values, sweep.better(objective), ax.set_ylim)
        ax.scatter(numbers, clip(values), s=22, color=BLUE, label=f"done ({len(values)})", zorder=3)
        reported = [(t.number, list(t.intermediate_values.values())[-1]) for t in _reporting(sweep, TrialState.PRUNED)]
        if reported:
            at, last = zip(*reported, strict=True)
            label = f"pruned ({len(at)}), last report"
            ax.scatter(at, clip(last), s=22, color=GREY, marker="x", linewidths=1, label=label)
        failed = [trial.number for trial in sweep.of(TrialState.FAIL)]
        if failed:
            bottom = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            ax.scatter(
                failed, [0] * len(failed), s=30, color=RED, marker="^", label=f"failed ({len(failed)})", **bottom
            )
        order = sweep.better(objective)
        so_far = order * np.maximum.accumulate(order * values)
        ax.step(numbers, clip(so_far), where="post", color=ORANGE, label="best so far", linewidth=1.5)
        if sweep.default_trial:
            at_default = clip([sweep.default_trial.values[objective]])
            ax.scatter([sweep.default_trial.number], at_default, edgecolors="black", label="default", **RING)
        ax.set_ylabel(_plain(sweep.objectives[objective]))
        ax.grid(alpha=0.25)
    axes[-1].set_xlabel("trial")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def importances(sweep: History) -> Figure:
    """The shares of the parameters as bars, the largest on top."""
    _need(sweep.importances, "there are no importances")
    shown = list(sweep.importances.items())[:MOST_BARS]
    figure = Figure((7, 1.1 + 0.27 * len(shown)), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh([_plain(name) for name, _ in shown], [share for _, share in shown], color=BLUE)
    ax.bar_label(bars, [f"{share:.0%}" for _, share in shown], padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.1, y=0.01)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_xticks([])
    more = len(sweep.importances) - len(shown)
    ax.set_xlabel(f"share in being among the best{f' ({more} of less are not shown)' if more else ''}", fontsize=9)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def slices(sweep: History, objective: int = 0) -> Figure:
    """An objective by each parameter that was varied, one panel each; the later the trial, the darker."""
    _need(len(sweep.done) > 1, f"{len(sweep.done)} trials are done, and it takes 2")
    names, of = sweep.varied(MOST_PANELS)
    _need(names, "no parameter was varied")
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((max(6, 2.7 * columns + 1), 2.3 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    shade = Normalize(0, max(trial.number for trial in sweep.done))
    for index, ax in enumerate(axes.flat):
        if index >= len(names):
            ax.set_axis_off()
            continue
        having = [trial for trial in sweep.done if names[index] in trial.params]
        scale = _Scale(names[index], having)
        clip = _limits(sweep.values(objective), sweep.better(objective), ax.set_ylim)
        across = scale.places(having, jitter=0.18)
        up = clip([trial.values[objective] for trial in having])
        ax.scatter(across, up, s=20, c=[t.number for t in having], cmap=COLOURS, norm=shade, edgecolors="none")
        for trial, colour in ((sweep.best(objective), ORANGE), (sweep.default_trial, "black")):
            if trial in having:
                at = having.index(trial)
                ax.scatter(across[at], up[at], edgecolors=colour, **RING | {"s": 160 if colour == ORANGE else 80})
        scale.label(ax)
        ax.set_title(_plain(names[index].replace(".", ".\n") if len(names[index]) > 30 else names[index]), fontsize=8)
        ax.tick_params(labelsize=7, labelleft=index % columns == 0)
        ax.grid(alpha=0.25)
    figure.supylabel(_plain(sweep.objectives[objective]), fontsize=9)
    left = f"; {len(names)} of {of} parameters" if of > len(names) else ""
    figure.suptitle(f"trials that were done; orange ring: the best, black: the default{left}", fontsize=9)
    whole = MaxNLocator(integer=True)
    figure.colorbar(ScalarMappable(shade, COLOURS), ax=axes, label="trial", ticks=whole, aspect=40, pad=0.01)
    return figure


def parallel(sweep: History) -> Figure:
    """Each trial that is done as a line over the objectives and those parameters of the best one that were varied."""
    _need(len(sweep.done) > 1, f"{len(sweep.done)} trials are done, and it takes 2")
    names, of = sweep.varied(MOST_AXES, sweep.best())
    _need(names, "no parameter was varied")
    scales = [_Scale(name, sweep.done, objective) for objective, name in enumerate(sweep.objectives)]
    scales += [_Scale(name, sweep.done) for name in names]
    figure = Figure((max(7, 2.2 + 1.05 * len(scales)), 5.5), layout="constrained")
    ax = figure.subplots()
    heights = np.array([scale.heights(sweep.done) for scale in scales])  # [axis, trial], nan where it has no such
    order = sweep.better() * sweep.values()
    shade = Normalize(*np.sort(_bounds(sweep.values(), sweep.better())))
    colours = colormaps[COLOURS if sweep.better() > 0 else COLOURS.removesuffix("_r")]
    for at in np.argsort(order):  # the best on top
        line = {"color": colours(shade(sweep.values()[at])), "linewidth": 1.0, "alpha": 0.75}
        if sweep.done[at] is sweep.default_trial:
            line |= {"color": "black", "linewidth": 1.8, "linestyle": "--", "zorder": 4}
        if sweep.done[at] is sweep.best():
            line |= {"color": ORANGE, "linewidth": 2.4, "zorder": 5, "alpha": 1.0}
        ax.plot(heights[:, at], marker="o", markersize=2.5, **line)
    for index, scale in enumerate(scales):
        ax.axvline(index, color="black", linewidth=0.6, zorder=1)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
        for height, text in scale.marks():
            ax.text(index + 0.04, height, text, fontsize=7, va="center", bbox=box, zorder=6)
    ax.set_xticks(range(len(scales)), [_plain(scale.name) for scale in scales], rotation=30, ha="right", fontsize=8)
    ax.set_yticks([])
    ax.set_xlim(-0.15, len(scales) - 0.25)
    ax.spines[:].set_visible(False)
    left = f"; {len(names)} of {of} parameters" if of > len(names) else ""
    ax.set_title(f"trials that were done; orange: the best, dashed: the default{left}", fontsize=9)
    bar = figure.colorbar(ScalarMappable(shade, colours), ax=ax, aspect=30, pad=0.01)
    bar.set_label(_plain(sweep.objectives[0]))
    return figure


def learning_curves(sweep: History) -> Figure:
    """What each trial reported on its way; the best one and the default stand out."""
    _need(len(sweep.objectives) == 1, "trials of several objectives report nothing on their way")
    done, pruned = _reporting(sweep, TrialState.COMPLETE), _reporting(sweep, TrialState.PRUNED)
    _need(done or pruned, "no trial has reported anything on its way")
    figure = Figure((8, 4.5), layout="constrained")
    ax = figure.subplots()
    values = np.array([value for trial in done + pruned for value in trial.intermediate_values.values()])
    clip = _limits(values[np.isfinite(values)], sweep.better(), ax.set_ylim)
    styles: list[tuple[list[FrozenTrial], str, dict[str, Any]]] = [
        (pruned, f"pruned ({len(pruned)})", {"color": GREY, "linewidth": 0.8, "marker": "x", "markersize": 5}),
        (done, f"done ({len(done)})", {"color": BLUE, "linewidth": 0.8, "alpha": 0.6}),
    ]
    if sweep.done and sweep.best() in done:
        styles.append(([sweep.best()], f"best, trial {sweep.best().number}", {"color": ORANGE, "linewidth": 2.2}))
    if sweep.default_trial in done:
        styles.append(([sweep.default_trial], "default", {"color": "black", "linewidth": 1.8, "linestyle": "--"}))
    for trials, label, style in styles:
        for index, trial in enumerate(trials):
            steps = sorted(trial.intermediate_values)
            reports = clip([trial.intermediate_values[step] for step in steps])
            # a pruned one has its mark where it ended
            ax.plot(steps, reports, markevery=[-1], label=label if index == 0 else "_", **style)
    ax.set_xlabel("report")
    ax.set_ylabel(_plain(sweep.objectives[0]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def pareto(sweep: History) -> Figure:
    """Both objectives of each trial that is done; those on the front have their number."""
    _need(sweep.done, "no trial is done")
    figure = Figure((6.5, 5), layout="constrained")
    ax = figure.subplots()
    points = np.stack([sweep.values(0), sweep.values(1)], 1)  # [trial, objective]
    gain = points * [sweep.better(0), sweep.better(1)]
    beaten = np.array([((gain >= own).all(1) & (gain > own).any(1)).any() for own in gain])
    ax.scatter(points[beaten, 0], points[beaten, 1], s=22, color=GREY, label=f"beaten ({beaten.sum()})")
    front = [index for index in np.argsort(points[:, 0]) if not beaten[index]]
    ax.plot(*points[front].T, color=BLUE, marker="o", markersize=5, linewidth=1, label=f"front ({len(front)})")
    for place, index in enumerate(front):  # now above, now below: neighbours may be close
        above = (4, -11 if place % 2 else 4)
        ax.annotate(str(sweep.done[index].number), points[index], above, textcoords="offset points", fontsize=8)
    if sweep.default_trial:
        x, y = sweep.default_trial.values
        ax.scatter([x], [y], edgecolors="black", label="default", **RING)
    ax.set_xlabel(_plain(sweep.objectives[0]))
    ax.set_ylabel(_plain(sweep.objectives[1]))
    ax.margins(0.08)
    ax.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _reporting(sweep: History, state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in sweep.of(state) if trial.intermediate_values]


def _bounds(values: NDArray[np.float64], better: int) -> tuple[float, float]:
    """The range worth showing: all but the bad outliers, which are beyond three times the middle half's width."""
    low, high = float(values.min()), float(values.max())
    first, third = (float(quartile) for quartile in np.quantile(values, [0.25, 0.75]))
    if better > 0:
        low = max(low, first - 3 * (third - first)) if third > first else low
    else:
        high = min(high, third + 3 * (third - first)) if third > first else high
    return low, high


def _limits(
    values: NDArray[np.float64], better: int, limit: Callable[[float, float], Any]
) -> Callable[[Sequence[float] | NDArray[np.float64]], NDArray[np.float64]]:
    """Limits an axis to what is worth showing; gives the function that puts what lies beyond at the edge."""
    low, high = _bounds(values, better)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    limit(low - margin, high + margin)
    edge = margin / 3
    return lambda given: np.clip(given, low - margin + edge, high + margin - edge)


def _plain(text: str) -> str:
    """The text, none of it a formula to matplotlib."""
    return text.replace("$", r"\$")


class _Scale:
    """Where the values of a parameter lie on an axis: numbers as they are or by their logarithm, choices side by side.

    With `objective` it is that objective's.
    """

    def __init__(self, name: str, trials: Sequence[FrozenTrial], objective: int | None = None):
        self.name, self.objective = name, objective
        having = [trial for trial in trials if self.value(trial) is not None]
        kinds = [trial.distributions[name] for trial in having] if objective is None else []
        self.choices: list[Any] = []
        if any(isinstance(kind, CategoricalDistribution) for kind in kinds):
            tried = [self.value(trial) for trial in having]
            offered = [choice for kind in kinds for choice in getattr(kind, "choices", ())]
            self.choices = [choice for choice in dict.fromkeys(offered) if choice in tried]
        self.log = not self.choices and any(getattr(kind, "log", False) for kind in kinds)
        self.whole = bool(kinds) and all(isinstance(kind, IntDistribution) for kind in kinds)
        places = self.places(having)
        self.low, self.high = float(places.min()), float(places.max())

    def value(self, trial: FrozenTrial) -> Any:
        return trial.params.get(self.name) if self.objective is None else trial.values[self.objective]

    def places(self, trials: Sequence[FrozenTrial], jitter: float = 0.0) -> NDArray[np.float64]:
        """A place for each trial, nan for one without the parameter; choices spread by `jitter` about theirs."""
        found = [self.value(trial) for trial in trials]
        if self.choices:
            spread = np.random.default_rng(0).uniform(-jitter, jitter, len(found))
            places = [math.nan if value is None else self.choices.index(value) for value in found]
            return np.array(places, float) + spread
        values = np.array([math.nan if value is None else value for value in found], float)
        return np.log10(values) if self.log else values

    def heights(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        """The places within 0 and 1."""
        return (self.places(trials) - self.low) / (self.high - self.low or 1.0)

    def _text(self, place: float) -> str:
        number = 10**place if self.log else place
        return f"{number:.0f}" if self.whole else f"{number:.3g}"

    def marks(self) -> list[tuple[float, str]]:
        """(height within 0 and 1, text): each choice, or the ends and the middle."""
        if self.choices:
            return [(index / max(1, self.high), _brief(choice)) for index, choice in enumerate(self.choices)]
        middle = (self.low + self.high) / 2
        return [(0.0, self._text(self.low)), (0.5, self._text(middle)), (1.0, self._text(self.high))]

    def label(self, ax: Axes) -> None:
        """Gives a panel's x axis its marks: few enough to be read."""
        if self.choices:
            texts = [_brief(choice) for choice in self.choices]
            turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 24 else {}
            ax.set_xticks(range(len(texts)), texts, **turned)
            ax.set_xlim(-0.5, len(texts) - 0.5)
        elif self.log:
            ticks = np.linspace(self.low, self.high, 3)
            ax.set_xticks(ticks, [self._text(tick) for tick in ticks])
        else:
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=self.whole))


def _brief(choice: Any, longest: int = 16) -> str:
    text = str(choice)
    return _plain(text if len(text) <= longest else text[: longest - 1] + "…")
