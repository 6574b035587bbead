"""SegResNet2D: a network of slices, for images of 2D and for volumes whose slices lie far apart."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, is_anisotropic, plan_family

RULE = PatchRule(levels=6, voxels_cpu=192 * 192, voxels_gpu=384 * 384, smallest_batch=8, largest_batch=32)
TRAITS = FamilyTraits(RULE, 16, 32, 50.0, learning_rate_cpu=3e-3, learning_rate_gpu=5e-4, spatial_dims=2)


class Segresnet2dAlgo(TemplateAlgo):
    """SegResNet on the planes across the coarsest axis."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Patches of one plane, many a step. Left out where volumes are near isotropic: 3D context is worth more."""
        plan = plan_family(stats, machine, modes, TRAITS)
        if stats.image_dims == 3 and not is_anisotropic(stats):
            ratio = max(stats.spacing_median) / min(stats.spacing_median)
            plan.skip = f"slices suit anisotropic volumes; here the coarsest axis is {ratio:.2g} times the finest"
        assert plan.patch is not None
        depth = plan.patch.levels
        plan.set("init_filters", *TRAITS.width(machine))
        plan.set("blocks_down", [1, 2, 2, 4, 4, 4][:depth], f"{depth} levels within the plane")
        plan.set("dsdepth", max(1, depth - 2), "the two deepest levels see too little to be supervised")
        return plan
