"""SegResNet: how its hyper-parameters follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family

BLOCKS = [1, 2, 2, 4, 4]
TRAITS = FamilyTraits(
    # on a CPU what is quick learns more in the same time (benchmarks/ablations): small patches, one a step, few filters
    patch=PatchRule(levels=5, voxels_cpu=80_000, batch_cpu=1),
    filters_cpu=8,
    steps_cpu=4000,
    filters_gpu=32,
    bytes_per_voxel_and_filter=60.0,
    learning_rate_cpu=2e-3,
    learning_rate_gpu=5e-4,
    share=3.0,  # on head and neck its networks learned on, when those of the others had long been behind
)


class SegresnetAlgo(TemplateAlgo):
    """A residual encoder-decoder with deep supervision; the first family to try on any 3D data."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Levels as the patch can be halved (four on a CPU), anisotropic kernels where spacings differ twofold."""
        plan = plan_family(stats, machine, modes, TRAITS)
        assert plan.patch is not None
        levels = plan.patch.levels
        spacing = plan.settings["resample_to_spacing"]
        anisotropic = len(set(plan.patch.halvings)) > 1
        plan.set("init_filters", *TRAITS.width(machine))
        plan.set("blocks_down", BLOCKS[:levels], f"the patch can be halved {max(plan.patch.halvings)} times")
        plan.set("dsdepth", min(4, max(1, levels - 1)), "every level but the deepest is supervised")
        plan.set("resolution", spacing if anisotropic else None, "kernels stay flat until spacings are alike")
        return plan
