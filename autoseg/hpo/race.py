"""Is one configuration better than another? By the same cases, and only where it is more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.stats import wilcoxon

from autoseg.evaluation import bootstrap_mean

LEVEL = 0.05  # of the one-sided test by which a challenger must be better
FEWEST_FOLDS = 2  # before a challenger can win
WON, LOST = "is better", "could not be trained"


@dataclass(frozen=True)
class Paired:
    """How much better one is than the other over the cases of both: mean difference, its 95 % bootstrap interval, and
    p of the one-sided signed-rank test (Wilcoxon, 1945)."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def paired(better: Mapping[str, float], than: Mapping[str, float]) -> Paired:
    """Compare values by case, of which more is better. Without a common case, or without a difference, p is 1."""
    differences = [better[case] - than[case] for case in sorted(better.keys() & than.keys())]
    mean, low, high = bootstrap_mean(differences)
    p = float(wilcoxon(differences, alternative="greater").pvalue) if any(differences) else 1.0
    return Paired(len(differences), mean, low, high, p)


@dataclass
class Race:
    """Who is best so far: the default configuration, until another beats it by more than noise.

    A trial whose value leads is the challenger: it, and the incumbent where it lacks them, are trained on further folds
    and compared case by case after each. It is dismissed when it is not ahead, or not clearly ahead on the last fold.
    `folds`: how many of them are used. Values by case and fold come from `by_case(trial, fold)`, None where the trial
    has not been trained on it.
    """

    folds: int
    by_case: Callable[[int, int], Mapping[str, float] | None]
    incumbent: int | None = None
    dismissed: set[int] = field(default_factory=set)
    verdicts: list[tuple[int, int, Paired, str]] = field(default_factory=list)

    def settle(self, ranked: Sequence[int], lost: Callable[[int, int], bool]) -> list[tuple[int, int]]:
        """(trial, fold) of what must be trained before the next decision; [] where nobody challenges.

        `ranked`: the trials that are done, best first, the default among them. `lost(trial, fold)`: whether its
        training there failed for good; such a challenger is dismissed.
        """
        if self.incumbent is None:
            return []
        for trial in ranked:
            if trial == self.incumbent:
                return []  # what ranks below it does not lead
            if trial in self.dismissed:
                continue
            wanted = self._against(trial, lost)
            if wanted:
                return wanted
            if self.incumbent == trial:
                return []
        return []

    def plain(self) -> list[list[Any]]:
        """The verdicts as JSON-able values, for `recall`; not those of challengers that could not be trained."""
        kept = [verdict for verdict in self.verdicts if not verdict[-1].startswith(LOST)]
        return [[trial, than, asdict(found), reason] for trial, than, found, reason in kept]

    def recall(self, plain: Sequence[Sequence[Any]]) -> None:
        """Let verdicts of earlier calls stand: in which order trials came to the race is not seen from their scores."""
        for trial, than, found, reason in plain:
            self.verdicts.append((trial, than, Paired(**found), reason))
            if reason == WON:
                self.incumbent = trial
            else:
                self.dismissed.add(trial)

    def _against(self, trial: int, lost: Callable[[int, int], bool]) -> list[tuple[int, int]]:
        """Compare a challenger with the incumbent as far as both are trained; what is to be trained for the rest."""
        assert self.incumbent is not None
        mine: dict[str, float] = {}
        theirs: dict[str, float] = {}
        found = paired(mine, theirs)
        for fold in range(self.folds):
            if lost(self.incumbent, fold):
                continue  # nothing to compare with
            if lost(trial, fold):
                return self._dismiss(trial, found, f"{LOST} on fold {fold}")
            own, its = self.by_case(trial, fold), self.by_case(self.incumbent, fold)
            if own is None or its is None:
                return [(name, fold) for name, values in ((trial, own), (self.incumbent, its)) if values is None]
            mine, theirs = {**mine, **own}, {**theirs, **its}
            found = paired(mine, theirs)
            if found.n and not found.mean > 0:
                return self._dismiss(trial, found, f"is not ahead over {found.n} cases")
            if found.p < LEVEL and fold + 1 >= min(FEWEST_FOLDS, self.folds):
                break
        if not found.p < LEVEL:
            return self._dismiss(trial, found, f"is not ahead by more than noise over {found.n} cases")
        self.verdicts.append((trial, self.incumbent, found, WON))
        self.incumbent = trial
        return []

    def _dismiss(self, trial: int, found: Paired, reason: str) -> list[tuple[int, int]]:
        assert self.incumbent is not None
        self.dismissed.add(trial)
        self.verdicts.append((trial, self.incumbent, found, reason))
        return []
