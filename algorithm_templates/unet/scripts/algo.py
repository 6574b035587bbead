"""U-Net: how its kernels, strides and widths follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family

WIDEST = 320  # channels (nnU-Net)
FEWEST = 3  # levels of a DynUNet
TRAITS = FamilyTraits(
    patch=PatchRule(levels=6, voxels_cpu=80_000, voxels_gpu=128**3),
    filters_cpu=16,
    filters_gpu=32,
    bytes_per_voxel_and_filter=50.0,
    learning_rate_cpu=2e-3,
    learning_rate_gpu=1e-2,
)


class UnetAlgo(TemplateAlgo):
    """nnU-Net's network: plain or residual convolutions, as deep as the patch can be halved."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Flat kernels and strides along a coarse axis until the finer ones have caught up; widths double by level."""
        plan = plan_family(stats, machine, modes, TRAITS)
        assert plan.patch is not None
        halvings, steps = plan.patch.halvings, plan.patch.levels - 1
        halved = [[level > steps - n for n in halvings] for level in range(1, steps + 1)]
        strides = [[1, 1, 1], *([1 + one for one in axes] for axes in halved)]
        kernels = [[3 if level >= steps - n else 1 for n in halvings] for level in range(steps + 1)]
        missing = max(0, FEWEST - len(strides))
        width, reason = TRAITS.width(machine)
        filters = [min(WIDEST, width * 2**level) for level in range(len(strides) + missing)]
        plan.set("strides", [*strides, *[[1, 1, 1]] * missing], f"the patch can be halved {max(halvings)} times")
        plan.set("kernel_size", [*kernels, *[[3, 3, 3]] * missing], "flat until spacings are alike")
        plan.set("filters", filters, f"{width}, doubled by level up to {WIDEST}; {reason}")
        plan.set("supervised", max(1, len(filters) - 3), "every level but the two deepest")
        if machine.kind == "cuda":
            plan.set("optimizer", "sgd", "a long schedule (nnU-Net)")
            plan.set("learning_rate", TRAITS.learning_rate_gpu, "nnU-Net's, of SGD")
            plan.set("lr_schedule", "polynomial", "nnU-Net's")
            plan.set("weight_decay", 3e-5, "nnU-Net's")
        plan.on_request = "only by name: of its kind SegResNet goes first"
        return plan
