"""Autocast by name: which arithmetic a device computes in."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16: an x86 with AVX-512's instructions for it.

    Without them oneDNN converts every number there and back: a step of SegResNetDS takes 7.6 times as long as in
    float32 (an AMD EPYC with AVX2; benchmarks/convolution.py).
    """
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision's name. float16 needs CUDA and is bfloat16 on a CPU.

    float32 on Metal, and on a CPU that would be slower in bfloat16.
    """
    if device.type == "cuda":
        return DTYPES[name]
    return torch.bfloat16 if name != "float32" and device.type == "cpu" and has_bfloat16() else torch.float32


class OneDnnConvolutions(TorchFunctionMode):
    """Within it, oneDNN computes 3D convolutions of one patch, in float32 on a CPU.

    Torch leaves those of one patch and few channels to a loop of its own: it asks for channels x planes x rows above
    20480, whatever the length of a row. One of 8 channels at 32x48x32, forward and back, takes 0.29 of its time here, a
    step of SegResNetDS 0.38 (benchmarks/convolution.py), and the numbers are the same up to rounding.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv3d and not kwargs and _left_to_a_loop(*args):
            return func(args[0].to_mkldnn(), *args[1:]).to_dense()
        return func(*args, **(kwargs or {}))


def _left_to_a_loop(patches: torch.Tensor, weight: torch.Tensor, *others: Any) -> bool:
    """Whether torch keeps a convolution from oneDNN that could take it; kernels of one voxel it multiplies faster."""
    if type(patches) is not torch.Tensor or patches.ndim != 5 or patches.layout is not torch.strided:
        return False
    small = len(patches) == 1 and math.prod(patches.shape[1:4]) <= 20480 and math.prod(weight.shape[2:]) > 1
    known = patches.dtype is weight.dtype is torch.float32 and not any(isinstance(word, str) for word in others)
    onednn = torch.backends.mkldnn
    return small and known and onednn.is_available() and bool(getattr(onednn, "enabled", True))


def autocast_for(name: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context to compute in with the precision on the device: autocast, or for float32 what computes it fastest."""
    dtype = compute_dtype(name, device)
    if dtype is not torch.float32:
        return torch.autocast(device.type, dtype)
    return OneDnnConvolutions() if device.type == "cpu" else contextlib.nullcontext()


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
