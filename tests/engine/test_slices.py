"""Networks of slices among volumes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from monai.inferers import SliceInferer

from autoseg.engine.slices import run_network, slice_axis
from autoseg.engine.streaming import stream_probabilities

CPU = torch.device("cpu")


class Flat(torch.nn.Module):
    """A 2D network whose answer depends on where in its window a pixel lies."""

    def __init__(self, outputs: int):
        super().__init__()
        torch.manual_seed(outputs)
        first, second = torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Conv2d(6, outputs, 3, padding=1)
        self.layers = torch.nn.Sequential(first, torch.nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def settings(across: int, regions: list[list[int]] | None) -> dict[str, Any]:
    size = [12, 10]
    size.insert(across, 1)
    common = {
        "roi_size": size,
        "spatial_dims": 2,
        "slice_axis": across,
        "overlap": 0.5,
        "sw_batch_size": 3,
        "label_values": [0, 1, 2],
    }
    return {**common, "label_values": [0, 1, 2], "regions": regions, "mirror_axes_inference": [], "mirror_pairs": []}


def test_the_axis_across_the_planes() -> None:
    assert slice_axis({"spatial_dims": 3, "slice_axis": None, "roi_size": [16, 1, 16]}) is None
    assert [slice_axis(settings(across, None)) for across in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("regions", [None, [[1, 2], [2]]])
@pytest.mark.parametrize("stream", [0, 2])
@pytest.mark.parametrize(("across", "shape"), [(0, (5, 30, 21)), (1, (9, 4, 26)), (2, (25, 17, 6)), (2, (8, 30, 1))])
@torch.inference_mode()
def test_streaming_equals_monai_s_slice_inferer(
    across: int, shape: tuple[int, ...], stream: int, regions: list[list[int]] | None
) -> None:
    """Both in planes of another orientation, in volumes smaller than the patch, and in one plane alone."""
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    network = Flat(2 if regions else 3).eval()
    inferer = SliceInferer(
        roi_size=(12, 10), spatial_dim=across, sw_batch_size=2, overlap=0.5, mode="gaussian", padding_mode="constant"
    )
    activate = torch.sigmoid if regions else lambda x: torch.softmax(x, 1)
    expected = inferer(image[None], lambda x: activate(network(x)))[0]
    chosen = settings(across, regions)
    store = stream_probabilities([network], image, chosen, CPU, contextlib.nullcontext, axis=stream)
    with contextlib.closing(store):
        torch.testing.assert_close(store.read(0, store.count), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("across", [0, 2])
def test_planes_are_mirrored_within_and_never_across(across: int) -> None:
    """Nor do left and right change places in planes across that axis: what lies in one stays on its side."""
    shape = [14, 12]
    shape.insert(across, 3)
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))

    def streamed(axes: list[int]) -> torch.Tensor:
        chosen = {**settings(across, None), "mirror_axes_inference": axes, "mirror_pairs": [[1, 2]]}
        store = stream_probabilities([Flat(3).eval()], image, chosen, CPU, contextlib.nullcontext)
        with contextlib.closing(store):
            return store.read(0, store.count)

    torch.testing.assert_close(streamed([across]), streamed([]), atol=2e-5, rtol=0)
    assert (streamed([1]) - streamed([])).abs().max() > 1e-3


def test_of_several_outputs_the_finest_is_taken() -> None:
    class Deep(Flat):
        def forward(self, x: torch.Tensor) -> Any:
            assert x.shape == (4, 2, 8, 6)
            return [super().forward(x), torch.zeros(1)]

    assert run_network(Deep(3), torch.randn(4, 2, 8, 1, 6), 1).shape == (4, 3, 8, 1, 6)
