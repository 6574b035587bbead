"""The recipe that all families share: from statistics and machine to hyper-parameters, each with its reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoseg.errors import Fault, InputError
from autoseg.planning.patch import (
    ANISOTROPY,
    Patch,
    PatchRule,
    plan_batch,
    plan_patch,
    resample_needed,
    target_spacing,
)
from autoseg.planning.statistics import Intensity, Machine, Statistics

BY_USER = "set by the user"  # the reason of a value
WIDE = 3.0  # times the deviation of a typical label: from there on a z-score hides soft tissue
OFTEN = 50.0  # patches of one case in a short schedule: from there on they must differ more
CPU_ITERATIONS = 1000  # about ten minutes of one core for a patch of 40x56x40 at 16 filters and batch 2


@dataclass(frozen=True)
class FamilyTraits:
    """What planning must know of a family. `bytes_per_voxel_and_filter`: activations kept for one patch voxel.

    `share`: of the time, where it is limited, in proportion to the other families'.
    """

    patch: PatchRule
    filters_cpu: int
    filters_gpu: int
    bytes_per_voxel_and_filter: float
    learning_rate_cpu: float
    learning_rate_gpu: float
    spatial_dims: int = 3
    share: float = 1.0
    steps_cpu: int = CPU_ITERATIONS

    def filters(self, machine: Machine) -> int:
        return self.filters_gpu if machine.kind == "cuda" else self.filters_cpu

    def width(self, machine: Machine) -> tuple[int, str]:
        """Filters of the first level, and the reason."""
        return self.filters(machine), f"trains in minutes on a {machine.kind}"


@dataclass
class Plan:
    """Hyper-parameters of a family and the reason of each.

    `skip`: why the family does not suit the data, or None; `spare`: why the machine is better used by others;
    `on_request`: why it never takes part by itself. Each leaves out a family that the user did not name.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    skip: str | None = None
    spare: str | None = None
    on_request: str | None = None
    patch: Patch | None = None
    share: float = 1.0

    def set(self, key: str, value: Any, reason: str) -> None:
        self.settings[key] = value
        self.reasons[key] = reason


def plan_family(stats: Statistics, machine: Machine, modes: Sequence[str], traits: FamilyTraits) -> Plan:
    """Everything but what is the family's own: geometry, normalisation, patch, batch, length, windows, precision.

    `modes`: how each channel is normalised, ct or zscore (see `normalize_modes`).
    """
    plan = Plan(share=traits.share)
    spacing, reason = target_spacing(stats)
    plan.set("resample_to_spacing", spacing, reason)
    plan.set("resample", *resample_needed(stats))
    bytes_per_voxel = (
        traits.bytes_per_voxel_and_filter * traits.filters(machine) * (1.0 if machine.kind == "cuda" else 2.0)
    )
    # of axes alike in spacing, planes lie across the one with fewest voxels
    coarsest = max(range(3), key=lambda axis: (spacing[axis], -stats.cropped_shape_median[axis]))
    across = None if traits.spatial_dims == 3 else 2 if stats.image_dims == 2 else coarsest
    patch, reason = plan_patch(stats, spacing, machine, traits.patch, bytes_per_voxel, across)
    plan.patch = patch
    plan.set("spatial_dims", traits.spatial_dims, "the family's")
    plan.set("slice_axis", across, "a 3D network" if across is None else "planes across the coarsest axis")
    plan.set("roi_size", list(patch.size), reason)
    plan.set("roi_multiple", [2**h for h in patch.halvings], "the network halves a patch so often")
    plan.set("num_images_per_batch", *plan_batch(patch, machine, traits.patch, bytes_per_voxel))
    plan.set("input_channels", stats.channels, "channels of every case")
    plan.set("image_files", stats.image_files, "files of every case")
    plan.set("image_dims", stats.image_dims, "dimensions of the files")
    _plan_normalization(plan, stats, modes)
    _plan_length(plan, stats, machine, traits)
    _plan_inference(plan, stats, machine, spacing)
    _plan_rotation(plan, spacing, across)
    if stats.image_dims == 2 and traits.spatial_dims == 3:
        plan.skip = "the images are 2D"
    return plan


def is_anisotropic(stats: Statistics) -> bool:
    """Whether one axis of the cases is over ANISOTROPY times coarser than another (nnU-Net), by their median."""
    return max(stats.spacing_median) > ANISOTROPY * min(stats.spacing_median)


def _plan_rotation(plan: Plan, spacing: Sequence[float], across: int | None) -> None:
    """Rotation within the planes where they lie far apart: about the coarse axis alone (nnU-Net)."""
    coarsest = max(range(3), key=lambda axis: spacing[axis])
    if across is not None:
        plan.set("rotation_axes", [0], "within the planes")
    elif spacing[coarsest] > ANISOTROPY * min(spacing):
        plan.set("rotation_axes", [coarsest], f"axis {coarsest} is over {ANISOTROPY:g} times coarser")
    else:
        plan.set("rotation_axes", [0, 1, 2], "no axis is much coarser than another")


def _plan_normalization(plan: Plan, stats: Statistics, modes: Sequence[str]) -> None:
    """CT: clip to the pooled foreground's 0.5-99.5 percentiles, then its z-score; else z-score by case (nnU-Net).

    Where labels of bone and soft tissue stand together, a z-score leaves soft tissue hardly any contrast (on head and
    neck a brainstem has a deviation of 0.03). CT is then centred and scaled by a typical label, and what lies far from
    it compressed: asinh is linear near 0 and logarithmic far away, so that nothing is cut off.
    """
    if "ct" not in modes:
        plan.set("normalize_mode", "zscore", "intensities are relative: z-score of each case and channel")
        plan.set("intensity_bounds", None, "not needed for z-scores")
        return
    channels = list(zip(stats.intensity, modes, strict=True))
    wide = any(i.std > WIDE * i.label_std > 0 for i, mode in channels if mode == "ct")
    bounds = [
        None if mode != "ct" else [i.percentile_00_5, i.percentile_99_5, *_centre_and_scale(i, wide)]
        for i, mode in channels
    ]
    plan.set("normalize_mode", "ct", "CT numbers are absolute: clipped and scaled by the pooled foreground")
    what = "a typical label" if wide else "foreground"
    plan.set("intensity_bounds", bounds, f"by channel: 0.5 and 99.5 percentile, centre and deviation of {what}")
    spread = f"labels together are {'over' if wide else 'under'} {WIDE:g} times as widely spread as a typical one"
    plan.set("intensity_asinh", wide, spread)


def _centre_and_scale(intensity: Intensity, wide: bool) -> tuple[float, float]:
    mean, std = (intensity.label_median, intensity.label_std) if wide else (intensity.mean, intensity.std)
    return mean, max(std, 1e-6)


def _plan_length(plan: Plan, stats: Statistics, machine: Machine, traits: FamilyTraits) -> None:
    """Epochs: 80000/n within 300 and 1250 on a GPU (Auto3DSeg); on a CPU `steps_cpu` steps, in whole epochs."""
    steps_per_epoch = max(1, math.ceil(stats.n_cases / int(plan.settings["num_images_per_batch"])))
    if machine.kind == "cuda":
        epochs = int(min(1250, max(300, 80000 / max(1, stats.n_cases))))
        plan.set("num_epochs", epochs, f"80000 / {stats.n_cases} cases, within 300 and 1250")
        plan.set("learning_rate", traits.learning_rate_gpu, "AdamW, long schedule")
    else:
        epochs = max(2, math.ceil(traits.steps_cpu / steps_per_epoch))
        plan.set("num_epochs", epochs, f"about {traits.steps_cpu} steps: a fold trains in minutes on a CPU")
        plan.set("learning_rate", traits.learning_rate_cpu, "AdamW, short schedule")
        plan.set("weight_decay", 0.05, "AdamW")
        seen = traits.steps_cpu * int(plan.settings["num_images_per_batch"]) / max(1, stats.n_cases)
        if seen > OFTEN and traits.spatial_dims == 3:
            plan.set("affine_prob", 0.5, f"each case is seen about {seen:.0f} times")
    plan.set("ema_decay", 0.999, "averages a ninth of the steps, at most 1000")
    share = 0.33 if machine.kind == "cuda" else 0.66
    plan.set(
        "foreground_share", share, "nnU-Net's third" if machine.kind == "cuda" else "a short schedule must see labels"
    )
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
    windows_at_once = (4 if machine.kind == "cuda" else 1) * (1 if plan.settings["spatial_dims"] == 3 else 8)
    plan.set("sw_batch_size", windows_at_once, "windows in one pass of the network")
    if machine.kind == "cuda":
        plan.set("precision", "float16", "autocast on a GPU")
    else:
        plan.set("precision", "bfloat16", "autocast on a CPU that has instructions for it; elsewhere float32")


ACROSS = ("left-right", "front-back", "up-down")


def plan_mirroring(
    plan: Plan,
    labels: Mapping[int, str],
    pairs: Sequence[Sequence[int]] | None,
    machine: Machine,
    regions: Mapping[str, Sequence[int]] | None = None,
    alike: Sequence[Sequence[Sequence[int]]] = ((), (), ()),
) -> None:
    """Axes (RAS) along which patches are mirrored, and the label values that change places along left-right.

    On a CPU's short schedule only the body's own symmetry is used: on hippocampus, after 260 steps, mirroring along
    left-right alone reached a validation Dice of 0.85 where mirroring along all axes reached 0.80. `pairs` are the
    user's, instead of those that the names tell and, of labels whose names tell none, those that are `alike` (by axis,
    see Statistics) and have the same name but for numbers, as labels without names do: aorta and vena cava are told
    apart by more than their side. InputError where they are no labels. A label or region that names a side and has no
    counterpart forbids the axis. Alike labels along another axis forbid that one: nothing changes places along it.
    """
    axes, reason = ([0, 1, 2], "a long schedule") if machine.kind == "cuda" else ([0], "a short schedule")
    found = [[int(v) for v in pair] for pair in pairs] if pairs is not None else left_right_pairs(labels)
    paired = {value for pair in found for value in pair}
    faults = pair_faults(found, plan.settings["label_values"])
    if faults:
        raise InputError(faults)
    axes = [axis for axis in axes if axis != plan.settings.get("slice_axis")]
    values = {int(value) for value in plan.settings["label_values"]} - {0}
    known = [[[a, b] for a, b in some if {a, b} <= values and _same_but_for_numbers(labels, a, b)] for some in alike]
    alone: list[str] = []
    placed: list[list[int]] = []
    if pairs is None:
        alone = [name for value, name in labels.items() if value not in paired and names_side(name)]
        placed = [] if alone else [pair for pair in known[0] if paired.isdisjoint(pair)]
        alone += [name for name in _one_sided(regions or {}, found + placed) if name not in alone]
    against = {0: f"{', '.join(alone)} has no counterpart"} if alone else {}
    against |= {axis: f"{_named(known[axis], labels)} look alike on opposite sides" for axis in (1, 2) if known[axis]}
    why = [f"not along {ACROSS[axis]}: {words}" for axis, words in against.items() if axis in axes]
    plan.set("mirror_axes", [axis for axis in axes if axis not in against], "; ".join([reason, *why]))
    told = [f"left and right: {_named(found, labels)}"] if found else []
    told += [f"{_named(placed, labels)} look alike on opposite sides"] if placed else []
    plan.set("mirror_pairs", found + placed, "; ".join(told) or "no labels that differ only in the side")


def _same_but_for_numbers(labels: Mapping[int, str], a: int, b: int) -> bool:
    """Whether two names differ in nothing but words with a digit and letters that stand alone."""
    one, other = (
        [word for word in _words(labels.get(value, "")) if len(word) > 1 and not any(map(str.isdigit, word))]
        for value in (a, b)
    )
    return one == other


def _named(pairs: Sequence[Sequence[int]], labels: Mapping[int, str]) -> str:
    return ", ".join(f"{labels.get(a, a)}/{labels.get(b, b)}" for a, b in pairs)


def plan_mirrored_windows(plan: Plan) -> None:
    """Windows are predicted mirrored along left-right, too, where patches were: the mean of two answers, in twice the
    time. In cross-validation that is worth 0.4 points of Dice on head and neck, 0.3 on hippocampus.
    """
    settings = plan.settings
    parts = settings["regions"] or [(value,) for value in settings["label_values"]]
    axes, reason = [axis for axis in settings["mirror_axes"] if axis == 0], "as patches, along left-right"
    try:
        mirrored_outputs(parts, settings["mirror_pairs"])
    except InputError as error:
        axes, reason = [], str(error.faults[0].message)
    plan.set("mirror_axes_inference", axes, reason)


def pair_faults(pairs: Sequence[Sequence[int]], values: Sequence[int]) -> list[Fault]:
    """What is wrong with `mirror_pairs`: values that are none of the labels'."""
    labels = sorted(set(values) - {0})
    unknown = sorted({value for pair in pairs for value in pair} - set(values))
    message = f"names {unknown}, which are no labels; those are {labels}"
    return [Fault("", "mirror_pairs", message)] if unknown else []


def other_side(parts: Sequence[Iterable[int]], pairs: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """Sets of label values as they are called once left and right, the two of each of `pairs`, have changed places."""
    other = {int(value): int(there) for a, b in pairs for value, there in ((a, b), (b, a))}
    return [frozenset(other.get(value, value) for value in part) for part in parts]


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of the mirrored axes; the first mirrors nothing."""
    return [some for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]


def mirrored_outputs(parts: Sequence[Iterable[int]], pairs: Sequence[Sequence[int]]) -> list[int]:
    """The output that each one becomes when left and right change places; `parts`: the label values of every output.

    InputError where one has no counterpart: then windows cannot be mirrored along left-right.
    """
    here, there = [frozenset(part) for part in parts], other_side(parts, pairs)
    alone = [sorted(part) for part, counterpart in zip(here, there, strict=True) if counterpart not in here]
    if alone:
        message = f"the region of values {alone[0]} has no counterpart on the other side: leave out axis 0"
        raise InputError([Fault("", "mirror_axes_inference", message)])
    return [here.index(counterpart) for counterpart in there]


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


def _one_sided(regions: Mapping[str, Sequence[int]], pairs: Sequence[Sequence[int]]) -> list[str]:
    """Regions that name a side and do not become another one where the labels of `pairs` change places."""
    names, parts = dict(enumerate(regions)), [frozenset(values) for values in regions.values()]
    there = other_side(parts, pairs)
    sided = {n for pair in left_right_pairs(names) for n in pair} | {n for n in names if names_side(names[n])}
    return [names[n] for n in sorted(sided) if there[n] == parts[n] or there[n] not in parts]


def names_side(name: str) -> bool:
    """Whether a label's name holds a word for left or right; letters (L, rt) count as first or last word of several."""
    words = _words(name)
    ends = {words[0], words[-1]} if len(words) > 1 else set()
    return any(word in pair and (len(word) > 2 or word in ends) for word in words for pair in SIDES)


def _words(name: str) -> list[str]:
    """`Left_Kidney`, `kidney-l`, `KidneyLeft` in lower-case words."""
    spaced = "".join(f" {c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    return "".join(c.lower() if c.isalnum() else " " for c in spaced).split()
