"""autoseg: from labelled volumes and a datalist to an evaluated ensemble of segmentation networks.

`AutoRunner` is the one call from Python; `autoseg run` is the same from the shell. Importing this package loads
neither torch nor MONAI: they come with the first stage that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoseg._version import __version__

if TYPE_CHECKING:
    from autoseg.runner import AutoRunner

__all__ = ["AutoRunner", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "AutoRunner":
        from autoseg.runner import AutoRunner

        return AutoRunner
    raise AttributeError(f"module 'autoseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
