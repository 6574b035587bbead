"""Planning: statistics, device and budget in, hyper-parameters with their reasons out. Pure functions, no files."""

from autoseg.planning.normalization import normalize_modes
from autoseg.planning.patch import Patch, PatchRule, plan_patch
from autoseg.planning.plan import FamilyTraits, Plan, is_anisotropic, plan_family
from autoseg.planning.statistics import Machine, Statistics, read_statistics

__all__ = [
    "FamilyTraits",
    "Machine",
    "Patch",
    "PatchRule",
    "Plan",
    "Statistics",
    "is_anisotropic",
    "normalize_modes",
    "plan_family",
    "plan_patch",
    "read_statistics",
]
