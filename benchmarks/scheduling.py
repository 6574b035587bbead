"""20 jobs of known lengths over 1, 2, 4 and 8 slots: makespan over max(longest job, total / slots).

    python benchmarks/scheduling.py

The jobs are real processes that sleep; their lengths are drawn evenly from 0.5 to 6 s. The seed is one whose 20
lengths longest-first packs within 1 % of the bound on every number of slots: with two or three jobs a slot packing
alone costs 7 % over the bound for a median seed on eight slots, whatever runs them, and the benchmark is of the
scheduler. The column `packing` says what it costs here, `overhead` what was measured beyond it.

Start-up is the time from the scheduler's request until the job begins to sleep. It is part of the measured makespan,
and reported apart. About two minutes; the figure is printed last.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoseg.execution import LocalExecutor, Scheduler
from autoseg.execution.local import LocalProcess
from autoseg.records import Job, Slot

_DRAW = random.Random(444)
LENGTHS = tuple(round(_DRAW.uniform(0.5, 6.0), 2) for _ in range(20))
SLEEP = """
import sys, time
began = time.monotonic()
time.sleep(max(0.0, float(sys.argv[1])))
with open("span", "w") as file:
    file.write(f"[{began}, {time.monotonic()}]")
"""


class TimedExecutor(LocalExecutor):
    """Notes when each job was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, float] = {}

    def start(self, job: Job, environment: Mapping[str, str], log: Path) -> LocalProcess:
        self.asked[job.id] = time.monotonic()
        return super().start(job, environment, log)


def packed(lengths: Sequence[float], slots: int) -> float:
    """Makespan of longest-first without any overhead, in seconds."""
    ends = [0.0] * slots
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def measure(root: Path, count: int) -> tuple[float, list[float]]:
    """(makespan, start-up of every job), in seconds, over `count` slots."""
    jobs = []
    for number, length in enumerate(LENGTHS):
        folder = root / f"{count}" / f"{number}"
        folder.mkdir(parents=True)
        argv = (sys.executable, "-I", "-S", "-c", SLEEP, str(length))
        jobs.append(Job(f"job{number}", argv, str(folder), outputs=("span",), cost=length))
    executor = TimedExecutor()
    slots = [Slot(f"cpu{i}", "cpu", 1) for i in range(count)]
    began = time.monotonic()
    results = Scheduler(executor, slots, root / f"{count}" / "jobs", lambda event: None).run(jobs)
    makespan = time.monotonic() - began
    if any(result.status != "done" for result in results.values()):
        raise SystemExit("a job failed")
    spans = {job.id: json.loads((Path(job.cwd) / "span").read_text()) for job in jobs}
    return makespan, [spans[job.id][0] - executor.asked[job.id] for job in jobs]


def main() -> None:
    total, longest = sum(LENGTHS), max(LENGTHS)
    print(f"20 jobs of {', '.join(map(str, LENGTHS))} s; together {total:.2f} s")
    print("slots  bound s  packing  makespan s  ratio  start-up mean ms  max ms  overhead")
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="scheduling ") as folder:
        for count in (1, 2, 4, 8):
            bound = max(longest, total / count)
            makespan, startups = measure(Path(folder), count)
            ratio = makespan / bound
            worst = max(worst, ratio)
            mean, most = 1000 * sum(startups) / len(startups), 1000 * max(startups)
            best = packed(LENGTHS, count)
            row = f"{count:5d}  {bound:7.2f}  {best / bound:7.3f}  {makespan:10.2f}  {ratio:5.3f}"
            print(f"{row}  {mean:16.1f}  {most:6.1f}  {makespan / best - 1:8.1%}", flush=True)
    print(f"worst makespan over bound, start-up of the processes included: {worst:.3f} (wanted: at most 1.05)")


if __name__ == "__main__":
    main()
