"""Labels that look alike and lie on opposite sides: a network tells such two by their side alone, as left and right.

Patches that are mirrored along that axis would teach both answers for one image, unless the two change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from autoseg.analysis.report import CaseReport
from autoseg.analysis.volumes import Array

LEAST_CASES = 3  # that hold both: three agree on a side by chance in a quarter of all pairs, fewer more often
LEAST_SHARE = 0.5  # of the cases that hold either
SAME_SIDE = 0.9  # of the cases with both, in which one lies on the same side of the other
APART = 2.0  # times their spread along the axis: two halves of a ball are 3.1 apart, touching balls 4.5
ASIDE = 0.67  # times the distance along the axis, at most, along any other: else that one tells them, too
MIDDLE = 0.25  # times that distance off the middle of all labels is as unlike as a factor of VOLUMES
VOLUMES = 1.5  # factor between volumes: left and right organs are within it, liver and spleen beyond 5
SHADE = 0.5  # standard deviations of intensities within a label between the means of the two
MOST_LABELS = 200  # that are compared two by two
HELD = 0.5  # of the cases: more often, a third label lies within one of the two and none within the other


@dataclass(frozen=True)
class _Table:
    """What is known of labels by case: [cases, labels] and more axes; `held`: another label is centred within it."""

    there: Array
    volume: Array  # in mm3
    centre: Array  # [..., 3] in mm, as `spread`
    spread: Array
    mean: Array  # [..., channels], as `std`
    std: Array
    held: Array
    middle: Array  # [cases, 3], of the centres of all labels


def alike_across(reports: Sequence[CaseReport], values: Sequence[int], channels: int) -> list[list[list[int]]]:
    """By RAS axis the pairs of label `values` above 0 that look alike and lie on opposite sides along it, ascending.

    Two are a pair where, in the cases that hold both, one lies nearly always on the same side, what lies between
    their centres runs along the axis, and neither volume nor the mean of any channel nor a third label within one of
    them tells them apart. Differences are taken within a case, and their median over cases: what differs now this
    way, now that way does not tell. A label has at most one partner an axis, the nearest in all of these and in its
    distance from the middle of all labels. Of more than MOST_LABELS none are. `reports` without `channels` channels, or
    whose label does not fit the image, do not count.
    """
    named = sorted(value for value in values if value > 0)
    if len(named) > MOST_LABELS:
        return [[], [], []]
    table = _table(reports, named, channels)
    found = [
        (float(cost), axis, named[a], named[b])
        for a in range(len(named))
        for b in range(a + 1, len(named))
        for axis, cost in enumerate(_unlikeness(table, a, b))
        if math.isfinite(cost)
    ]
    pairs: list[list[list[int]]] = [[], [], []]
    taken: set[tuple[int, int]] = set()
    for _, axis, one, other in sorted(found):
        if not taken & {(axis, one), (axis, other)}:
            taken |= {(axis, one), (axis, other)}
            pairs[axis].append([one, other])
    return [sorted(some) for some in pairs]


def _unlikeness(table: _Table, a: int, b: int) -> Iterator[float]:
    """By axis how far two labels are from mirror images of one another, inf where they are none; cheap tests first."""
    both = table.there[:, a] & table.there[:, b]
    either = table.there[:, a] | table.there[:, b]
    if both.sum() < max(LEAST_CASES, LEAST_SHARE * either.sum()):
        return
    one, other = table.centre[both, a], table.centre[both, b]
    between = one - other
    sides = np.maximum(np.mean(between > 0, axis=0), np.mean(between < 0, axis=0)) >= SAME_SIDE
    if not sides.any() or abs(np.mean(table.held[both, a]) - np.mean(table.held[both, b])) > HELD:
        return
    unlike = abs(float(np.median(np.log(table.volume[both, a] / table.volume[both, b])))) / math.log(VOLUMES)
    if unlike > 1.0:
        return
    std = np.maximum(_together(table.std, both, a, b), 1e-9)
    shades = np.abs(np.median((table.mean[both, a] - table.mean[both, b]) / std, axis=0)) / SHADE
    if np.any(shades > 1.0):
        return
    width = np.median(_together(table.spread, both, a, b), axis=0)
    off = np.abs(np.median((one + other) / 2 - table.middle[both], axis=0))
    distance = np.abs(np.median(between, axis=0))
    for axis in range(3):
        far, aside = float(distance[axis]), float(np.delete(distance, axis).max())
        pair = sides[axis] and far > APART * width[axis] and aside <= ASIDE * far
        yield unlike + float(shades.max()) + (aside / ASIDE + off[axis] / MIDDLE) / far if pair else math.inf


def _together(table: Array, both: Array, a: int, b: int) -> Array:
    """The root mean square of two labels' deviations, [cases with both, ...]."""
    return cast(Array, np.sqrt((table[both, a] ** 2 + table[both, b] ** 2) / 2))


def _table(reports: Sequence[CaseReport], named: Sequence[int], channels: int) -> _Table:
    cases = [r for r in reports if r.extras and r.extras.channels == channels and "label_stats" in r.monai]
    shape = (len(cases), len(named))
    there, held, volume = np.zeros(shape, bool), np.zeros(shape, bool), np.ones(shape)
    centre, spread = np.zeros((*shape, 3)), np.zeros((*shape, 3))
    mean, std = np.zeros((*shape, channels)), np.zeros((*shape, channels))
    middle = np.zeros((len(cases), 3))
    column = {value: index for index, value in enumerate(named)}
    for row, report in enumerate(cases):
        assert report.extras is not None
        stats, voxel = report.monai["label_stats"], math.prod(report.extras.spacing)
        for value, label in zip(stats["labels"], stats["label"], strict=True):
            if value not in column or value not in report.extras.places:
                continue
            at, place, shades = (row, column[value]), report.extras.places[value], label["image_intensity"]
            there[at], volume[at] = True, report.counts[value] * voxel
            centre[at], spread[at] = (np.array([*part, 0.0])[:3] for part in (place.centre, place.spread))
            mean[at], std[at] = ([shade[key] for shade in shades] for key in ("mean", "stdev"))
        known = np.flatnonzero(there[row])
        if known.size:
            centres = centre[row, known]
            middle[row] = centres.mean(axis=0)
            within = np.all(np.abs(centres[:, None] - centres[None]) <= spread[row, known][:, None], axis=-1)
            held[row, known] = within.sum(axis=1) > 1  # besides itself
    return _Table(there, volume, centre, spread, mean, std, held, middle)
