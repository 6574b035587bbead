"""MedNeXt: how its hyper-parameters follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family


def traits(machine: Machine) -> FamilyTraits:
    """Every level halves every axis; one level fewer on a CPU, whose patches are small."""
    levels = 5 if machine.kind == "cuda" else 4
    rule = PatchRule(levels, fixed=True, voxels_cpu=80_000, voxels_gpu=128**3)
    return FamilyTraits(rule, 16, 32, 120.0, learning_rate_cpu=2e-3, learning_rate_gpu=1e-3)


class MednextAlgo(TemplateAlgo):
    """ConvNeXt blocks in a U-Net."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """The published small variant on a GPU; narrower, with one block a level, on a CPU."""
        family = traits(machine)
        plan = plan_family(stats, machine, modes, family)
        blocks, reason = (2, "its small variant") if machine.kind == "cuda" else (1, "half: time")
        plan.set("init_filters", *family.width(machine))
        plan.set("blocks", [blocks] * (family.patch.levels - 1), reason)
        plan.on_request = "only by name: it has not been measured against the others"
        return plan
