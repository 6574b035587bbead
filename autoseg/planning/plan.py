"""The recipe that all families share: from statistics and machine to hyper-parameters, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoseg.planning.normalization import normalize_modes
from autoseg.planning.patch import Patch, plan_patch, resample_needed, target_spacing
from autoseg.planning.statistics import Machine, Statistics

CPU_ITERATIONS = 1000  # about ten minutes of one core for a patch of 40x56x40 at 16 filters and batch 2


@dataclass(frozen=True)
class FamilyTraits:
    """What planning must know of a family. `bytes_per_voxel`: activations kept for one patch voxel in training."""

    max_levels: int
    filters_cpu: int
    filters_gpu: int
    bytes_per_voxel_and_filter: float
    learning_rate_cpu: float
    learning_rate_gpu: float
    batch: int = 2

    def filters(self, machine: Machine) -> int:
        return self.filters_gpu if machine.kind == "cuda" else self.filters_cpu


@dataclass
class Plan:
    """Hyper-parameters of a family, the reason of each, and `skip`: why the family does not suit, or None."""

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    skip: str | None = None
    patch: Patch | None = None

    def set(self, key: str, value: Any, reason: str) -> None:
        self.settings[key] = value
        self.reasons[key] = reason


def plan_family(stats: Statistics, machine: Machine, modality: str, traits: FamilyTraits) -> Plan:
    """Everything but what is the family's own: geometry, normalisation, patch, batch, length, windows, precision."""
    plan = Plan()
    filters = traits.filters(machine)
    spacing, reason = target_spacing(stats)
    plan.set("resample_to_spacing", spacing, reason)
    plan.set("resample", *resample_needed(stats))
    bytes_per_voxel = traits.bytes_per_voxel_and_filter * filters * (1.0 if machine.kind == "cuda" else 2.0)
    patch, reason = plan_patch(stats, spacing, machine, traits.max_levels, bytes_per_voxel, traits.batch)
    plan.patch = patch
    plan.set("roi_size", list(patch.size), reason)
    plan.set("num_images_per_batch", traits.batch, "two patches a step: instance norm needs no more, memory no less")
    plan.set("init_filters", filters, f"small enough to train in minutes on a {machine.kind}")
    plan.set("input_channels", stats.channels, "channels of every case")
    _plan_normalization(plan, stats, modality)
    _plan_length(plan, stats, machine, traits)
    _plan_inference(plan, stats, machine, spacing)
    return plan


def _plan_normalization(plan: Plan, stats: Statistics, modality: str) -> None:
    """CT: clip to the pooled foreground's 0.5-99.5 percentiles, then its z-score; else z-score by case (nnU-Net)."""
    modes = normalize_modes(modality, None, stats.channels)
    if "ct" in modes:
        bounds = [
            [c.percentile_00_5, c.percentile_99_5, c.mean, max(c.std, 1e-6)] if mode == "ct" else None
            for c, mode in zip(stats.intensity, modes, strict=False)  # MONAI's statistics are of one channel
        ]
        plan.set("normalize_mode", "ct", "CT numbers are absolute: clipped and scaled by the pooled foreground")
        plan.set("intensity_bounds", bounds, "by channel: 0.5 and 99.5 percentile, mean and deviation of foreground")
    else:
        plan.set("normalize_mode", "zscore", f"{modality} intensities are relative: z-score of each case and channel")
        plan.set("intensity_bounds", None, "not needed for z-scores")


def _plan_length(plan: Plan, stats: Statistics, machine: Machine, traits: FamilyTraits) -> None:
    """Epochs: 80000/n within 300 and 1250 on a GPU (Auto3DSeg); on a CPU CPU_ITERATIONS steps, in whole epochs."""
    steps_per_epoch = max(1, math.ceil(stats.n_cases / traits.batch))
    if machine.kind == "cuda":
        epochs = int(min(1250, max(300, 80000 / max(1, stats.n_cases))))
        plan.set("num_epochs", epochs, f"80000 / {stats.n_cases} cases, within 300 and 1250")
        plan.set("learning_rate", traits.learning_rate_gpu, "AdamW, long schedule")
        plan.set("ema_decay", 0.999, "averages about 1000 steps")
    else:
        epochs = max(2, math.ceil(CPU_ITERATIONS / steps_per_epoch))
        plan.set("num_epochs", epochs, f"about {CPU_ITERATIONS} steps: a fold trains in minutes on a CPU")
        plan.set("learning_rate", traits.learning_rate_cpu, "AdamW, short schedule")
        plan.set("ema_decay", 0.99, "averages about 100 steps")
    plan.set("num_epochs_per_validation", max(1, epochs // 10), "ten validations")
    plan.set("num_warmup_epochs", max(1, min(3, epochs // 10)), "at most three (Auto3DSeg), a tenth of the epochs")


def _plan_inference(plan: Plan, stats: Statistics, machine: Machine, spacing: Sequence[float]) -> None:
    """Windows overlap by half where a case holds few of them, by a quarter on large volumes on a CPU (time)."""
    windows = math.prod(
        max(1.0, stats.cropped_shape_median[a] * stats.spacing_median[a] / spacing[a] / plan.settings["roi_size"][a])
        for a in range(3)
    )
    overlap = 0.5 if machine.kind == "cuda" or windows < 30 else 0.25
    plan.set("overlap", overlap, f"a case holds about {windows:.0f} patches")
    plan.set("sw_batch_size", 4 if machine.kind == "cuda" else 1, "windows in one pass of the network")
    precision = "float16" if machine.kind == "cuda" else "bfloat16"
    plan.set("precision", precision, f"autocast on a {machine.kind}")


def mirror_axes(
    labels: Mapping[int, str], pairs: Sequence[Sequence[int]] | None, machine: Machine
) -> tuple[list[int], str]:
    """Axes (RAS) along which a patch may be mirrored: never left-right where labels name left and right.

    On a CPU's short schedule only the body's own symmetry is used: on hippocampus, after 260 steps, mirroring along
    left-right alone reached a validation Dice of 0.85 where mirroring along all axes reached 0.80.
    """
    axes, reason = ([0, 1, 2], "a long schedule") if machine.kind == "cuda" else ([0], "a short schedule")
    found = [list(p) for p in pairs] if pairs is not None else left_right_pairs(labels)
    if found:
        names = ", ".join(f"{labels.get(a, a)}/{labels.get(b, b)}" for a, b in found)
        return axes[1:], f"{reason}; axis 0 is left-right and the labels name sides: {names}"
    return axes, f"{reason}; no labels that differ only in left and right"


SIDES = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("izquierdo", "derecho"),
    ("izquierda", "derecha"),
    ("gauche", "droite"),
    ("gauche", "droit"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("sinistro", "destro"),
    ("sinistra", "destra"),
    ("esquerdo", "direito"),
    ("esquerda", "direita"),
)


def left_right_pairs(labels: Mapping[int, str]) -> list[list[int]]:
    """Pairs of label values whose names differ only in a word for left and right, in any of a few languages."""
    words = {value: _words(name) for value, name in labels.items()}
    pairs = []
    for value, own in sorted(words.items()):
        for left, right in SIDES:
            if left not in own:
                continue
            mirrored = [right if word == left else word for word in own]
            pairs += [[value, other] for other, theirs in words.items() if theirs == mirrored]
    unique: list[list[int]] = []
    for pair in pairs:
        if pair not in unique:
            unique.append(pair)
    return unique


def _words(name: str) -> list[str]:
    """`Left_Kidney`, `kidney-l`, `KidneyLeft` in lower-case words."""
    spaced = "".join(f" {c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    return "".join(c.lower() if c.isalnum() else " " for c in spaced).split()
