"""DiNTS, its architecture fixed or searched for: how its hyper-parameters follow from the data and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, Machine, PatchRule, Plan, Statistics, plan_family
from autoseg.planning.topology import Lattice

CONVOLUTION = 1  # of MONAI's cell operations: 0 skips, 1 is a 3x3x3 convolution


def traits(machine: Machine) -> FamilyTraits:
    """One resolution fewer on a CPU, whose patches are small. `filters` are hundredths of the width of the paper."""
    depths = 4 if machine.kind == "cuda" else 3
    rule = PatchRule(levels=1 + depths, fixed=True, voxels_gpu=128**3)
    return FamilyTraits(rule, 50, 100, 40.0, learning_rate_cpu=2e-3, learning_rate_gpu=5e-4)


def lattice(blocks: int, depths: int) -> list[list[int]]:
    """Which edges are used, [blocks, 3 * depths - 2], in MONAI's order: by node they lead to, from finer to coarser.

    Every resolution is kept throughout; the first half of the blocks also passes features down, the second half up.
    """
    edges = Lattice.of(blocks, depths)
    down = [int(start <= end) for start, end in zip(edges.starts, edges.ends, strict=True)]
    up = [int(start >= end) for start, end in zip(edges.starts, edges.ends, strict=True)]
    return [down if block < blocks // 2 else up for block in range(blocks)]


class DintsAlgo(TemplateAlgo):
    """Parallel paths at several resolutions that exchange features from block to block."""

    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Blocks, resolutions and width by the device."""
        family = traits(machine)
        plan = plan_family(stats, machine, modes, family)
        if machine.kind != "cuda":
            plan.spare = "without CUDA SegResNet learns more in the same time, and the two together are no better"
        depths, blocks = family.patch.levels - 1, 12 if machine.kind == "cuda" else 6
        width, reason = family.width(machine)
        plan.set("channel_mul", width / 100, reason)
        plan.set("num_depths", depths, "resolutions of one half and below")
        plan.set("num_blocks", blocks, f"for a {machine.kind}")
        plan.set("arch_code_a", lattice(blocks, depths), "fixed: down in the first half, up in the second")
        plan.set("arch_code_c", [[CONVOLUTION] * (3 * depths - 2)] * blocks, "fixed: convolutions")
        plan.set("node_a", [[1] * depths] * (blocks + 1), "fixed: every resolution takes part throughout")
        steps, rate = (8000, 0.008) if machine.kind == "cuda" else (400, 0.03)
        plan.set("search_iterations", steps, f"where the architecture is searched for, on a {machine.kind}")
        plan.set("search_share", 0.3, "of the time, where it is limited")
        plan.set("search_rate", rate, "by the number of steps")
        return plan
