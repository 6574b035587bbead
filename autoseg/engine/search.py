"""The search of DiNTS' architecture (He et al., CVPR 2021): weights on one half of the training cases, edges and
operations on the other, in turn; then the likeliest architecture that memory allows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from monai.data import set_track_meta

from autoseg.bundles.marks import PICTURE, SEARCH_LINES, SEARCH_STATE, architecture_file
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import ensure_cached, source_stamp
from autoseg.engine.checkpoints import (
    forget_after,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from autoseg.engine.journal import write_line
from autoseg.engine.memory import with_less
from autoseg.engine.patches import PatchDataset, patch_loader
from autoseg.engine.precision import autocast_for, training_precision
from autoseg.engine.progress import in_voxels
from autoseg.engine.recipe import build_loss, clipped, learning_rate
from autoseg.errors import Faults
from autoseg.planning.budget import search_faults
from autoseg.planning.patch import halved_patch
from autoseg.planning.topology import Lattice, decode, described, picture
from autoseg.workspace import atomic_file, patiently, write_json

WEIGHTS_FIRST = 0.2  # of the budget, in which the weights alone learn
TOPOLOGY = 0.001  # the weight of what asks that a block starts where the one before it ends (He et al.)
KEPT_SECONDS = 60.0  # between two checkpoints
LOG_SECONDS = 2.0
LIMITS = ("search_iterations", "search_seconds", "max_seconds", "num_epochs", "num_iterations", "deadline")
HALF_SEED = 2_000_003  # added to the seed of the second half's patches
logger = logging.getLogger(__name__)


class ArchitectureSearch:
    """Searches for one bundle, whose `configs/network.yaml` describes the space as `search_def`.

    `run` writes architecture.json, which `Bundle.load` puts over the hyper-parameters, and a picture of it,
    docs/architecture.svg. It goes on where models/search.pt stands, if that is of the same cases and settings. Bounded
    by `search_seconds` or `search_iterations`, whichever comes first.
    """

    def __init__(self, bundle: Bundle):
        self.bundle, self.settings = bundle, bundle.settings
        cases, _ = bundle.cases()
        faults = Faults()
        if len(cases) < 2:
            faults.add(bundle.root, "search", "takes two training cases, one for each half")
        for key, message in search_faults({**self.settings, "search": True}, limited=False):
            faults.add(bundle.root, key, message)
        faults.raise_if_any()
        self.device = torch_device()
        torch.manual_seed(int(self.settings["seed"]))
        self.network: Any = bundle.content("network.yaml", "search_def").to(self.device)
        self.space = self.network.dints_space
        self.space.device = self.device
        self.choices = [self.space.log_alpha_a, self.space.log_alpha_c]
        own = {id(parameter) for parameter in self.choices}
        self.weights = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        self.optimizer = torch.optim.AdamW(self.weights, float(self.settings["learning_rate"]))
        self.chooser = torch.optim.Adam(self.choices, float(self.settings["search_rate"]), betas=(0.5, 0.999))
        self.loss = build_loss(self.settings)
        order = np.random.default_rng(int(self.settings["seed"])).permutation(len(cases))
        self.halves = [[cases[i] for i in sorted(order[half::2])] for half in (0, 1)]
        self.origin = {key: value for key, value in self.settings.items() if key not in LIMITS}
        self.origin["cases"] = [[[case.id, source_stamp(case)] for case in half] for half in self.halves]
        self.memory, self.budget = self._memory()
        self.step, self.seconds, self.used = 0, 0.0, math.nan
        self._second: Iterator[dict[str, torch.Tensor]] | None = None
        self.checkpoint, self.progress = bundle.root / SEARCH_STATE, bundle.root / SEARCH_LINES

    def _memory(self) -> tuple[torch.Tensor, float]:
        """(what each edge's output takes by operation [blocks, edges, operations], in voxels of the finest
        resolution times channels; the most that all may take: a multiple of the fixed architecture).
        """
        space = self.space
        size = [space.filter_nums[depth] / 8.0**depth for depth in range(space.num_depths)]
        ends = [size[depth] for depth in space.arch_code2out]
        memory = (1 + torch.as_tensor(space.ram_cost, dtype=torch.float32)) * torch.tensor(ends)[None, :, None]
        edges = torch.tensor(self.settings["arch_code_a"], dtype=torch.int64)
        kinds = torch.tensor(self.settings["arch_code_c"], dtype=torch.int64)
        fixed = float((memory.gather(2, kinds[..., None])[..., 0] * edges).sum())
        return memory.to(self.device), float(self.settings["search_memory"]) * fixed

    @property
    def share(self) -> float:
        """Of the budget that is spent, 0 to 1."""
        limits = self.settings["search_iterations"], self.settings["search_seconds"]
        spent = [done / float(limit) for done, limit in zip((self.step, self._spent()), limits, strict=True) if limit]
        return min(1.0, max(spent, default=1.0))

    def _spent(self) -> float:
        return self.seconds + time.monotonic() - self._resumed

    def run(self) -> dict[str, Any]:
        """Search, decode, write; returns what architecture.json holds."""
        self._resumed = time.monotonic()
        self._resume()
        set_track_meta(False)
        try:
            self._loop()
        finally:
            set_track_meta(True)
        found = self._found()
        drawing = picture(found["arch_code_a"], found["arch_code_c"], found["node_a"])
        with atomic_file(self.bundle.root / PICTURE) as file:
            file.write(drawing)
        patiently(lambda: write_json(architecture_file(self.bundle.root), found), self.checkpoint)
        self.checkpoint.unlink(missing_ok=True)
        logger.info("architecture after %d steps: %s", self.step, described(found))
        return found

    def _loop(self) -> None:
        self._feed()
        kept = logged = time.monotonic()
        while self.share < 1.0:
            rate = learning_rate(self.settings, self.share, self.step, 0)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = with_less(self._advance, self._take_less, self._go_on_with_less)
            self.step += 1
            if time.monotonic() - logged > LOG_SECONDS or self.share >= 1.0:
                logged = time.monotonic()
                self._log(loss)
            if time.monotonic() - kept > KEPT_SECONDS:
                kept = time.monotonic()
                self._keep()

    def _advance(self) -> float:
        """A step of the weights and, when they have learned a little, one of the choices; returns the weights' loss."""
        loss = self._learn(next(self._first))
        if self.share > WEIGHTS_FIRST:
            self._second = self._second or self._batches(1)
            self._choose(next(self._second))
        return loss

    def _take_less(self) -> str | None:
        """Half as many patches or, of a single one, a smaller one. What to say; None where neither can be."""
        batch = int(self.settings["num_images_per_batch"])
        if batch > 1:
            self.settings["num_images_per_batch"] = batch // 2
            return f"{batch // 2} of {batch} patches a step"
        smaller = halved_patch(self.settings)
        if smaller is None:
            return None
        self.settings["roi_size"] = smaller
        return f"patches of {in_voxels(smaller)} voxels"

    def _go_on_with_less(self, said: str) -> None:
        logger.warning("memory ran out at step %d of the search: %s", self.step + 1, said)
        self._feed()

    def _feed(self) -> None:
        """Batches of both halves from the present step on, as large as memory allows, and the precision for them."""
        patch = [int(self.settings["input_channels"]), *self.settings["roi_size"]]
        planned = self.settings["precision"]  # gradients are not scaled here: float16 would lose the small ones
        precision = "bfloat16" if planned == "float16" else planned
        self.precision = training_precision(precision, self.device, self.network, patch)
        self._first = self._batches(0)
        self._second = None  # from the step on that needs it

    def _batches(self, half: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of a half of the cases, from the present step on."""
        workers = torch.get_num_threads()
        settings = {**self.settings, "seed": int(self.settings["seed"]) + HALF_SEED * half}
        cached = ensure_cached(self.bundle, self.halves[half], workers)
        dataset = PatchDataset(cached, settings, self.bundle.patch_transforms())
        beside = 0 if self.device.type == "cpu" else max(1, workers - 1)
        return iter(patch_loader(dataset, int(self.settings["num_images_per_batch"]), self.step, beside))

    def _segment(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch in the architecture as it is mixed now."""
        with autocast_for(self.precision, self.device):
            outputs = self.network(batch["image"].to(self.device))
        loss: torch.Tensor = self.loss(outputs, batch["label"].to(self.device))
        return loss

    def _learn(self, batch: dict[str, torch.Tensor]) -> float:
        """A step of the weights; one without a finite gradient has no effect."""
        self.network.train()
        loss = self._segment(batch)
        self._move(self.optimizer, self.weights, loss)
        return float(loss.detach())

    def _choose(self, batch: dict[str, torch.Tensor]) -> None:
        """A step of edges and operations, which are drawn into the budget and, ever more strongly, to yes or no."""
        ramp = (self.share - WEIGHTS_FIRST) / (1 - WEIGHTS_FIRST)
        children, edges = self.space.get_prob_a(child=True)
        kinds = self.space.log_alpha_c.softmax(-1)
        undecided = _entropy(edges.clamp(0, 1)) + _entropy((1 - edges).clamp(0, 1)) + _entropy(kinds).sum(-1)
        used = (edges[..., None] * kinds * self.memory).sum() / self.budget
        self.used = float(used.detach())
        loss = self._segment(batch) + torch.relu(used - 1)
        loss = loss + ramp * (undecided.mean() + TOPOLOGY * self.space.get_topology_entropy(children))
        self._move(self.chooser, self.choices, loss)

    def _move(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if math.isfinite(clipped(parameters, float(self.settings["gradient_clip"]))):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _found(self) -> dict[str, Any]:
        """The architecture in MONAI's codes, and what it takes of the fixed one's memory."""
        with torch.no_grad():
            probabilities = self.space.log_alpha_a.sigmoid().double().cpu().numpy()
            kinds = self.space.log_alpha_c.argmax(-1)
            memory = self.memory.gather(2, kinds[..., None])[..., 0].double().cpu().numpy()
        lattice = Lattice.of(self.space.num_blocks, self.space.num_depths)
        edges = decode(lattice, probabilities, memory, self.budget)
        fixed = self.budget / float(self.settings["search_memory"])
        return {
            "arch_code_a": edges.tolist(),
            "arch_code_c": kinds.tolist(),
            "node_a": lattice.nodes(edges).tolist(),
            "memory": round(float((edges * memory).sum()) / fixed, 4),
            "steps": self.step,
            "seconds": round(self._spent(), 1),
        }

    def _log(self, loss: float) -> None:
        """A line of search.jsonl, in the words of metrics.jsonl."""
        line = {"step": self.step, "num_iterations": self.settings["search_iterations"], "loss": loss}
        line |= {
            "seconds": round(self._spent(), 2),
            "max_seconds": self.settings["search_seconds"],
            "memory": self.used,
        }
        write_line(self.progress, line)

    def _keep(self) -> None:
        state = {"origin": self.origin, "step": self.step, "seconds": self._spent(), "random": random_states()}
        state["less"] = {key: self.settings[key] for key in ("num_images_per_batch", "roi_size")}
        parts = {"network": self.network, "optimizer": self.optimizer, "chooser": self.chooser}
        save_checkpoint(self.checkpoint, {**state, **{name: part.state_dict() for name, part in parts.items()}})

    def _resume(self) -> None:
        try:
            state = load_checkpoint(self.checkpoint)
            if state["origin"] != self.origin:
                raise ValueError("of other cases or settings")
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.chooser.load_state_dict(state["chooser"])
            restore_random_states(state["random"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.settings |= state["less"]
            forget_after(self.progress, self.step)
            logger.info("the search goes on at step %d", self.step)
            return
        except FileNotFoundError:
            pass
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            logger.warning("the search begins anew: %s: %s", self.checkpoint.name, error)
        forget_after(self.progress, -1)


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -probabilities * torch.log(probabilities + 1e-5)
