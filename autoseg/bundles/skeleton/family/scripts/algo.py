"""How the family's hyper-parameters follow from the data and the machine."""

from autoseg.bundles import TemplateAlgo
from autoseg.planning import FamilyTraits, PatchRule, plan_family

# three halvings of every axis; 8 filters on a CPU, 32 on a GPU; bytes of activations a patch voxel and filter; rates
TRAITS = FamilyTraits(PatchRule(levels=4, fixed=True), 8, 32, 60.0, learning_rate_cpu=2e-3, learning_rate_gpu=5e-4)


class FamilyAlgo(TemplateAlgo):
    """Its hyper-parameters by data and machine."""

    def plan(self, stats, machine, modes):
        """All that families share, then what is this one's own, each value with its reason."""
        plan = plan_family(stats, machine, modes, TRAITS)
        width, reason = TRAITS.width(machine)
        plan.set("channels", [width * 2**level for level in range(TRAITS.patch.levels)], reason)
        return plan
