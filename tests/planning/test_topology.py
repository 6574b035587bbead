"""The architecture that is decoded from a search's weights: feasible, the likeliest, within its memory."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from monai.networks.nets.dints import TopologySearch

from autoseg.planning.topology import Lattice, decode, described, picture


def space(seed: int, blocks: int = 4, depths: int = 3) -> TopologySearch:
    torch.manual_seed(seed)
    found = TopologySearch(channel_mul=0.1, num_blocks=blocks, num_depths=depths)
    with torch.no_grad():
        found.log_alpha_a.normal_(0, 2)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("blocks", "depths"), [(4, 3), (5, 2)])
def test_without_a_limit_it_is_what_monai_decodes(seed: int, blocks: int, depths: int) -> None:
    searched = space(seed, blocks, depths)
    nodes, edges, _, _ = searched.decode()
    lattice = Lattice.of(blocks, depths)
    assert list(lattice.starts) == searched.arch_code2in and list(lattice.ends) == searched.arch_code2out
    probabilities = torch.sigmoid(searched.log_alpha_a).detach().double().numpy()
    found = decode(lattice, probabilities, np.ones_like(probabilities), 1e9)
    assert np.array_equal(found, edges) and np.array_equal(lattice.nodes(found), nodes)


def test_memory_is_kept_to_and_what_is_found_is_feasible() -> None:
    lattice, random = Lattice.of(6, 4), np.random.default_rng(0)
    probabilities, memory = random.random((2, 6, len(lattice.starts)))
    likelihoods = []
    for budget in (1e9, 15.0, 10.0, 6.0, 3.0):
        edges = decode(lattice, probabilities, memory, budget)
        assert (edges * memory).sum() <= budget
        likelihoods.append(float(np.log(np.where(edges, probabilities, 1 - probabilities)).sum()))
        for before, after in itertools.pairwise(edges):
            ends = {lattice.ends[edge] for edge in np.flatnonzero(before)}
            assert ends == {lattice.starts[edge] for edge in np.flatnonzero(after)}
    assert likelihoods == sorted(likelihoods, reverse=True)
    least = decode(lattice, probabilities, memory, 0.0)  # nothing is so small: what takes least
    assert (least.sum(1) == 1).all()


def test_the_picture_is_svg_and_says_what_is_used() -> None:
    lattice = Lattice.of(3, 2)
    edges = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    kinds = np.full((3, 4), 1)
    drawn = ElementTree.fromstring(picture(edges.tolist(), kinds.tolist(), lattice.nodes(edges).tolist()))
    lines = drawn.findall("{http://www.w3.org/2000/svg}line")
    assert len(lines) == 12
    assert sum(line.get("stroke-width") == "3" for line in lines) == 5
    found = {"arch_code_a": edges.tolist(), "arch_code_c": kinds.tolist(), "memory": 0.5}
    assert described(found) == "5 of 12 edges (5 3x3x3), 0.50 times the memory of the fixed architecture"
