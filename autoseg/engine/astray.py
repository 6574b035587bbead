"""When a training has gone astray, and how often it may go back to its last good checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_RETURNS = 3
SETTLED = 10  # steps whose losses say what is usual
ODD, EXPLODED = 2.0, 4.0  # times the usual loss, which is taken for 1 at least
MEMORY = 0.8  # of the running mean: a single bad patch is no explosion


class AstrayError(FloatingPointError):
    """The loss is not finite, or has exploded."""


@dataclass
class LossWatch:
    """Told every step's loss; raises AstrayError where it is not finite or its running mean is far above the usual.

    The usual is the mean of a training's first steps. A loss of Dice and cross-entropy only falls from there; what
    rises to four times as much has lost what was learnt.
    """

    steps: int = 0
    usual: float = 0.0
    mean: float = 0.0

    def see(self, step: int, loss: float) -> None:
        """Take in the loss of optimiser step `step`."""
        if not math.isfinite(loss):
            raise AstrayError(f"the loss is {loss} at step {step}")
        self.steps += 1
        if self.steps <= SETTLED:
            self.usual += (loss - self.usual) / self.steps
            self.mean = self.usual
            return
        self.mean = MEMORY * self.mean + (1 - MEMORY) * loss
        if self._above(EXPLODED):
            raise AstrayError(f"the loss has exploded to {self.mean:.3g} at step {step}")

    @property
    def calm(self) -> bool:
        """Whether these weights may be gone back to."""
        return not self._above(ODD)

    def _above(self, times: float) -> bool:
        return self.mean > times * max(1.0, self.usual)
