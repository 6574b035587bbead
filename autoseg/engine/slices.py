"""Networks of slices among volumes: they see the planes across the axis of [B, C, X, Y, Z] along which a patch is 1."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from autoseg.engine.memory import free_memory, out_of_memory

logger = logging.getLogger(__name__)


def slice_axis(settings: Mapping[str, Any]) -> int | None:
    """The axis (0 to 2) across which a 2D network's planes lie; None for a 3D network."""
    axis = settings.get("slice_axis")
    return None if axis is None else int(axis)


def run_network(network: torch.nn.Module, windows: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Logits [B, K, X, Y, Z] of windows [B, C, X, Y, Z]; the finest ones of a network with deep supervision.

    Windows whose answer does not fit into memory together are answered by halves.
    """
    try:
        outputs = network(windows if axis is None else windows.squeeze(2 + axis))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(windows) == 1:
            raise
    else:
        logits: torch.Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        return logits if axis is None else logits.unsqueeze(2 + axis)
    free_memory()  # out of the handler, whose frames hold tensors
    logger.warning("memory ran out with %d windows at a time: they are halved", len(windows))
    return torch.cat([run_network(network, half, axis) for half in windows.chunk(2)])
