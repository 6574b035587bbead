"""Autocast by name: which arithmetic a device computes in."""

from __future__ import annotations

import torch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision's name; float16 needs CUDA and is bfloat16 elsewhere, Metal computes in float32."""
    if device.type == "mps":
        return torch.float32
    return torch.bfloat16 if name == "float16" and device.type != "cuda" else DTYPES[name]


def autocast_for(name: str, device: torch.device) -> torch.autocast:
    """An autocast context for the precision on the device; does nothing for float32."""
    dtype = compute_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
