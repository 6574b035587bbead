"""The training loop: one for all families, 2D and 3D, on CPU and GPU. What varies is a setting or a hook."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from textwrap import shorten
from typing import Any, TypeVar

import torch
from monai.data import set_track_meta

from autoseg.bundles.marks import less_file
from autoseg.devices import torch_device
from autoseg.engine.astray import MOST_RETURNS, AstrayError, LossWatch
from autoseg.engine.budget import Budget, seconds_of
from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import ensure_cached, source_stamp
from autoseg.engine.checkpoints import (
    before,
    keep_before,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from autoseg.engine.journal import Journal
from autoseg.engine.memory import out_of_memory, with_less
from autoseg.engine.patches import PatchDataset, patch_loader
from autoseg.engine.precision import autocast_for, compute_dtype, training_precision
from autoseg.engine.progress import Progress
from autoseg.engine.ranks import Ranks
from autoseg.engine.recipe import build_average, build_loss, build_optimizer, clipped, group_rate, learning_rate, moved
from autoseg.engine.transfer import begin
from autoseg.engine.validation import validate_cached
from autoseg.errors import Fault, InputError, one_line

LOG_SECONDS = 2.0
RETURN_SEED = 1_000_003  # added to the seed of the patches at each return
Less = Callable[[Mapping[str, Any]], str | None]
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Hook:
    """Watches a training; override what is of interest. Hooks see the trainer and may set `trainer.stop`."""

    def on_step(self, trainer: Trainer, loss: float) -> None:
        """After every optimiser step."""

    def on_validation(self, trainer: Trainer, dice: dict[str, float], mean_dice: float) -> None:
        """After every validation."""


class Trainer:
    """Trains one bundle until its budget (see `Budget`) is spent; resumes where its checkpoint stands.

    Where the loss is not finite or explodes it goes back to the last checkpoint, with half the learning rate and other
    patches, `MOST_RETURNS` times; then `run` raises AstrayError. The seconds spent stay spent.

    Under torchrun every process trains on patches of its own, `num_images_per_batch` each (see `Ranks`); the first one
    decides, validates and writes. Where memory runs out there, the training ends, and the next try takes less.

    Files: models/model.pt (best averaged weights, or the last where there was no time to validate them: a flat state
    dict), models/model_final.pt (the last), models/checkpoint.pt (all that exact resumption needs), metrics.jsonl, ...
    """

    def __init__(self, bundle: Bundle, hooks: tuple[Hook, ...] = ()):
        self.bundle, self.settings, self.hooks = bundle, bundle.settings, hooks
        self.checkpoint, self.device = bundle.root / "models" / "checkpoint.pt", torch_device()
        self.ranks = Ranks.join(self.device)
        self.journal = Journal(bundle.root, kept=self.ranks.first)
        self.watch, self.stop, self._complaint = LossWatch(), False, ""
        torch.manual_seed(int(self.settings["seed"]))
        self.network, self.transfer = begin(bundle)
        self.network = self.network.to(self.device)
        last = torch.channels_last if int(self.settings["spatial_dims"]) == 2 else torch.channels_last_3d
        self.layout = last if self.settings["channels_last"] else torch.contiguous_format
        self.network = self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self._trained = self.ranks.wrap(self.network)
        torch.backends.cudnn.benchmark = True
        self.average = build_average(self.network, self.settings)
        self.optimizer = build_optimizer(self.network, self.settings, self.transfer.old)
        self.loss = build_loss(self.settings)
        self.precision = self._precision()
        half = compute_dtype(self.precision, self.device) is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        training, validation = bundle.cases()
        self.data = [[[case.id, source_stamp(case)] for case in part] for part in (training, validation)]
        workers = torch.get_num_threads()
        with self.ranks.first_alone():
            self.training = ensure_cached(bundle, training, workers)
            self.validation = ensure_cached(bundle, [c for c in validation if c.label], workers)
        self.batch = int(self.settings["num_images_per_batch"])
        self.steps_per_epoch = max(1, math.ceil(len(self.training) / (self.batch * self.ranks.world)))
        self.progress = Progress(epoch_steps=self.steps_per_epoch)
        self.budget = Budget(self.settings, self.steps_per_epoch, [case.label.shape for case in self.validation])
        if self.budget.endless:
            field = "num_iterations, num_epochs, max_seconds"
            raise InputError([Fault(str(bundle.root), field, "one of them must say how long to train")])

    def _precision(self) -> str:
        """The precision asked for, or one in which patches of this size can be trained."""
        patch = [int(self.settings["input_channels"]), *self.settings["roi_size"]]
        return training_precision(self.settings["precision"], self.device, self.network, patch)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of the network's passes."""
        return autocast_for(self.precision, self.device)

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._resumed

    def run(self) -> Progress:
        """Train until the budget is spent; returns where it ended. The last validation, if any, comes on top."""
        self._resumed = time.monotonic()
        self._resume()
        set_track_meta(False)
        try:
            with self.journal.open(self.progress.step):
                if self._complaint:
                    step = self.progress.step
                    self._warn(f"{self._complaint}: {f'back to step {step}' if step else 'trained anew'}")
                self._loop()
        finally:
            set_track_meta(True)
        self.progress.seconds = self._seconds()
        self._save_weights("model_final.pt")
        if self.ranks.first:
            before(self.checkpoint).unlink(missing_ok=True)
        if not self.progress.best_step:
            self._save_weights("model.pt")
            if not self.progress.history:  # resumed when its time was over: nothing was ever scored
                self.progress.keep_unscored()
        return self.progress

    def rehearse(self, seconds: float, most: int) -> list[float]:
        """Seconds of every step of a training that lasts `seconds` or `most` steps and leaves nothing but its weights.

        At least three steps are made.
        """
        set_track_meta(False)
        self._feed()
        took, started = list[float](), time.monotonic()
        while len(took) < 3 or (len(took) < most and time.monotonic() - started < seconds):
            before = time.monotonic()
            self._step()
            took.append(time.monotonic() - before)
        set_track_meta(True)
        return took

    def _loop(self) -> None:
        self._feed()
        self.progress.validations = self.budget.validations(self.progress, self._seconds())
        if self.ranks.first and self.budget.must_know_windows(self.progress, self._seconds()):
            took = self._with_less(lambda: seconds_of(lambda: self._scores(1)), self.progress.take_smaller_patch)
            self.progress.window_seconds = took / self.budget.windows(1)
        warmup = int(float(self.settings["num_warmup_epochs"]) * self.steps_per_epoch)
        logged, losses = time.monotonic(), []
        while True:
            share, stop = self.ranks.agreed(self.budget.share(self.progress, self._seconds()), self.stop)
            if stop or (share >= 1.0 and self.progress.validations):  # a late start, too, has an end
                break
            rate = learning_rate(self.settings, share, self.progress.step, warmup) * 0.5**self.progress.returns
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group_rate(self.settings, group, share)
            try:
                losses.append(self._step())
                self.watch.see(self.progress.step + 1, losses[-1])
            except AstrayError as error:
                self._go_back(error)
                losses = []
                continue
            self.progress.step += 1
            for hook in self.hooks:
                hook.on_step(self, losses[-1])
            (validate,) = self.ranks.agreed(self.stop or self.budget.validation_due(self.progress, self._seconds()))
            if not validate and time.monotonic() - logged < LOG_SECONDS:
                continue
            self.progress.loss = sum(losses) / len(losses)
            if validate:
                self._validate(rate)
            else:
                self._log({"learning_rate": rate})
            logged, losses = time.monotonic(), []

    def _feed(self) -> None:
        """Batches from the present step on, of patches as large as memory allows; after a return others than before."""
        if self.progress.patch:
            self.settings["roi_size"] = list(self.progress.patch)
            self.precision = self._precision()
        workers = self.settings["num_workers"]
        if workers is None:  # on a CPU the cores compute; beside a GPU they feed it
            workers = 0 if self.device.type == "cpu" else max(1, torch.get_num_threads() - 1)
        settings = {**self.settings, "seed": int(self.settings["seed"]) + RETURN_SEED * self.progress.returns}
        dataset = PatchDataset(self.training, settings, self.bundle.patch_transforms())
        self._batches: Iterator[dict[str, torch.Tensor]] = iter(
            patch_loader(dataset, self.batch, self.progress.step, int(workers), self.ranks.rank, self.ranks.world)
        )

    def _begin(self) -> None:
        """Fresh weights, average and optimiser: the start of a training."""
        torch.manual_seed(int(self.settings["seed"]))
        fresh, _ = begin(self.bundle)
        self.network.load_state_dict(fresh.state_dict())
        # of the fresh one, for a network that was at work may hold what cannot be copied (a DynUNet does)
        self.average = build_average(fresh.to(self.device, memory_format=self.layout), self.settings)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.network, self.settings, self.transfer.old)
        self.progress, self.watch = Progress(epoch_steps=self.steps_per_epoch), LossWatch()

    def _go_back(self, error: AstrayError) -> None:
        """To the last checkpoint, or to fresh weights; raises the error where that was done too often."""
        returns, seconds, before = self.progress.returns + 1, self._seconds(), self.progress
        if returns > MOST_RETURNS:
            raise error
        if not self._restore():
            self._begin()
            self.journal.forget_after(0)
        self.ranks.agreed(0.0)  # the checkpoint has been read by all
        self.progress.returns, self.progress.seconds, self._resumed = returns, seconds, time.monotonic()
        self.progress.go_on_as(before)
        self._feed()
        self.progress.validations = self.budget.validations(self.progress, seconds)
        self._save_checkpoint()
        where = f"back to step {self.progress.step}, with half the learning rate"
        self._warn(f"{error}: {where} ({returns} of {MOST_RETURNS} times)")

    def _with_less(self, work: Callable[[], T], less: Less) -> T:
        """What `work` gives; where memory runs out, with less at a time from then on.

        Where other processes are in the middle of the same step the error is raised, and the next try begins with less.
        """

        def take_less() -> str | None:
            said = less(self.settings)
            if said is None or self.ranks.world == 1:
                return said
            logger.error("memory ran out at step %d, the next try takes %s", self.progress.step + 1, said)
            self.progress.leave_less(less_file(self.bundle.root))
            return None

        def told(said: str) -> None:
            self._warn(f"memory ran out at step {self.progress.step + 1}: {said}")
            self._feed()

        return with_less(work, take_less, told)

    def _step(self) -> float:
        """One optimiser step, with as many and as large patches at a time as memory allows; returns the mean loss."""
        return self._with_less(lambda: self._optimise(next(self._batches)), self.progress.take_less)

    def _optimise(self, batch: dict[str, torch.Tensor]) -> float:
        """Gradients of the batch, summed over its parts, and the step that they ask for; returns the mean loss."""
        if not self.network.training:
            self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = [part.chunk(self.progress.parts) for part in (batch["image"], batch["label"])]
        total = 0.0
        for images, labels in zip(*parts, strict=True):
            image = images.to(self.device, non_blocking=True, memory_format=self.layout)
            label = labels.to(self.device, non_blocking=True)
            with self.autocast():
                outputs = self._trained(image)
            loss = self.loss(outputs, label) * (len(image) / len(batch["image"]))
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        norm = clipped(moved(self.optimizer), float(self.settings["gradient_clip"]))
        # one gradient that is not finite must not cost the weights
        if self.scaler.is_enabled() or math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update_parameters(self.network)
        else:
            logger.warning("step %d has no effect: its gradient is not finite", self.progress.step + 1)
        return self.ranks.mean(total)

    def _warn(self, message: str) -> None:
        """Say what the run's user should know: in the log, and by metrics.jsonl where the run listens."""
        logger.warning("%s", message)
        if self.journal.is_open:
            self._log({"warning": message})

    def _validate(self, rate: float) -> None:
        """Score the network, where that is worth its time, and leave a checkpoint."""
        seconds = self._seconds()
        last = self.budget.share(self.progress, seconds) >= 1.0 or self.stop
        self.progress.validations += 1
        if self.budget.scores(self.progress, seconds, last):
            self._score(rate)
        else:
            if last and (self.watch.calm or not self.progress.best_step):
                self.progress.keep_unscored()
                self._save_weights("model.pt")
            self._log({"learning_rate": rate, "checkpoint": self.watch.calm})
        if self.watch.calm:
            self._save_checkpoint()

    def _score(self, rate: float) -> None:
        dice, mean = dict[str, float](), math.nan
        if self.validation and self.ranks.first:
            started = time.monotonic()
            dice, mean = self._with_less(self._scores, self.progress.take_smaller_patch)
            self.progress.note_scoring(time.monotonic() - started)
        if mean > self.progress.best_mean_dice:
            self.progress.best_mean_dice, self.progress.best_step = mean, self.progress.step
            self._save_weights("model.pt")
        self._log({"learning_rate": rate, "mean_dice": mean, "dice": dice, "checkpoint": self.watch.calm})
        for hook in self.hooks:
            hook.on_validation(self, dice, mean)
        self.progress.note_validation(mean)
        self.journal.write_history(self.progress.history)
        logger.info("step %d: loss %.4f, mean Dice %.4f", self.progress.step, self.progress.loss, mean)

    def _scores(self, cases: int | None = None) -> tuple[dict[str, float], float]:
        network = self.average.module.eval()
        return validate_cached(network, self.validation[:cases], self.settings, self.device, self.autocast)

    def _log(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl and TensorBoard's scalars."""
        total = self.budget.total_seconds(self.progress, self._seconds())
        line = {
            "step": self.progress.step,
            "num_iterations": self.budget.steps,
            "epoch": self.progress.step // self.steps_per_epoch,
            "seconds": round(self._seconds(), 2),
            "max_seconds": None if total is None else round(total, 2),
            "loss": self.progress.loss,
            **values,
        }
        self.journal.write(line)

    def _save_weights(self, name: str) -> None:
        if not self.ranks.first:
            return
        state = {key: value.detach().cpu().contiguous() for key, value in self.average.module.state_dict().items()}
        save_checkpoint(self.bundle.root / "models" / name, state)

    def _save_checkpoint(self) -> None:
        if not self.ranks.first:
            return
        progress = {**vars(self.progress), "seconds": self._seconds()}
        state = {
            "progress": progress,
            "watch": vars(self.watch),
            "data": self.data,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
        }
        keep_before(self.checkpoint)
        save_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        restored = self._restore()
        self.progress.recall_less(less_file(self.bundle.root))
        if not restored:
            self.journal.forget_after(-1)
            return
        logger.info("resumed at step %d of %s", self.progress.step, self.budget.steps or "as many as time allows")

    def _restore(self) -> bool:
        """Take over the last checkpoint of these data that is whole; False where there is none."""
        for path in (self.checkpoint, before(self.checkpoint)):
            try:
                state = load_checkpoint(path)
                if state.get("data") != self.data:
                    self._complaint = "the data or the folds have changed since"
                    continue
                self._take_over(state)
                return True
            except FileNotFoundError:
                continue
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if out_of_memory(error):
                    raise
                self._complaint = f"cannot go on from {path.name}: {shorten(one_line(error), 200)}"
                self._begin()
        return False

    def _take_over(self, state: dict[str, Any]) -> None:
        self.progress, self.watch = Progress(**state["progress"]), LossWatch(**state["watch"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        if self.progress.best_step == self.progress.step > 0:
            self._save_weights("model.pt")
        elif self.progress.best_step:
            load_checkpoint(self.bundle.weights)  # the best weights so far: without them it is none to go on from
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        restore_random_states(state["random"])
        self.journal.forget_after(self.progress.step)  # what is written after it counts in its own steps
        by_epochs = bool(self.settings["num_epochs"]) and not self.settings["num_iterations"]
        self.progress.go_on_with(self.steps_per_epoch, by_epochs)
