"""Predictions: back on the image's own grid, in bounded memory, as MONAI would have them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SegResNetDS
from monai.transforms import Compose, CropForegroundd, Invertd, LoadImaged, Orientationd, Spacingd

from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import save_checkpoint
from autoseg.engine.combination import Combination, PostProcessing
from autoseg.engine.geometry import AxisMap
from autoseg.engine.predictor import Predictor, tempered
from autoseg.engine.streaming import PlaneStore, stream_probabilities, window_starts
from autoseg.records import Case

MakeBundle = Callable[..., Path]
CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"roi_size": [16, 16, 16], "overlap": 0.5, "sw_batch_size": 2, "spatial_dims": 3}
SETTINGS |= {"label_values": [0, 1, 2], "regions": None}


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return SegResNetDS(init_filters=8, out_channels=3, blocks_down=(1, 1), norm="INSTANCE").eval()


def streamed(networks: list[torch.nn.Module], image: torch.Tensor, **changes: Any) -> torch.Tensor:
    store = stream_probabilities(networks, image, {**SETTINGS, **changes}, CPU, contextlib.nullcontext)
    return store.read(0, image.shape[1])


class Softmax(torch.nn.Module):
    """Averages in MONAI's sliding window what ours averages."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner(x), 1)


@pytest.mark.parametrize("shape", [(40, 23, 17), (12, 30, 9), (16, 16, 16)])
@torch.no_grad()
def test_streaming_equals_monai_s_sliding_window(shape: tuple[int, ...]) -> None:
    net = network(0)
    image = torch.randn(1, *shape)
    expected = sliding_window_inference(image[None], (16, 16, 16), 2, Softmax(net), overlap=0.5, mode="gaussian")[0]
    ours = streamed([net], image)
    assert torch.allclose(ours, expected, atol=2e-3)  # kept as float16
    assert (ours.argmax(0) == expected.argmax(0)).float().mean() > 0.999


def test_networks_in_lockstep_are_the_mean_of_each_alone() -> None:
    nets, image = [network(i) for i in range(3)], torch.randn(1, 20, 20, 20)
    alone = torch.stack([streamed([n], image) for n in nets]).mean(0)
    assert torch.allclose(streamed(nets, image), alone, atol=2e-3)


def test_mirroring_makes_a_prediction_symmetric() -> None:
    image = torch.randn(1, 16, 16, 16)
    one = streamed([network(0)], image, mirror_axes_inference=[0])
    other = streamed([network(0)], image.flip(1), mirror_axes_inference=[0]).flip(1)
    assert torch.allclose(one, other, atol=2e-3)


def test_windows_cover_every_voxel_and_end_flush() -> None:
    for size, patch in itertools.product((1, 7, 16, 17, 50), (7, 16)):
        starts = window_starts(size, patch, 0.5)
        covered = {v for s in starts for v in range(s, s + patch)}
        assert covered >= set(range(size))
        assert starts[-1] == max(0, size - patch)


def test_large_stores_go_to_disk_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.engine.streaming.IN_MEMORY", 10)
    store = PlaneStore((5, 4, 3), 2, tmp_path / "scratch")
    planes = torch.rand(2, 5, 4, 3)
    store.write(0, planes)
    assert torch.allclose(store.read(1, 4), planes[:, 1:4], atol=1e-3)
    store.close()
    assert not list((tmp_path / "scratch").iterdir())


def oblique_free_affine(codes: str, spacing: tuple[float, float, float], shape: tuple[int, ...]) -> np.ndarray:
    """An affine with the given axis codes."""
    start = nib.orientations.axcodes2ornt("RAS")
    end = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(start, end)
    return np.diag([*spacing, 1.0]) @ nib.orientations.inv_ornt_aff(turn, shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "SLP"])
@pytest.mark.parametrize("pixdim", [None, (1.5, 1.5, 1.5)])
def test_the_way_back_equals_monai_s_inverse(tmp_path: Path, codes: str, pixdim: tuple[float, ...] | None) -> None:
    """Smooth probabilities, made on the network's grid, land on the file's grid as Invertd puts them."""
    random = np.random.default_rng(0)
    data = np.zeros((22, 26, 18), np.float32)
    data[3:20, 4:22, 2:15] = random.uniform(0.5, 1, (17, 18, 13))
    affine = oblique_free_affine(codes, (1.0, 1.2, 2.0), data.shape)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "image.nii.gz")  # type: ignore[attr-defined]
    steps: list[Any] = [LoadImaged("image", image_only=True, ensure_channel_first=True)]
    steps += [Orientationd("image", axcodes="RAS", labels=None), CropForegroundd("image", "image", allow_smaller=True)]
    steps += [Spacingd("image", pixdim=pixdim, padding_mode="border")] if pixdim else []
    forward = Compose(steps)
    found = forward({"image": str(tmp_path / "image.nii.gz")})
    image = found["image"]
    grid = torch.stack(torch.meshgrid(*(torch.linspace(0, 3, n) for n in image.shape[1:]), indexing="ij")).sin().abs()
    found["pred"] = type(image)(grid, meta=dict(image.meta), applied_operations=list(image.applied_operations))
    back = Invertd("pred", forward, "image", nearest_interp=False)(found)["pred"].numpy()
    mapped = AxisMap.between(image.affine.numpy(), image.shape[1:], affine, data.shape)
    length = data.shape[mapped.chunk_axis]
    chunks = []
    for start in range(0, length, 5):
        stop = min(length, start + 5)
        first, last = mapped.planes(start, stop)
        chunks.append(mapped.resample(grid[:, first:last], first, start, stop))
    ours = torch.cat(chunks, 1 + mapped.chunk_axis).numpy()
    inside = tuple(slice(5, -7) for _ in range(3))  # MONAI pads the crop with zeros and resamples with its own border
    assert ours.shape == back.shape
    assert np.abs(ours - back)[(slice(None), *inside)].max() < 0.02


def test_rotated_grids_are_refused() -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="rotated"):
        AxisMap.between(np.eye(4), (4, 4, 4), turned, (4, 4, 4))


@pytest.fixture
def trained(make_bundle: MakeBundle) -> list[Bundle]:
    """Three bundles with random weights."""
    bundles = []
    for number in range(3):
        bundle = Bundle.load(make_bundle(name=f"segresnet_{number}"))
        torch.manual_seed(number)
        save_checkpoint(bundle.weights, bundle.network().state_dict())
        bundles.append(bundle)
    return bundles


def test_label_maps_keep_the_geometry_and_the_label_values(trained: list[Bundle], tmp_path: Path) -> None:
    case = trained[0].datalist().testing[0]
    for bundle in trained:
        bundle.settings["label_values"] = [0, 1, 300]
    written = Predictor(trained, CPU).write(case, tmp_path / "out" / "x.nii.gz").labels
    image, source = nib.load(tmp_path / "out" / "x.nii.gz"), nib.load(case.image[0])  # type: ignore[attr-defined]
    assert image.shape == source.shape
    assert np.allclose(image.affine, source.affine)
    assert image.get_data_dtype() == np.uint16
    assert set(np.unique(written)) <= {0, 1, 300}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
def test_a_tilted_gantry_shears_no_answer(make_bundle: MakeBundle, tmp_path: Path, codes: str) -> None:
    """Resampled along its own axes, a sheared image is what its voxels are at right angles."""
    bundle = Bundle.load(make_bundle(resample=True, resample_to_spacing=[1.3, 1.3, 1.3]))
    save_checkpoint(bundle.weights, bundle.network().state_dict())
    case = bundle.datalist().testing[0]
    image, label = (nib.load(str(path)) for path in (case.image[0], case.label))
    shear = np.eye(4)
    shear[1, 2] = 0.4
    upright = oblique_free_affine(codes, (1.0, 1.1, 2.0), image.shape)
    sheared = shear @ upright
    sides = np.linalg.norm(sheared[:3, :3], axis=0) / np.linalg.norm(upright[:3, :3], axis=0)
    seen, written = {}, {}
    for name, affine in (("straight", upright @ np.diag([*sides, 1.0])), ("sheared", sheared)):
        paths = [str(tmp_path / f"{name}_{part}.nii.gz") for part in ("image", "label")]
        for source, path in zip((image, label), paths, strict=True):
            nib.save(nib.Nifti1Image(np.asarray(source.dataobj), affine), path)
        put = Case(name, (paths[0],), paths[1])
        seen[name] = bundle.preprocessed(put, with_label=True)
        Predictor([bundle], CPU).write(put, tmp_path / f"{name}.nii.gz")
        written[name] = nib.load(tmp_path / f"{name}.nii.gz")
    assert np.allclose(written["sheared"].affine, sheared)
    for key in ("image", "label"):
        assert seen["sheared"][key].shape == seen["straight"][key].shape
        assert torch.allclose(*(seen[name][key].as_tensor() for name in seen), atol=1e-3)
    labels = [np.asarray(one.dataobj) for one in written.values()]
    assert labels[0].shape == image.shape and (labels[0] == labels[1]).mean() > 0.999


def test_mean_and_vote(trained: list[Bundle]) -> None:
    case = trained[0].datalist().testing[0]
    each = [Predictor([b], CPU).probabilities(case)[0] for b in trained]
    mean = Predictor(trained, CPU).predict(case).labels
    assert (mean == np.mean(each, 0).argmax(0)).mean() > 0.995  # random networks are near ties, stores are float16
    votes = sum(np.eye(3)[p.argmax(0)] for p in each) + 0.5 * np.moveaxis(np.mean(each, 0), 0, -1)
    voted = Predictor(trained, CPU, combination=Combination("vote")).predict(case).labels
    assert (voted == votes.argmax(-1)).mean() > 0.995


def test_probabilities_are_classes_first_and_sum_to_one(trained: list[Bundle]) -> None:
    case = Case("x", trained[0].datalist().testing[0].image)
    probabilities, _ = Predictor(trained[:1], CPU).probabilities(case)
    assert probabilities.shape[0] == 3
    assert np.allclose(probabilities.sum(0), 1, atol=5e-3)


def test_weights_count_and_the_rest_goes_by_one(trained: list[Bundle]) -> None:
    case = trained[0].datalist().testing[0]
    each = [Predictor([b], CPU).probabilities(case)[0] for b in trained]
    weighed = Combination(weights={trained[0].root.name: 3.0, trained[1].root.name: 0.5})
    found = Predictor(trained, CPU, weighed).probabilities(case)[0]
    assert np.allclose(found, (3 * each[0] + 0.5 * each[1] + each[2]) / 4.5, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_changes_how_sure_it_is_and_no_label(trained: list[Bundle], temperature: float) -> None:
    case = trained[0].datalist().testing[0]
    plain, warm = (Predictor(trained, CPU, Combination(temperature=t)) for t in (1.0, temperature))
    before, after = plain.probabilities(case)[0], warm.probabilities(case)[0]
    powers = before ** (1 / temperature)
    wanted = np.where(before[1:].max(0) >= 0.01, powers / powers.sum(0), before)
    assert np.allclose(after, wanted, atol=1e-4) and not np.allclose(before, after, atol=1e-2)
    assert (plain.predict(case).labels == warm.predict(case).labels).all()


@pytest.mark.parametrize("regions", [False, True])
def test_far_background_keeps_its_probability(regions: bool) -> None:
    far = torch.tensor([[0.999], [0.0005], [0.0005]])
    assert torch.equal(tempered(far[1:] if regions else far, 3.0, regions), far[1:] if regions else far)
    near = torch.tensor([[0.3], [0.6]])
    found = tempered(near, 2.0, regions)
    odds = (near / (1 - near)).sqrt() if regions else None
    wanted = odds / (1 + odds) if odds is not None else near.sqrt() / near.sqrt().sum(0)
    assert torch.allclose(found, wanted)


def test_post_processing_is_done_to_what_is_written(trained: list[Bundle], tmp_path: Path) -> None:
    case = trained[0].datalist().testing[0]
    plain = Predictor(trained, CPU).predict(case)
    rule = PostProcessing(largest=True)
    found = Predictor(trained, CPU, Combination(post_processing={1: rule})).write(case, tmp_path / "x.nii.gz")
    kept = rule(plain.labels == 1, plain.labels == 0, 1.0)
    assert ((found.labels == 1) == kept).all() and kept.sum() < (plain.labels == 1).sum()
    assert (found.labels[plain.labels == 2] == 2).all() and found.expected == plain.expected
