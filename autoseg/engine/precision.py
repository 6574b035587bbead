"""Autocast by name: which arithmetic a device computes in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16: an x86 with AVX-512's instructions for it.

    Without them oneDNN converts every number there and back: a 3D convolution of 8 channels, forward and back, takes
    4.7 times as long as in float32 (an AMD EPYC with AVX2).
    """
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision's name. float16 needs CUDA and is bfloat16 on a CPU.

    float32 on Metal, and on a CPU that would be slower in bfloat16.
    """
    if device.type == "cuda":
        return DTYPES[name]
    return torch.bfloat16 if name != "float32" and device.type == "cpu" and has_bfloat16() else torch.float32


def autocast_for(name: str, device: torch.device) -> torch.autocast:
    """An autocast context for the precision on the device; does nothing for float32."""
    dtype = compute_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def training_precision(name: str, device: torch.device, network: torch.nn.Module, patch: Sequence[int]) -> str:
    """The precision to train with on patches [C, X, Y, Z]: float32 where bfloat16 gradients on a CPU would be wrong.

    oneDNN (3.12, on CPUs with bfloat16 instructions) leaves a part of the weights' gradient of a 3D convolution
    unwritten where its first axis has fewer voxels than the kernel, and more than one: such as two at the deepest level
    of Swin-UNETR. What stands there is whatever the memory held: large, not finite, or, worse, plausible.
    """
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)]
    if device.type != "cpu" or compute_dtype(name, device) is not torch.bfloat16 or not convolutions:
        return name
    short = []

    def watch(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        short.append(module.stride[0] == 1 and 1 < inputs[0].shape[2] < module.kernel_size[0])

    hooks = [module.register_forward_hook(watch) for module in convolutions]
    was_training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, *patch))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    if not any(short):
        return name
    logger.info("trained in float32: a level of two voxels along the first axis has no sound gradients in bfloat16")
    return "float32"
