"""Loss, optimiser, learning-rate schedule, moving average: the parts of a training, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceFocalLoss, DiceLoss
from torch.optim.swa_utils import AveragedModel

from autoseg.engine.classes import Classes

Loss = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
LOSSES = {"dice_ce": (DiceCELoss, "lambda_ce"), "dice_focal": (DiceFocalLoss, "lambda_focal")}


class DiceBCELoss(torch.nn.Module):
    """Dice plus binary cross-entropy of independent outputs; MONAI's DiceCELoss takes several for exclusive classes."""

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 1.0) -> None:
        super().__init__()
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce
        self.dice = DiceLoss(sigmoid=True, batch=True)
        self.cross_entropy = torch.nn.BCEWithLogitsLoss()

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits and masks, [B, R, ...] both."""
        dice, entropy = self.dice(logits, target), self.cross_entropy(logits, target)
        loss: torch.Tensor = self.lambda_dice * dice + self.lambda_ce * entropy
        return loss


def build_loss(settings: Mapping[str, Any]) -> Loss:
    """Dice over the batch plus cross-entropy or focal loss, halved in weight at each supervised level.

    `dice_share` (0 to 1) is the weight of Dice; at 0.5 the two are added as they are.
    Called with logits [B, K, ...] by level (or one tensor; or one of all levels, [B, levels, K, ...]) and label indices
    [B, 1, ...].
    """
    classes = Classes.of(settings)
    share = float(settings["dice_share"])
    kind, other = LOSSES[settings["loss"]]
    weights = {"lambda_dice": 2 * share, other: 2 * (1 - share)}
    if not classes.regions:
        base = kind(softmax=True, to_onehot_y=True, include_background=False, batch=True, **weights)
    elif settings["loss"] == "dice_ce":
        base = DiceBCELoss(**weights)
    else:
        base = DiceFocalLoss(sigmoid=True, batch=True, **weights)
    supervised = DeepSupervisionLoss(base)

    def loss(outputs: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        if isinstance(outputs, torch.Tensor) and outputs.ndim > label.ndim:
            outputs = outputs.unbind(1)  # a DynUNet stacks its levels, all of the finest one's size
        levels = [level.float() for level in outputs] if isinstance(outputs, (list, tuple)) else outputs.float()
        value: torch.Tensor = supervised(levels, classes.target(label))
        return value

    return loss


def build_optimizer(
    network: torch.nn.Module, settings: Mapping[str, Any], old: Collection[str] = ()
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, of what is not frozen; the parameters named `old` are a group of their own.

    Its entry "pretrained" says which one that is, and "waits" that there are others to begin with; see `group_rate`.
    """
    rate, decay = float(settings["learning_rate"]), float(settings["weight_decay"])
    trained = [(name in old, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    parted = {is_old: [parameter for other, parameter in trained if other == is_old] for is_old in (False, True)}
    both = all(parted.values())
    groups = [
        {"params": found, "pretrained": is_old, "waits": is_old and both} for is_old, found in parted.items() if found
    ]
    if settings["optimizer"] == "sgd":
        momentum = float(settings["momentum"])
        # not fused: of a first step that is skipped, in half precision, its momentum would keep what memory held
        return torch.optim.SGD(groups, rate, momentum=momentum, weight_decay=decay, nesterov=True)
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)  # half the time, on a CPU too
    optimizer.register_load_state_dict_post_hook(_fuse)
    return optimizer


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """A state that was saved by an optimiser that was not fused makes none of this one."""
    for group in optimizer.param_groups:
        group["fused"] = True


def group_rate(settings: Mapping[str, Any], group: Mapping[str, Any], share: float) -> float:
    """What the learning rate is multiplied by, at `share` (0-1) of the budget, for a group of `build_optimizer`."""
    if group.get("waits") and share < float(settings["head_warmup"]):
        return 0.0
    return float(settings["pretrained_rate"]) if group.get("pretrained") else 1.0


def moved(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The parameters that a step moves; those of groups that wait, at a rate of 0, lose their gradients."""
    found: list[torch.nn.Parameter] = []
    for group in optimizer.param_groups:
        if group["lr"] > 0:
            found += group["params"]
            continue
        for parameter in group["params"]:
            parameter.grad = None
    return found


def clipped(parameters: Sequence[torch.nn.Parameter], most: float) -> float:
    """The norm of all gradients together, which are scaled down to `most` where it is larger."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if float(norm) > most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


LONGEST_WARMUP = 0.05  # of the budget
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "polynomial": lambda share: (1 - share) ** 0.9,  # nnU-Net's exponent
    "constant": lambda share: 1.0,
}


def learning_rate(settings: Mapping[str, Any], share: float, step: int, warmup_steps: int) -> float:
    """The rate at `share` (0-1) of the budget spent; grows linearly over `warmup_steps`, a twentieth at most."""
    warmup = min(1.0, max((step + 1) / max(1, warmup_steps), share / LONGEST_WARMUP))
    floor = 1e-3  # never quite zero: the last steps still settle
    factor = max(floor, SCHEDULES[settings["lr_schedule"]](min(1.0, share)))
    return float(settings["learning_rate"]) * warmup * factor


def build_average(network: torch.nn.Module, settings: Mapping[str, Any]) -> AveragedModel:
    """Exponential moving average of the weights, with decay min(ema_decay, (1 + n) / (10 + n)) at update n.

    The first weights, which know nothing, are so forgotten soon (as in TensorFlow's ExponentialMovingAverage).
    """
    return _Average(network, float(settings["ema_decay"]))


class _Average(AveragedModel):
    """torch's, but that it does not look for the parameters anew at every step, which takes as long as the average."""

    def __init__(self, network: torch.nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay
        self._pairs: tuple[torch.nn.Module, list[torch.Tensor], list[torch.Tensor]] | None = None

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """Take the weights of `model` in, the first ones as they are; buffers are copied."""
        if self._pairs is None or self._pairs[0] is not model:
            self._pairs = model, [*self.module.parameters()], [p.detach() for p in model.parameters()]
        n = int(self.n_averaged)
        weight = 1.0 if n == 0 else 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self._pairs[1], self._pairs[2], weight)
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
        self.n_averaged += 1
