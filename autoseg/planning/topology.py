"""From the weights of a search to an architecture of DiNTS: the likeliest feasible one that memory allows; its picture.

An architecture takes at least one edge a block. It is feasible where the nodes that a block leads to are those that the
next one starts from, none more and none fewer: then every feature that is computed is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoseg.planning.budget import largest

Array = npt.NDArray[Any]
SMALL = 1e-6
DEAREST = 1e4  # what a voxel's memory can cost at most, beside the likelihood of an edge
OPERATIONS = ("passed on", "3x3x3", "3x3x1", "3x1x3", "1x3x3")  # of MONAI's cells of 3D, in their order
COLOURS = ("#a8a8a8", "#2b6cb0", "#dd6b20", "#2f855a", "#b03030")


@dataclass(frozen=True)
class Lattice:
    """The space of architectures: `starts` and `ends` of a block's edges, as numbers of resolutions, 0 the finest."""

    blocks: int
    depths: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, blocks: int, depths: int) -> Lattice:
        """In MONAI's order: by the node they lead to, from finer to coarser."""
        edges = [(start, end) for end in range(depths) for start in (end - 1, end, end + 1) if 0 <= start < depths]
        return cls(blocks, depths, tuple(start for start, _ in edges), tuple(end for _, end in edges))

    def choices(self) -> tuple[Array, Array, Array]:
        """Every choice of edges [choices, edges], and the nodes that it starts from and leads to, as bits."""
        edges = len(self.starts)
        taken = (np.arange(1, 2**edges)[:, None] >> np.arange(edges)) & 1
        nodes = [np.array([1 << node for node in ends]) for ends in (self.starts, self.ends)]
        starts, ends = (np.bitwise_or.reduce(taken * bits, axis=1) for bits in nodes)
        return taken, starts, ends

    def nodes(self, edges: Array) -> Array:
        """Nodes in use [blocks + 1, depths] of edges in use [blocks, edges]."""
        used = np.zeros((self.blocks + 1, self.depths), int)
        for edge, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            used[0, start] |= edges[0, edge]
            used[1:, end] |= edges[:, edge]
        return used


def decode(lattice: Lattice, edge_probabilities: Array, memory: Array, budget: float) -> Array:
    """The edges in use [blocks, edges], 0 or 1: the likeliest feasible architecture whose memory is within `budget`.

    `edge_probabilities` and `memory` are [blocks, edges]. Where nothing feasible is so small, what takes least.
    """
    cheap = _likeliest(lattice, edge_probabilities, memory, 0.0)
    scale = max(float(memory.mean()), SMALL)
    if (cheap * memory).sum() > budget:  # memory is given a price, the lowest that leads within the budget

        def too_large(price: float) -> bool:
            found = _likeliest(lattice, edge_probabilities, memory, price / scale)
            return bool((found * memory).sum() > budget)

        cheap = _likeliest(lattice, edge_probabilities, memory, 1.001 * largest(too_large, DEAREST) / scale)
    return cheap


def _likeliest(lattice: Lattice, probabilities: Array, memory: Array, price: float) -> Array:
    """The path of least cost through the blocks, by dynamic programming over the nodes in use between them."""
    taken, starts, ends = lattice.choices()
    on, off = -np.log(probabilities + SMALL) + price * memory, -np.log(1 - probabilities + SMALL)
    costs = taken @ on.T + (1 - taken) @ off.T  # [choices, blocks]
    states = 1 << lattice.depths
    total, chosen = np.zeros(states), []
    for block in range(lattice.blocks):
        through = costs[:, block] + total[starts]
        best = np.array([_least(through, ends == state) for state in range(states)])
        total = np.where(best >= 0, through[best], np.inf)
        chosen.append(best)
    state, path = int(np.argmin(total)), []
    for best in reversed(chosen):
        path.append(taken[best[state]])
        state = int(starts[best[state]])
    return np.array(path[::-1])


def _least(costs: Array, among: Array) -> int:
    """The index of the least of the costs among some; -1 where there are none."""
    found = np.flatnonzero(among)
    return int(found[np.argmin(costs[found])]) if len(found) else -1


def picture(edges: Sequence[Sequence[int]], operations: Sequence[Sequence[int]], nodes: Sequence[Sequence[int]]) -> str:
    """An SVG: resolutions from top (fine) to bottom, blocks from left to right, a colour an operation."""
    blocks, depths = len(edges), len(nodes[0])
    lattice = Lattice.of(blocks, depths)
    width, height = 90 + 70 * blocks + 40, 70 * depths + 70

    def place(column: int, row: int) -> tuple[int, int]:
        return 90 + 70 * column, 50 + 70 * row

    lines = []
    for block, (row, kinds) in enumerate(zip(edges, operations, strict=True)):
        for edge, used in enumerate(row):
            (x1, y1), (x2, y2) = place(block, lattice.starts[edge]), place(block + 1, lattice.ends[edge])
            style = f'stroke="{COLOURS[kinds[edge]]}" stroke-width="3"' if used else 'stroke="#ececec"'
            lines.append((used, f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'))
    shapes = [line for _, line in sorted(lines, key=lambda line: line[0])]  # those in use on top
    for column, depth in ((c, d) for c in range(blocks + 1) for d in range(depths)):
        x, y = place(column, depth)
        shapes.append(f'<circle cx="{x}" cy="{y}" r="8" fill="{"#333333" if nodes[column][depth] else "#ececec"}"/>')
    shapes += [f'<text x="14" y="{place(0, depth)[1] + 5}">1/{2 ** (depth + 1)}</text>' for depth in range(depths)]
    for number, (name, colour) in enumerate(zip(OPERATIONS, COLOURS, strict=True)):
        x = 14 + 100 * number
        shapes.append(f'<text x="{x}" y="{height - 8}" fill="{colour}">{name}</text>')
    width = max(width, 14 + 100 * len(OPERATIONS))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="14">', '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>\n"]
    )


def described(found: Mapping[str, Any]) -> str:
    """What was found, in a line."""
    edges = np.array(found["arch_code_a"])
    kinds = np.bincount(np.array(found["arch_code_c"])[edges > 0], minlength=len(OPERATIONS))
    parts = ", ".join(f"{count} {name}" for name, count in zip(OPERATIONS, kinds, strict=True) if count)
    share = found["memory"]
    return f"{int(edges.sum())} of {edges.size} edges ({parts}), {share:.2f} times the memory of the fixed architecture"
