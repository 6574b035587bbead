"""MONAI without optional packages that no job of ours needs: loading them takes up to half of a process's start.

For processes of our own: whoever imports autoseg into theirs gets MONAI as it is. What MONAI makes of these packages
(its ignite handlers and engines, plots, UltrasoundConfidenceMap) says there that they are missing; they themselves can
be imported as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

UNUSED = ("ignite", "matplotlib", "scipy.signal")


def start_lean() -> None:
    """From now on, where MONAI has not been imported yet, it is imported as if the packages were not installed."""
    if "monai" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "monai":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Hides the packages while the module is loaded."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        modules: dict[str, Any] = sys.modules
        hidden = [name for name in UNUSED if name not in modules]
        modules.update(dict.fromkeys(hidden))  # None: an import raises ModuleNotFoundError
        try:
            self.inner.exec_module(module)
        finally:
            for name in hidden:
                modules.pop(name, None)
