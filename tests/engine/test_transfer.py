"""Weights from elsewhere: what is taken over, what is adapted, what is refused, and how the old layers then learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNetDS, SwinUNETR

from autoseg.engine.bundle import Bundle
from autoseg.engine.entry import train
from autoseg.engine.recipe import build_optimizer, group_rate, moved
from autoseg.engine.trainer import Hook, Trainer
from autoseg.engine.transfer import begin, fit, read_state
from autoseg.errors import InputError

MakeBundle = Callable[..., Path]
HERE = {"input_channels": 1, "output_classes": 3, "regions": None}


def network(channels: int = 1, classes: int = 3, **changes: Any) -> SegResNetDS:
    own = {"init_filters": 8, "blocks_down": (1, 1), "dsdepth": 1, "norm": "INSTANCE", **changes}
    return SegResNetDS(spatial_dims=3, in_channels=channels, out_channels=classes, **own)


def unet() -> DynUNet:
    strides, own = [[1, 1, 1], [2, 2, 2], [2, 2, 2]], {"deep_supervision": True, "deep_supr_num": 1}
    kernels = [[3, 3, 3]] * 3
    return DynUNet(3, 1, 3, kernels, strides, strides[1:], filters=[4, 8, 16], norm_name="instance", **own)


def numbered(source: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that no initialisation gives."""
    return {name: torch.full_like(value, 1 + n) for n, (name, value) in enumerate(source.state_dict().items())}


def test_weights_of_the_same_network_are_all_taken_over() -> None:
    state = numbered(network())
    taken, found = fit(network(), state, HERE, "file")
    assert not found.adapted and not found.fresh and not found.unused
    assert found.old == set(state) and all(torch.equal(taken[name], state[name]) for name in state)


@pytest.mark.parametrize("there", [1, 4])
@pytest.mark.parametrize("here", [1, 2, 4])
def test_the_first_layer_gives_the_same_for_alike_channels(there: int, here: int) -> None:
    """An image that stands in every channel looks as it did to the network of other channels."""
    source, target = network(there).eval(), network(here).eval()
    taken, found = fit(target, source.state_dict(), {**HERE, "input_channels": here}, "file")
    assert len(found.adapted) == (here != there)
    target.load_state_dict(taken)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        before, after = (net(image.expand(-1, n, -1, -1, -1)) for net, n in ((source, there), (target, here)))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)


def test_the_last_layer_keeps_background_and_begins_every_class_as_foreground() -> None:
    source, target = network(classes=3), network(classes=5)
    taken, found = fit(target, source.state_dict(), {**HERE, "output_classes": 5}, "file")
    (kernel, bias) = found.adapted
    old, fresh, new = source.state_dict()[kernel], target.state_dict()[kernel], taken[kernel]
    assert torch.equal(new[0], old[0]) and found.adapted[kernel] == "3 to 5 outputs"
    torch.testing.assert_close(new[1:], fresh[1:] + old[1:].mean(0, keepdim=True))
    assert not torch.equal(new[1], new[2]), "classes must be able to part"
    assert taken[bias].shape == (5,)


def test_regions_have_no_background() -> None:
    source, target = network(classes=3), network(classes=2)
    taken, found = fit(target, source.state_dict(), {**HERE, "output_classes": 2, "regions": [[1, 2], [2]]}, "file")
    kernel = next(iter(found.adapted))
    old, fresh = source.state_dict()[kernel], target.state_dict()[kernel]
    torch.testing.assert_close(taken[kernel], fresh + old.mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (network(init_filters=16), "is 16x1x3x3x3 there, 8x1x3x3x3 here"),
        (torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.Conv3d(8, 3, 1)), "there is no "),
        (SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)), "there is no "),
    ],
    ids=["wider", "unrelated", "swinunetr"],
)
def test_another_architecture_is_refused_with_the_mismatch(other: torch.nn.Module, said: str) -> None:
    target = network()
    with pytest.raises(InputError) as refused:
        fit(target, other.state_dict(), HERE, "weights.pt")
    (fault,) = refused.value.faults
    assert (fault.file, fault.field) == ("weights.pt", "pretrained")
    assert "is of another network" in fault.message and said in fault.message


def test_an_encoder_pretrained_as_swin_s_is_found_below_the_network_s(tmp_path: Path) -> None:
    """The layout of `model_swinvit.pt`: an envelope, DataParallel's prefix, the MLP's old names, heads of its tasks."""
    source = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)).swinViT
    state = {f"module.{name}": value for name, value in numbered(source).items()}
    state = {name.replace("mlp.linear", "mlp.fc"): value for name, value in state.items()}
    state |= {"module.rotation_head.weight": torch.zeros(4, 96), "module.rotation_head.bias": torch.zeros(4)}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, tmp_path / "model_swinvit.pt")
    target = SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    taken, found = fit(target, read_state(tmp_path / "model_swinvit.pt"), {**HERE, "input_channels": 2}, "file")
    assert set(taken) == {f"swinViT.{name}" for name in source.state_dict()}
    assert list(found.adapted) == ["swinViT.patch_embed.proj.weight"]
    assert found.unused == ("swinViT.rotation_head.weight", "swinViT.rotation_head.bias")
    assert any(name.startswith("encoder1.") for name in found.fresh)


def test_names_that_the_network_has_itself_are_left_alone() -> None:
    """As an MLP of its own that is called as Swin's was before MONAI."""
    block = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4)})})
    target = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])})
    _, found = fit(target, numbered(target), HERE, "file")
    assert found.old == set(target.state_dict()) and not found.unused


def test_a_tensor_with_two_names_is_told_once() -> None:
    target = unet()
    taken, found = fit(target, numbered(target), HERE, "file")
    assert set(taken) == set(target.state_dict())
    assert len(found.old) == len(list(target.parameters())) and not found.fresh


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "model.network."])
def test_wrappers_of_frameworks_are_taken_off(tmp_path: Path, wrap: str) -> None:
    torch.save({wrap + name: value for name, value in network().state_dict().items()}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt").keys() == network().state_dict().keys()


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("weights")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, said in (("text.pt", "no tensor"), ("none.pt", "no weights by name"), ("away.pt", "no such file")):
        with pytest.raises(InputError, match=said):
            read_state(tmp_path / name)


def test_frozen_parts_and_those_that_wait_for_the_head() -> None:
    settings = {"learning_rate": 1.0, "weight_decay": 0.0, "optimizer": "adamw"}
    target = network()
    target.encoder.requires_grad_(False)
    names = [name for name, _ in target.named_parameters()]
    head = [name for name in names if "head" in name]
    groups = build_optimizer(target, settings, set(names) - set(head)).param_groups
    assert [len(group["params"]) for group in groups] == [
        len(head),
        sum(not n.startswith("encoder.") for n in names) - len(head),
    ]
    said = {"head_warmup": 0.2, "pretrained_rate": 0.1}
    assert [group_rate(said, group, 0.1) for group in groups] == [1.0, 0.0]
    assert [group_rate(said, group, 0.2) for group in groups] == [1.0, 0.1]
    (alone,) = build_optimizer(network(), settings, names).param_groups
    assert group_rate(said, alone, 0.1) == 0.1, "where there is no head to warm, nothing waits"
    (fresh,) = build_optimizer(network(), settings).param_groups
    assert group_rate(said, fresh, 0.1) == 1.0


def test_what_waits_has_no_part_in_the_length_of_a_step() -> None:
    target = network()
    for parameter in target.parameters():
        parameter.grad = torch.ones_like(parameter)
    head = [name for name, _ in target.named_parameters() if "head" in name]
    settings = {"learning_rate": 1.0, "weight_decay": 0.0, "optimizer": "adamw"}
    optimizer = build_optimizer(target, settings, {name for name, _ in target.named_parameters()} - set(head))
    optimizer.param_groups[1]["lr"] = 0.0
    assert moved(optimizer) == optimizer.param_groups[0]["params"]
    assert {name for name, parameter in target.named_parameters() if parameter.grad is not None} == set(head)


@pytest.fixture
def source(make_bundle: MakeBundle) -> Path:
    """Weights of a training, as another framework would save them."""
    root = make_bundle(name="source_0", seed=7)
    Trainer(Bundle.load(root)).run()
    return root / "models" / "model.pt"


def test_a_training_starts_from_the_file_and_says_so(make_bundle: MakeBundle, source: Path) -> None:
    root = make_bundle(pretrained=str(source), num_iterations=2)
    began, _ = begin(Bundle.load(root))
    there = torch.load(source, weights_only=True)
    assert all(torch.equal(value, there[name]) for name, value in began.state_dict().items())
    train(root, {})
    table = json.loads((root / "pretrained.json").read_text())
    assert set(table["tensors"].values()) == {"loaded"} and table["unused"] == []
    assert "tensors taken over" in (root / "training.log").read_text()


def test_frozen_parts_keep_the_file_s_weights(make_bundle: MakeBundle, source: Path) -> None:
    root = make_bundle(pretrained=str(source), frozen=["encoder"], num_iterations=2)
    Trainer(Bundle.load(root)).run()
    there, here = (torch.load(path, weights_only=True) for path in (source, root / "models" / "model_final.pt"))
    same = {name for name in here if torch.equal(here[name], there[name])}
    assert same >= {name for name in here if name.startswith("encoder.")}
    assert {name for name in here if name.startswith("up_layers.")} - same


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frozen": ["encoder"], "pretrained": None}, "nothing is pretrained"),
        ({"frozen": ["encodr"]}, "'encodr' is no part of the network, which has encoder, up_layers"),
        ({"frozen": ["encoder", "up_layers"]}, "leaves nothing to train"),
    ],
)
def test_bad_parts_are_refused(make_bundle: MakeBundle, source: Path, settings: dict[str, Any], said: str) -> None:
    root = make_bundle(**{"pretrained": str(source), **settings})
    with pytest.raises(InputError, match=said):
        Trainer(Bundle.load(root))


def test_what_the_file_does_not_give_is_not_frozen(make_bundle: MakeBundle, tmp_path: Path, source: Path) -> None:
    state = torch.load(source, weights_only=True)
    torch.save({name: v for name, v in state.items() if not name.startswith("up_layers.")}, tmp_path / "part.pt")
    root = make_bundle(pretrained=str(tmp_path / "part.pt"), frozen=["up_layers"])
    with pytest.raises(InputError, match="'up_layers' would keep random weights"):
        begin(Bundle.load(root))


def test_a_training_can_begin_anew_from_the_file(make_bundle: MakeBundle, source: Path) -> None:
    """Where the loss goes astray before there is a checkpoint; the average, too, is of the file's weights again."""
    trainer = Trainer(Bundle.load(make_bundle(pretrained=str(source), num_iterations=3)))
    trainer.run()
    trainer._begin()
    there = torch.load(source, weights_only=True)
    for state in (trainer.network.state_dict(), trainer.average.module.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in there.items())


def test_resuming_a_fine_tuning_ends_with_the_same_weights(
    make_bundle: MakeBundle, source: Path, stop_at: Callable[[int], Hook]
) -> None:
    own = {"pretrained": str(source), "pretrained_rate": 0.1, "frozen": ["encoder"]}
    whole, torn = make_bundle(name="whole_0", **own), make_bundle(name="torn_0", **own)
    Trainer(Bundle.load(whole)).run()
    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(torn), hooks=(stop_at(4),)).run()
    Trainer(Bundle.load(torn)).run()
    a, b = (torch.load(root / "models" / "model_final.pt", weights_only=True) for root in (whole, torn))
    assert all(torch.equal(a[name], b[name]) for name in a)
