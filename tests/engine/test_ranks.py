"""One training in two processes, by torchrun and gloo: what one process does with twice the batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import before, load_checkpoint
from autoseg.engine.patches import CountingSampler
from autoseg.engine.progress import Progress
from autoseg.execution.results import describe_failure, log_tail
from autoseg.pipeline.training import torchrun
from autoseg.workspace import read_json, read_yaml

MakeBundle = Callable[..., Path]
# of a Dice over the batch the mean of two halves is another number; cross-entropy is the mean of its halves'
SAME = {"dice_share": 0.0, "num_iterations": 6, "ema_decay": 0.5}


def start(root: Path, processes: int) -> subprocess.Popen[bytes]:
    command = torchrun(str(processes)) if processes > 1 else (sys.executable,)
    with open(root / "output.log", "wb") as log:
        return subprocess.Popen([*command, str(root / "scripts" / "train.py"), "run"], stdout=log, stderr=log)


def train(root: Path, processes: int) -> dict[str, torch.Tensor]:
    assert start(root, processes).wait() == 0, (root / "output.log").read_text()
    weights: dict[str, torch.Tensor] = torch.load(root / "models" / "model_final.pt", weights_only=True)
    return weights


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a)


def test_two_processes_train_what_one_does_with_twice_the_batch(make_bundle: MakeBundle) -> None:
    one = make_bundle(name="one_0", num_images_per_batch=2, **SAME)
    two = make_bundle(name="two_0", num_images_per_batch=1, **SAME)
    other = make_bundle(name="other_0", num_images_per_batch=1, **SAME)
    weights = train(two, 2)
    assert close(train(one, 1), weights)
    assert not close(train(other, 1), weights), "half the batch is another training"
    steps = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "one process writes"
    assert [entry["step"] for entry in read_yaml(two / "progress.yaml")] == steps
    scores = [read_json(root / "scores.json") for root in (one, two)]
    assert scores[0]["mean_dice"] == pytest.approx(scores[1]["mean_dice"], abs=0.02)
    assert scores[1]["steps"] == 6
    Bundle.load(two).trained_network()


def test_a_killed_training_leaves_no_process_and_goes_on(make_bundle: MakeBundle) -> None:
    whole = make_bundle(name="whole_0", num_images_per_batch=1, **{**SAME, "num_iterations": 40})
    torn = make_bundle(name="torn_0", num_images_per_batch=1, **{**SAME, "num_iterations": 40})
    process = start(torn, 2)
    while not (torn / "models" / "checkpoint.pt").exists():
        assert process.poll() is None, (torn / "output.log").read_text()
        time.sleep(0.05)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
    assert close(train(torn, 2), train(whole, 2))


def test_with_another_number_of_processes_a_training_by_epochs_sees_its_cases_as_often(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_images_per_batch=1, num_iterations=None, num_epochs=10, num_epochs_per_validation=1)
    process = start(root, 2)
    while not before(root / "models" / "checkpoint.pt").exists():  # after its second validation
        assert process.poll() is None, (root / "output.log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = root / "models" / "checkpoint.pt", before(root / "models" / "checkpoint.pt")
    last = next(path for path in files if path.exists())  # killed between the two, it has the older one alone
    epochs = load_checkpoint(last)["progress"]["step"] // 2
    train(root, 1)
    # of three cases an epoch has two steps in two processes, and three in one
    assert f"resumed at step {3 * epochs} of " in (root / "output.log").read_text()
    after = read_yaml(root / "progress.yaml")[-1]
    assert epochs >= 1 and (after["epoch"], after["step"]) == (10, 30)


def test_bad_input_keeps_its_exit_code_and_its_words(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_images_per_batch=1, **SAME)
    (root / "configs" / "hyper_parameters.yaml").write_text("- 1\n")
    process = start(root, 2)
    assert process.wait() == 2
    headline, _ = describe_failure(2, log_tail(root / "output.log"))
    assert "hyper_parameters.yaml" in headline and "does not hold keys and values" in headline, headline


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_is_killed_ends_all_and_says_so(make_bundle: MakeBundle, processes: int) -> None:
    root = make_bundle(num_images_per_batch=1, **{**SAME, "num_iterations": 4000})
    with open(root / "output.log", "wb") as log:
        script = [*torchrun(str(processes)), str(root / "scripts" / "train.py"), "run"]
        process = subprocess.Popen(script, stdout=log, stderr=log)
    while not (root / "metrics.jsonl").exists():
        assert process.poll() is None, (root / "output.log").read_text()
        time.sleep(0.05)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == processes
    ranks[-1].send_signal(signal.SIGKILL)
    code = process.wait()
    headline, _ = describe_failure(code, log_tail(root / "output.log"))
    assert code == -signal.SIGKILL and headline.startswith("killed by SIGKILL"), headline
    assert "was killed by signal 9" in (root / "output.log").read_text()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive


def test_only_the_first_process_goes_on_when_they_part(tmp_path: Path) -> None:
    """The others end at once: to free what they hold of one another may wait forever."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, torch\n"
        "from autoseg.engine.ranks import Ranks\n"
        "ranks = Ranks.join(torch.device('cpu'))\n"
        "ranks.mean(1.0)\n"
        "ranks.part()\n"
        f"pathlib.Path({str(tmp_path)!r}, f'went_on_{{ranks.rank}}').touch()\n"
    )
    assert subprocess.run([*torchrun("2"), str(script)], timeout=120).returncode == 0
    assert [path.name for path in tmp_path.glob("went_on_*")] == ["went_on_0"]


def test_a_checkpoint_that_does_not_know_its_epochs_is_taken_as_it_stands() -> None:
    progress = Progress(step=400, best_step=300)
    progress.go_on_with(8, by_epochs=True)
    assert (progress.step, progress.best_step, progress.epoch_steps) == (400, 300, 8)
    progress.go_on_with(4, by_epochs=True)
    assert (progress.step, progress.best_step) == (200, 150)
    progress.go_on_with(8, by_epochs=False)
    assert progress.step == 200


@pytest.mark.parametrize("step", [0, 3])
def test_processes_share_a_steps_patches(step: int) -> None:
    def first(sampler: CountingSampler, number: int) -> list[int]:
        return [index for index, _ in zip(sampler, range(number), strict=False)]

    whole = first(CountingSampler(4, step), 12)
    assert whole == list(range(4 * step, 4 * step + 12))
    parts = [first(CountingSampler(2, step, rank, 2), 6) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == whole and parts[0][:2] == whole[:2]
