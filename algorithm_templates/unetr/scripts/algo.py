"""UNETR: how its hyper-parameters follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family

HEAD = 64  # channels of an attention head, as published
TRAITS = FamilyTraits(
    # cubes of 16 voxels: four halvings; few tokens on a CPU, 6^3 on a GPU
    PatchRule(5, fixed=True, voxels_cpu=48**3, voxels_gpu=96**3, smallest_batch=2, largest_batch=4),
    filters_cpu=8,
    filters_gpu=16,
    bytes_per_voxel_and_filter=100.0,
    learning_rate_cpu=1e-3,
    learning_rate_gpu=1e-4,
)


class UnetrAlgo(TemplateAlgo):
    """A transformer whose tokens are cubes of the patch."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Width by the device; the patch is never halved, for its tokens' positions are learned."""
        plan = plan_family(stats, machine, modes, TRAITS)
        heads, reason = (12, "as published") if machine.kind == "cuda" else (3, "a quarter: time")
        plan.set("feature_size", *TRAITS.width(machine))
        plan.set("num_heads", heads, reason)
        plan.set("hidden_size", HEAD * heads, f"{HEAD} a head")
        plan.set("roi_multiple", None, "positions are learned for this patch alone")
        plan.on_request = "only by name: it needs more data and time than others"
        return plan
