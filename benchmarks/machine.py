"""What a benchmark ran on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from autoseg.devices import available_cores

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a CPU: those that decide how fast it computes


def machine() -> str:
    """The processor, as far as the system tells, how many cores may be used, and its INSTRUCTIONS."""
    info = Path("/proc/cpuinfo")
    told = info.read_text("utf-8") if info.is_file() else ""
    known = dict(re.findall(r"^(model name|flags)\s*: (.*)$", told, re.MULTILINE))
    flags = [name for name in INSTRUCTIONS if name in known.get("flags", "").split()]
    return ", ".join(
        [known.get("model name", platform.machine()), f"{available_cores()} cores", *[" ".join(flags)] * bool(flags)]
    )
