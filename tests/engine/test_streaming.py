"""The streamed sliding window, against MONAI's over the whole volume."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from autoseg.engine import precision as of_engine
from autoseg.engine import streaming
from autoseg.engine.precision import autocast_for
from autoseg.engine.streaming import PlaneStore, stream_probabilities, window_starts

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"roi_size": [12, 10, 8], "overlap": 0.5, "sw_batch_size": 3, "mirror_axes_inference": []}
SETTINGS |= {"label_values": [0, 1, 2, 3], "regions": None, "spatial_dims": 3, "mirror_pairs": []}


def network(seed: int, classes: int = 4, channels: int = 2) -> torch.nn.Module:
    """A small network whose answer depends on where in its window a voxel lies (its padding shows)."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(channels, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(6, classes, 3, padding=1)
    ).eval()


def volume(*shape: int, channels: int = 2) -> torch.Tensor:
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(5))


def streamed(networks: list[Any], image: torch.Tensor, **changes: Any) -> torch.Tensor:
    axis, scratch = changes.pop("axis", 0), changes.pop("scratch", None)
    autocast = functools.partial(autocast_for, changes.pop("precision", "float32"), CPU)
    store = stream_probabilities(networks, image, {**SETTINGS, **changes}, CPU, autocast, scratch, axis)
    with contextlib.closing(store):
        return store.read(0, store.count)


@torch.inference_mode()
def whole(net: torch.nn.Module, image: torch.Tensor, **changes: Any) -> torch.Tensor:
    """MONAI's sliding window over softmax probabilities."""
    settings = {**SETTINGS, **changes}
    return sliding_window_inference(
        image[None],
        settings["roi_size"],
        2,
        lambda x: torch.softmax(net(x), 1),
        overlap=settings["overlap"],
        mode="gaussian",
        padding_mode="constant",
    )[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("shape", "overlap"),
    [((40, 21, 17), 0.5), ((12, 10, 8), 0.5), ((37, 33, 8), 0.25), ((9, 27, 5), 0.625), ((25, 7, 30), 0.0)],
)
def test_agrees_with_monai(shape: tuple[int, ...], overlap: float, axis: int) -> None:
    net, image = network(0), volume(*shape)
    expected = whole(net, image, overlap=overlap)
    found = streamed([net], image, overlap=overlap, axis=axis)
    assert found.shape == (4, *shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    top = expected.sort(0).values
    clear = top[-1] - top[-2] > 3e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(found.argmax(0)[clear], expected.argmax(0)[clear])
    assert (found.argmax(0) == expected.argmax(0)).float().mean() >= 0.999


def test_lockstep_is_the_mean_of_the_networks_one_by_one() -> None:
    networks, image = [network(seed) for seed in (1, 2, 3)], volume(30, 16, 20)
    separate = torch.stack([whole(net, image) for net in networks]).mean(0)
    torch.testing.assert_close(streamed(networks, image), separate, atol=1e-5, rtol=0)
    assert (separate - whole(networks[0], image)).abs().max() > 0.05  # they do differ


def test_mirroring_is_the_mean_over_all_flips() -> None:
    net, image = network(4), volume(26, 19, 11)
    flips: list[tuple[int, ...]] = [(), (2,), (4,), (2, 4)]
    expected = torch.stack(
        [whole(lambda x, d=dims: net(x.flip(d) if d else x).flip(d) if d else net(x), image) for dims in flips]
    ).mean(0)
    for axis in (0, 2):
        found = streamed([net], image, mirror_axes_inference=[0, 2], axis=axis)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_is_left_in_the_mirror_is_right() -> None:
    """Along left-right, labels 1 and 3 change places; along the other axes nothing does."""
    net, image, swapped = network(4), volume(26, 19, 11), [0, 3, 2, 1]
    plain, mirrored = whole(net, image), whole(lambda x: net(x.flip(2)).flip(2), image)
    found = streamed([net], image, mirror_axes_inference=[0], mirror_pairs=[[1, 3]])
    torch.testing.assert_close(found, (plain + mirrored[swapped]) / 2, atol=1e-5, rtol=0)
    ahead = whole(lambda x: net(x.flip(3)).flip(3), image)
    found = streamed([net], image, mirror_axes_inference=[1], mirror_pairs=[[1, 3]])
    torch.testing.assert_close(found, (plain + ahead) / 2, atol=1e-5, rtol=0)


def test_regions_are_activated_by_themselves() -> None:
    net, image = network(4), volume(26, 19, 11)
    found = streamed([net], image, label_values=[0, 1, 2, 3, 4], regions=[[1, 2], [2], [3, 4], [4]])
    settings = {"roi_size": SETTINGS["roi_size"], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    with torch.inference_mode():
        expected = sliding_window_inference(image[None], predictor=lambda x: torch.sigmoid(net(x)), **settings)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_large_volume_goes_through_a_file_that_leaves_no_trace(
    odd_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int
) -> None:
    net, image = network(0), volume(31, 14, 9)
    in_memory = streamed([net], image, axis=axis)
    monkeypatch.setattr(streaming, "IN_MEMORY", 0)
    scratch = odd_path / "scratch"
    assert torch.equal(streamed([net], image, axis=axis, scratch=scratch), in_memory)
    assert list(scratch.iterdir()) == []


def test_the_sums_cover_one_patch_depth_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = streaming._Sums.__init__

    def watch(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        made.append(tuple(self.total.shape))

    monkeypatch.setattr(streaming._Sums, "__init__", watch)
    streamed([network(0), network(1)], volume(60, 14, 9))
    streamed([network(0)], volume(14, 60, 9), axis=1)
    assert made == [(4, 12, 14, 9), (4, 10, 14, 9)]


def test_the_first_of_several_outputs_is_taken() -> None:
    net, image = network(0), volume(16, 12, 10)

    class Deep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [net(x), torch.zeros(1)]

    assert torch.equal(streamed([Deep()], image), streamed([net], image))


def test_bfloat16_is_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_engine, "has_bfloat16", lambda: True)
    net, image = network(0), volume(20, 12, 10)
    full, half = streamed([net], image), streamed([net], image, precision="bfloat16")
    assert 0 < (full - half).abs().max() < 0.05


def test_an_overflow_of_half_precision_is_computed_again_and_nan_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of_engine, "has_bfloat16", lambda: True)
    net = network(0)

    class Overflows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net(x) * (float("nan") if torch.is_autocast_enabled("cpu") else 1.0)

    image = volume(16, 12, 10)
    assert torch.equal(streamed([Overflows()], image, precision="bfloat16"), streamed([net], image))
    broken = network(1)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="network 2 of 2"):
        streamed([net, broken], image)


def test_no_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="no network"):
        streamed([], volume(12, 10, 8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_store_gives_back_what_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int) -> None:
    values = torch.randint(0, 65536, (3, 5, 6, 7)) / 65535
    for limit in (0, 2**20):
        monkeypatch.setattr(streaming, "IN_MEMORY", limit)
        with contextlib.closing(PlaneStore((5, 6, 7), 3, tmp_path, axis)) as store:
            for index in reversed(range(store.count)):
                store.write(index, values.narrow(1 + axis, index, 1))
            assert (store.read(1, 4) - values.narrow(1 + axis, 1, 3)).abs().max() < 1e-6
            assert (store.read(0, store.count) - values).abs().max() < 1e-6


def test_window_starts_cover_everything_and_end_flush() -> None:
    assert window_starts(10, 10, 0.5) == [0]
    assert window_starts(4, 10, 0.5) == [0]
    assert window_starts(25, 10, 0.5) == [0, 5, 10, 15]
    assert window_starts(11, 10, 0.9) == [0, 1]
    for size, patch, overlap in [(100, 17, 0.3), (51, 48, 0.625), (33, 32, 0.99)]:
        covered = np.zeros(size, bool)
        for start in window_starts(size, patch, overlap):
            covered[start : start + patch] = True
        assert covered.all()
