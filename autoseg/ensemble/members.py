"""Choose the members of an ensemble from the leaderboard, by the rules of MONAI's Auto3DSeg. No torch here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from autoseg.errors import Fault, InputError, nearest
from autoseg.records import LeaderboardEntry

BEST_BY_FOLD, BEST_N, ALL = "AlgoEnsembleBestByFold", "AlgoEnsembleBestN", "AlgoEnsembleAll"
AUTO = "auto"  # by what is said out of fold, see `autoseg.ensemble.selecting`; as by fold where nothing is kept of it
METHODS = (AUTO, BEST_BY_FOLD, BEST_N, ALL)
# A network has collapsed where its mean Dice, without validation that on cases it was trained on, is below the first
# figure's share of the median of its family's other folds, and that is at least the second: the data can be learnt,
# this training went wrong.
COLLAPSED, LEARNABLE = 0.5, 0.3

LeftOut = list[tuple[str, str]]


def choose_members(
    entries: Sequence[LeaderboardEntry], method: str = BEST_BY_FOLD, *, n_best: int = 5, unvalidated_ok: bool = False
) -> tuple[list[LeaderboardEntry], LeftOut]:
    """(members by `method`, [(name, reason)] of the entries that are fit for no ensemble).

    `AlgoEnsembleBestByFold` takes the best family of each fold, `AlgoEnsembleBestN` the `n_best` best of all,
    `AlgoEnsembleAll` every one. An entry that was not chosen, though fit, is not among those left out. One trained
    without validation (done, no Dice at all) ranks by the median Dice of its family's folds. Where those have none,
    it is a member with `unvalidated_ok`: nothing ranks it, so by fold all of them are taken, and they come last among
    the best N.
    """
    if method not in METHODS:
        raise InputError([Fault("", "ensemble_method", f"'{method}' is none{nearest(method, METHODS)}")])
    if n_best < 1:
        raise InputError([Fault("", "n_best", f"must be at least 1, not {n_best}")])
    fit, left_out = fit_members(entries, unvalidated_ok)
    ranks = {entry.name: standing(entry, entries) for entry in fit}
    ranked = sorted((e for e in fit if math.isfinite(ranks[e.name])), key=lambda e: (-ranks[e.name], e.algo, e.fold))
    unranked = [e for e in fit if not math.isfinite(ranks[e.name])]
    if method == ALL:
        chosen = fit
    elif method == BEST_N:
        chosen = [*ranked, *unranked][:n_best]
    else:
        best: dict[int, LeaderboardEntry] = {}
        for entry in ranked:
            best.setdefault(entry.fold, entry)
        chosen = [*(best[fold] for fold in sorted(best)), *unranked]
    return chosen, left_out


def fit_members(entries: Sequence[LeaderboardEntry], unvalidated_ok: bool) -> tuple[list[LeaderboardEntry], LeftOut]:
    """(entries that may be members of an ensemble, [(name, reason)] of the others)."""
    fit, left_out = [], []
    for entry in entries:
        reason = _unfit(entry, entries, unvalidated_ok)
        if reason:
            left_out.append((entry.name, reason))
        else:
            fit.append(entry)
    return fit, left_out


def _unfit(entry: LeaderboardEntry, entries: Sequence[LeaderboardEntry], unvalidated_ok: bool) -> str:
    """Why an entry is fit for no ensemble; the empty string where it is fit."""
    if entry.status != "done":
        return f"its training is not done ({entry.status})"
    if not entry.predicts:
        return "its InferClass could not predict the validation cases (its output.log says why)"
    unvalidated = not entry.dice and (unvalidated_ok or math.isfinite(standing(entry, entries)))
    if not math.isfinite(entry.mean_dice) and not unvalidated:
        return "its mean Dice is not a number"
    median = _siblings_median(entry, entries)
    if _has_collapsed(entry, median):
        return f"its training collapsed: mean Dice {told_dice(entry):.3f}, the family's other folds have {median:.3f}"
    return ""


def standing(entry: LeaderboardEntry, entries: Sequence[LeaderboardEntry]) -> float:
    """By which an entry is ranked: its mean Dice; without validation what its family has elsewhere, NaN for nothing."""
    if entry.dice or math.isfinite(entry.mean_dice):
        return entry.mean_dice
    return _siblings_median(entry, entries) or math.nan


def collapsed(entries: Sequence[LeaderboardEntry]) -> list[LeaderboardEntry]:
    """The trained networks that are far below their siblings."""
    return [e for e in entries if e.status == "done" and _has_collapsed(e, _siblings_median(e, entries))]


def told_dice(entry: LeaderboardEntry) -> float:
    """By which it is seen whether a network has learned: its mean Dice; without validation, that on trained cases."""
    if entry.recall_dice is None or math.isfinite(entry.mean_dice):
        return entry.mean_dice
    return entry.recall_dice


def _has_collapsed(entry: LeaderboardEntry, median: float) -> bool:
    return median >= LEARNABLE and told_dice(entry) < COLLAPSED * median


def _siblings_median(entry: LeaderboardEntry, entries: Sequence[LeaderboardEntry]) -> float:
    """Median Dice of the family's other folds; 0 where there are none."""
    siblings = [
        other.mean_dice
        for other in entries
        if other.algo == entry.algo
        and other.fold != entry.fold
        and other.status == "done"
        and math.isfinite(other.mean_dice)
    ]
    return statistics.median(siblings) if siblings else 0.0
