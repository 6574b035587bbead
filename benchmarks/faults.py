"""Faults injected into a small real run, seeded: how many it survives, and how much work is done twice for them.

    python benchmarks/faults.py [--seed 4] [--quick] [--only WORD] [--steps 90]

A run of two folds on generated data, its budget in steps, is left alone once: the reference. Then, for every fault, the
same run again: the fault at a random moment, and where it ended the run the same command until it ends by itself.

A fault is survived where the run ends with exit code 0 and the weights and the leaderboard of the reference. After what
changes the course (memory, a loss that is not a number) the codes are 0 or 3, every fold is done, and metrics.jsonl
says what changed.

Work lost is what a training did twice: the patches its network was given in training (it counts them itself, so that
steps which no log has seen count as well) over the patches of its batches, less the steps of its budget; of the folds,
which run side by side, the one that lost most counts. A step counts with its share of the validations: the seconds of
the reference's trainings over their steps. What a start costs (Python, the cache, the analysis) is none of it. Printed
last: the median and the most over all faults, beside the seconds between two validations. Exit code 1 where a fault was
not survived.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import psutil
import torch
from monai.networks.nets import SegResNetDS

from autoseg.bundles.templates import available_templates
from autoseg.demo import make_demo_data
from autoseg.engine.trainer import VALIDATIONS
from autoseg.workspace import read_json, read_yaml, room, write_json, write_yaml

FOLDS = ("segresnet_0", "segresnet_1")
BATCH = 2
PATIENCE = 600.0  # seconds that a run may take
MOST_STARTS = 5  # of the same command
STUCK_MINUTES = 0.5
ARMED, COUNTED = "fault.json", "patches.log"  # in a bundle, where its training works


class FaultyNet(SegResNetDS):  # type: ignore[misc]  # monai is untyped
    """SegResNetDS, the same weights. In training it counts its patches, and does once what `fault.json` asks of it."""

    def forward(self, x: torch.Tensor) -> Any:
        if not self.training:
            return super().forward(x)
        counted, armed = Path(COUNTED), Path(ARMED)
        done = counted.stat().st_size if counted.exists() else 0
        kind = ""
        if armed.exists() and done >= read_json(armed)["patches"]:
            kind = read_json(armed)["kind"]
            armed.unlink()
        if kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        if kind == "exit":
            os._exit(0)
        if kind == "hang":
            time.sleep(1e6)
        answer = super().forward(x)
        with contextlib.suppress(OSError), open(counted, "ab") as file:  # a full disk must not end it here
            file.write(b"x" * len(x))
        spoilt = torch.nan if kind == "nan" else 1.0
        return [level * spoilt for level in answer] if isinstance(answer, list) else answer * spoilt


# ---- a run


@dataclass
class Run:
    """The run in a work_dir of its own: started by the same command as often as it takes."""

    work_dir: Path
    source: Path  # the input file
    random: random.Random
    steps: int
    seconds: float  # that the reference took
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    outlived: bool = False  # its jobs were at work 20 s after it had been killed

    def start(self) -> None:
        command = [sys.executable, "-m", "autoseg", "run", "--input", str(self.source), "--work_dir"]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        self.starts += 1
        with open(self.source.parent / f"{self.work_dir.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.work_dir)], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def jobs(self) -> list[psutil.Process]:
        """Its trainings at work."""
        return [job for job in psutil.process_iter(["cmdline"]) if self._is_ours(job.info["cmdline"] or [])]

    def _is_ours(self, words: list[str]) -> bool:
        return any(word.startswith(f"{self.work_dir}/") and word.endswith("train.py") for word in words)

    def until(self, happened: Callable[[], Any]) -> bool:
        """Wait until it has happened; False where the run ended before."""
        end = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < end:
            if happened():
                return True
            time.sleep(0.01)
        return False

    def moment(self) -> bool:
        """Wait for a random moment of the run; False where it was over by then."""
        end = time.monotonic() + self.random.uniform(1.0, 0.95 * self.seconds)
        return self.until(lambda: time.monotonic() >= end)

    def step(self) -> psutil.Process | None:
        """Wait for a random step of a random training; the job at it, None where that was over by then."""
        fold, patches = self.work_dir / self.random.choice(FOLDS), self.random.randrange(BATCH * self.steps)
        counted = fold / COUNTED
        if not self.until(lambda: counted.exists() and counted.stat().st_size >= patches):
            return None
        return next((job for job in self.jobs() if job.info["cmdline"][1].startswith(f"{fold}/")), None)

    def end(self) -> tuple[int | None, int]:
        """(exit code of the last start, None where it hung; starts) after the same command until it ends by itself."""
        while True:
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(PATIENCE) if self.process else 1
            if code is None:
                self.kill(signal.SIGKILL)
            if code in (0, 2, 3, 4, None) or self.starts == MOST_STARTS:
                return code, self.starts
            self.start()

    def kill(self, number: int, with_jobs: bool = False) -> None:
        """Send a signal to the run, with -9 to its jobs, and wait until they have ended."""
        for job in self.jobs() if with_jobs else []:
            with contextlib.suppress(psutil.Error):
                job.kill()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
            self.process.wait()
        end = time.monotonic() + 20
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.05)
        self.outlived |= bool(self.jobs())


# ---- faults: each does its harm to a run that was started, and returns whether it came to it


def killed(number: int, with_jobs: bool = False) -> Callable[[Run], bool]:
    """The run alone at any moment, or all of it at a step."""

    def harm(run: Run) -> bool:
        if not (run.step() if with_jobs else run.moment()):
            return False
        run.kill(number, with_jobs)
        return True

    return harm


def job_signalled(number: int) -> Callable[[Run], bool]:
    def harm(run: Run) -> bool:
        job = run.step()
        if job is not None:
            with contextlib.suppress(psutil.Error):
                job.send_signal(number)
        return job is not None

    return harm


def damaged(pattern: str, damage: Callable[[Path], None], just_written: bool = True) -> Callable[[Run], bool]:
    """All is killed after a random validation, as by a power cut, and a file (that was just written) has suffered."""

    def harm(run: Run) -> bool:
        rounds = run.random.randint(2, VALIDATIONS - 2)
        fold = run.work_dir / run.random.choice(FOLDS)
        path = run.work_dir / pattern.format(fold=fold.name)
        if not run.until(lambda: _validations(fold) >= rounds and path.exists()):
            return False
        before = path.stat().st_mtime_ns if just_written and path.exists() else 0
        if not run.until(lambda: path.exists() and path.stat().st_mtime_ns != before):
            return False
        run.kill(signal.SIGKILL, with_jobs=True)
        damage(path)
        return True

    return harm


def _validations(fold: Path) -> int:
    with contextlib.suppress(OSError):
        return (fold / "metrics.jsonl").read_bytes().count(b'"mean_dice"')
    return 0


def torn(path: Path) -> None:
    """The last line loses its end."""
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content[: content.rfind(b"\n") + 1 + len(content.rsplit(b"\n", 1)[-1]) // 2])


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def happens_within(run: Run) -> bool:
    """What is armed in the bundle comes by itself."""
    return run.until(lambda: not list(run.work_dir.glob(f"*/{ARMED}")))


def filled(run: Run) -> bool:
    """The disk is full for eight seconds, from a random validation on."""
    fold, rounds = run.work_dir / run.random.choice(FOLDS), run.random.randint(1, VALIDATIONS - 2)
    if not run.until(lambda: _validations(fold) >= rounds):
        return False
    ballast = run.work_dir.parent / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while left := room(ballast.parent):
            file.write(bytes(min(2**20, left)))
    time.sleep(8.0)
    ballast.unlink()
    return True


@dataclass(frozen=True)
class Fault:
    """`times` it is injected; `armed`: what the network does by itself; `changes`: what metrics.jsonl must say."""

    name: str
    harm: Callable[[Run], bool]
    times: int = 1
    armed: str = ""
    changes: str = ""
    small_disk: bool = False


FAULTS = (
    Fault("kill -9 of the run", killed(signal.SIGKILL), 6),
    Fault("kill -9 of a job", job_signalled(signal.SIGKILL), 5),
    Fault("kill -9 of the run and its jobs", killed(signal.SIGKILL, with_jobs=True), 5),
    Fault("SIGTERM", killed(signal.SIGTERM), 2),
    Fault("SIGINT", killed(signal.SIGINT), 2),
    Fault("a job is stopped", job_signalled(signal.SIGSTOP), 2),
    Fault("metrics.jsonl torn", damaged("{fold}/metrics.jsonl", torn)),
    Fault("events.jsonl torn", damaged("events.jsonl", torn)),
    Fault("checkpoint.pt truncated", damaged("{fold}/models/checkpoint.pt", halved), 2),
    Fault("model.pt truncated", damaged("{fold}/models/model.pt", halved, just_written=False), 2),
    Fault("a job ends without outputs, exit code 0", happens_within, armed="exit"),
    Fault("a job hangs", happens_within, armed="hang"),
    Fault("out of memory at a step", happens_within, armed="memory", changes="memory ran out"),
    Fault("a loss that is not a number", happens_within, armed="nan", changes="the loss is nan"),
    Fault("the disk is full for a while", filled, small_disk=True),
)


# ---- the benchmark


@dataclass(frozen=True)
class Bench:
    """What all runs share. `planned`: a work_dir with its bundles, not trained; `reference`: the run left alone."""

    source: Path
    planned: Path
    reference: Path
    steps: int
    seconds: float  # of the whole reference
    step_seconds: float

    def tried(self, fault: Fault, work_dir: Path, rng: random.Random) -> tuple[str, float]:
        """(what is wrong, or the empty string; seconds of work lost)."""
        for _ in range(5):
            run = Run(work_dir, self.source, rng, self.steps, self.seconds)
            shutil.rmtree(work_dir, ignore_errors=True)
            if fault.armed:
                shutil.copytree(self.planned, work_dir)
                patches = rng.randrange(BATCH * self.steps // 10, BATCH * self.steps * 9 // 10)
                write_json(work_dir / rng.choice(FOLDS) / ARMED, {"kind": fault.armed, "patches": patches})
            run.start()
            injected = fault.harm(run)
            code, starts = run.end()
            if injected:
                break
        else:
            return "the fault could not be injected", 0.0
        wrong = [] if code == 0 or (code == 3 and fault.changes) else [f"exit code {code} after {starts} starts"]
        wrong += ["its jobs outlived it"] if run.outlived else []
        wrong += [] if wrong else self._changed(work_dir) if fault.changes else self._unequal(work_dir)
        if fault.changes and not any(fault.changes in path.read_text() for path in work_dir.glob("*/metrics.jsonl")):
            wrong.append(f"metrics.jsonl says nothing of '{fault.changes}'")
        return "; ".join(wrong), self.lost_steps(work_dir) * self.step_seconds

    def lost_steps(self, work_dir: Path) -> float:
        """Steps that the training which lost most did twice."""
        sizes = [path.stat().st_size for path in work_dir.glob(f"*/{COUNTED}")]
        return max([size / BATCH - self.steps for size in sizes], default=0.0)

    def _unequal(self, work_dir: Path) -> list[str]:
        """In what a result differs from the reference."""
        wrong = []
        for name in (f"{fold}/models/{file}" for fold in FOLDS for file in ("model.pt", "model_final.pt")):
            one, other = (torch.load(w / name, weights_only=True) for w in (work_dir, self.reference))
            if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in other):
                wrong.append(f"other weights in {name}")
        one, other = (_leaderboard(w) for w in (work_dir, self.reference))
        return wrong + (["another leaderboard"] if one != other else [])

    def _changed(self, work_dir: Path) -> list[str]:
        """What is wrong with a result that may differ."""
        states = {entry["algo"] + f"_{entry['fold']}": entry["status"] for entry in _leaderboard(work_dir)}
        weights = [torch.load(work_dir / fold / "models" / "model.pt", weights_only=True) for fold in FOLDS]
        whole = all(torch.isfinite(value).all() for state in weights for value in state.values())
        return ([] if set(states.values()) == {"done"} else [str(states)]) + ([] if whole else ["weights not finite"])


def _leaderboard(work_dir: Path) -> list[dict[str, Any]]:
    entries = read_json(work_dir / "leaderboard.json")["entries"]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def prepared(scratch: Path, steps: int) -> Bench:
    """Data, template and input file; the bundles; the run that is left alone."""
    datalist = make_demo_data(scratch / "data", training=6, testing=1, shape=(24, 24, 20))
    template = scratch / "templates" / "segresnet"
    shutil.copytree(available_templates()["segresnet"], template, ignore=shutil.ignore_patterns("__pycache__"))
    network = read_yaml(template / "configs" / "network.yaml")
    network["network_def"]["_target_"] = "faults.FaultyNet"
    write_yaml(template / "configs" / "network.yaml", network, versioned=False)
    tiny = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [16, 16, 16], "num_iterations": steps}
    tiny |= {"num_images_per_batch": BATCH}
    given = {"modality": "MRI", "datalist": str(datalist), "num_fold": 2, "algos": ["segresnet"], "settings": tiny}
    given |= {"templates_path_or_url": str(template.parent), "stuck_minutes": STUCK_MINUTES}
    source = scratch / "input.yaml"
    write_yaml(source, given, versioned=False)
    planned, reference = scratch / "planned", scratch / "reference"
    subprocess.run(
        [sys.executable, "-m", "autoseg", "generate", "--input", str(source), "--work_dir", str(planned)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    started = time.monotonic()
    run = Run(reference, source, random.Random(0), steps, 0.0)
    run.start()
    code, _ = run.end()
    if code != 0:
        sys.exit(f"the run that was left alone ended with exit code {code}: {source.parent / 'reference.log'}")
    took = time.monotonic() - started
    step = statistics.fmean(entry["seconds"] / steps for entry in read_json(reference / "leaderboard.json")["entries"])
    bench = Bench(source, planned, reference, steps, took, step)
    assert bench.lost_steps(reference) == 0, "the reference did steps twice"
    return bench


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 160 MiB at `folder`; False where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def main(seed: int = 4, quick: bool = False, only: str = "", steps: int = 90) -> None:
    """Inject every fault (`--quick`: each kind once; `--only`: those whose name holds a word) and print what came."""
    rng = random.Random(seed)
    wanted = [fault for fault in FAULTS if only in fault.name for _ in range(1 if quick else fault.times)]
    lost: list[float] = []
    survived = 0
    with tempfile.TemporaryDirectory(prefix="faults ") as folder:
        scratch = Path(folder)
        bench = prepared(scratch, steps)
        print(f"left alone: {bench.seconds:.0f} s, {1000 * bench.step_seconds:.0f} ms a step", flush=True)
        for number, fault in enumerate(wanted):
            disk = small_disk(scratch / f"disk {number}") if fault.small_disk else contextlib.nullcontext(True)
            with disk as there:
                if not there:
                    print(f"{fault.name}: skipped, no file system may be mounted here")
                    continue
                work_dir = (scratch / f"disk {number}" if fault.small_disk else scratch) / f"w{number}"
                wrong, seconds = bench.tried(fault, work_dir, rng)
                shutil.rmtree(work_dir, ignore_errors=True)
            lost.append(seconds)
            survived += not wrong
            print(f"{fault.name}: {wrong or 'survived'}, work lost {seconds:.1f} s", flush=True)
        interval = steps / VALIDATIONS * bench.step_seconds
    print(
        f"faults: {len(lost)} injected, {survived} survived, work lost: median {statistics.median(lost or [0]):.1f} s, "
        f"at most {max(lost, default=0):.1f} s (one validation interval: {interval:.1f} s)"
    )
    sys.exit(int(survived < len(lost)))


if __name__ == "__main__":
    fire.Fire(main)
