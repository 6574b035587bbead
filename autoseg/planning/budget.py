"""How a span of time is divided among jobs that run side by side."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def makespan(costs: Sequence[float], slots: int) -> float:
    """When the last of the jobs ends, started longest first, each on the slot that is free first (Graham 1969)."""
    ends = [0.0] * slots
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def seconds_a_share(seconds: float, shares: Sequence[float], slots: int) -> float:
    """What a job of share 1 may take so that jobs of these shares are all done within `seconds`."""
    return seconds / makespan(shares, slots)
