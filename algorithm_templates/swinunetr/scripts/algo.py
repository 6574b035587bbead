"""Swin-UNETR: how its hyper-parameters follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family

STRIDE = 32  # patches of two voxels, merged four times
TRAITS = FamilyTraits(
    # one patch of 64^3 on a CPU: the windows of the deepest level then hold more than one token
    PatchRule(6, fixed=True, voxels_cpu=64**3, voxels_gpu=128**3, smallest_batch=1, largest_batch=8),
    filters_cpu=12,  # a multiple of 12: heads of 3, 6, 12 and 24, and their patches' merging
    filters_gpu=48,
    bytes_per_voxel_and_filter=90.0,
    learning_rate_cpu=1.5e-3,
    learning_rate_gpu=4e-4,
)


class SwinunetrAlgo(TemplateAlgo):
    """A transformer of shifted windows as encoder, convolutions as decoder; wants memory and a long schedule."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Width and depth by the device. Left out where an axis is far shorter than a patch, and on CPUs."""
        plan = plan_family(stats, machine, modes, TRAITS)
        cuda = machine.kind == "cuda"
        shortest = min(stats.cropped_shape_median)
        if not cuda:
            plan.spare = "a transformer learns too little in the short schedule of a CPU"
        if shortest < STRIDE / 2:
            plan.skip = plan.skip or f"{shortest:.0f} voxels along an axis, where patches have {STRIDE} at least"
        plan.set("feature_size", *TRAITS.width(machine))
        plan.set("depths", [2, 2, 2, 2] if cuda else [1, 1, 1, 1], "as published" if cuda else "half: time")
        plan.set("attention_window", 7, "as published, and in encoders pretrained without labels")
        plan.set("use_checkpoint", cuda, "activations are computed twice to fit the memory" if cuda else "time")
        return plan
