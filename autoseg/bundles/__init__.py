"""Bundles: find templates, write bundles from them, read them back; the bridge to MONAI's BundleAlgo.

Finding templates needs no torch; `TemplateAlgo` and `load_algo` do, and are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoseg.bundles.templates import available_templates, find_templates, template_settings

if TYPE_CHECKING:
    from autoseg.bundles.algo import TemplateAlgo, load_algo

__all__ = ["TemplateAlgo", "available_templates", "find_templates", "load_algo", "template_settings"]


def __getattr__(name: str) -> Any:
    if name in ("TemplateAlgo", "load_algo"):
        from autoseg.bundles import algo

        return getattr(algo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
