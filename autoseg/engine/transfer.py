"""Start a network from the weights of another: matched by name and shape, adapted to other channels and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autoseg.bundles.pretrained import FIELD
from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import DamagedError, load_checkpoint
from autoseg.errors import Fault, InputError
from autoseg.workspace import write_json

ENVELOPES = ("state_dict", "model_state_dict", "model", "network", "net")  # under which others save their weights
WRAPPERS = ("module.", "_orig_mod.", "network.", "model.", "net.")  # of DistributedDataParallel, compile, Lightning
# layers that other code names otherwise: Swin's MLP in `model_swinvit.pt` and in MONAI
RENAMED = {".mlp.fc1.": ".mlp.linear1.", ".mlp.fc2.": ".mlp.linear2."}
SHARE = 0.5  # of the network's parameters or of the file's, which must fit: an encoder alone is all of its file
MOST_NAMED = 4
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Transfer:
    """What a network takes over from a file, by the network's names: as it is (`old`), or `adapted`, with the reason.

    `fresh` keep their own initial weights, `unused` are the file's that the network has not.
    """

    old: frozenset[str] = frozenset()
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = "; ".join(dict.fromkeys(self.adapted.values()))
        further = {
            f"{len(self.adapted)} adapted ({reasons})": self.adapted,
            f"{len(self.fresh)} new ({_some(self.fresh)})": self.fresh,
            f"{len(self.unused)} of the file unused ({_some(self.unused)})": self.unused,
        }
        whole = f"{len(self.old)} of {len(self.old) + len(self.adapted) + len(self.fresh)} tensors taken over"
        return ", ".join([whole, *(text for text, names in further.items() if names)])

    def write(self, path: Path) -> None:
        """As a table: one entry a tensor of the network, and the names of the file's others."""
        how = {**dict.fromkeys(sorted(self.old), "loaded"), **dict.fromkeys(self.fresh, "new"), **self.adapted}
        write_json(path, {"tensors": how, "unused": list(self.unused)})


def begin(bundle: Bundle) -> tuple[torch.nn.Module, Transfer]:
    """A bundle's network as its training begins, on the CPU: from its `pretrained` file, or fresh; `frozen` parts are.

    InputError where the file is of another architecture, or `frozen` names no part that it gives.
    """
    settings, network = bundle.settings, bundle.network()
    where = str(bundle.root / "configs" / "hyper_parameters.yaml")
    if not settings[FIELD]:
        if settings["frozen"]:
            raise InputError([Fault(where, "frozen", "nothing is pretrained that could be kept as it is")])
        return network, Transfer()
    path = bundle.path(FIELD)
    state, transfer = fit(network, read_state(path), settings, str(path))
    network.load_state_dict({**network.state_dict(), **state})
    trained = dict(network.named_parameters())
    for part in settings["frozen"]:
        found = [name for name in trained if f"{name}.".startswith(f"{part}.")]
        if not found:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in trained))
            raise InputError([Fault(where, "frozen", f"'{part}' is no part of the network, which has {parts}")])
        if new := [name for name in found if name in transfer.fresh]:
            message = f"'{part}' would keep random weights: the file does not give {_some(new)}"
            raise InputError([Fault(where, "frozen", message)])
        for name in found:
            trained[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in trained.values()):
        raise InputError([Fault(where, "frozen", "leaves nothing to train")])
    return network, transfer


def read_state(path: Path) -> Tensors:
    """Tensors by name of a file of weights, out of the envelopes and wrappers in which frameworks save them."""
    try:
        plain: Any = load_checkpoint(path)
    except FileNotFoundError:
        raise InputError([Fault(str(path), FIELD, "no such file")]) from None
    except DamagedError as error:
        raise InputError([Fault(str(path), FIELD, str(error))]) from error
    while envelope := next((key for key in ENVELOPES if isinstance(plain.get(key), Mapping)), None):
        plain = plain[envelope]
    state = {str(name): value for name, value in plain.items() if isinstance(value, torch.Tensor)}
    while wrapper := next((w for w in WRAPPERS if state and all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    if not state:
        raise InputError([Fault(str(path), FIELD, "holds no weights by name")])
    return state


def fit(network: torch.nn.Module, state: Tensors, settings: Mapping[str, Any], file: str) -> tuple[Tensors, Transfer]:
    """What `network` can take over of `state`, and how; InputError with the first mismatches where it is of another.

    Layers that see the image are adapted to other channels, those that give the classes to other classes. Every other
    layer of a name must have the same shape, and half of the network's parameters, or of the file's, must fit.
    """
    own, parameters = network.state_dict(), {name for name, _ in network.named_parameters()}
    state = _placed(state, own, network)
    taken, adapted, conflicts = Tensors(), dict[str, str](), []
    for name, there in ((name, there) for name, there in state.items() if name in own):
        here = own[name]
        if there.shape == here.shape:
            taken[name] = there.to(here.dtype)
        elif name not in parameters:
            continue  # a table that follows from the size of the network, or a layer's other name
        elif (made := _adapted(there, here, settings)) is not None:
            taken[name], adapted[name] = made
        else:
            conflicts.append(f"{name} is {_size(there)} there, {_size(here)} here")
    share = max(_numel(taken) / max(1, _numel(own)), _numel(taken) / max(1, _numel(state)))
    if conflicts or share < SHARE:
        told = f"{len(taken)} of its {len(own)} tensors fit"
        if not conflicts:
            conflicts = [f"there is no {name} in it" for name in own if name not in state]
        raise InputError([Fault(file, FIELD, f"is of another network: {told}; {_some(conflicts, '; ')}")])
    known = _told_once(own)
    old = frozenset(name for name in known if name in taken and name not in adapted)
    fresh = tuple(name for name in known if name not in taken)
    return taken, Transfer(old, adapted, fresh, tuple(name for name in state if name not in own))


def _told_once(own: Tensors) -> list[str]:
    """The names of a state dict but those under which a tensor stands once more, as in a DynUNet."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, value in own.items():
        first.setdefault((value.data_ptr() or id(value), value.shape), name)
    return list(first.values())


def _placed(state: Tensors, own: Tensors, network: torch.nn.Module) -> Tensors:
    """The file's names as the network's: below one of its parts where they fit best there, as an encoder's do."""
    prefixes = ["", *(f"{name}." for name, _ in network.named_children())]
    best = max(prefixes, key=lambda prefix: sum(prefix + name in own for name in state))
    placed = {}
    for name, value in state.items():
        known = [best + name, *(best + name.replace(*pair) for pair in RENAMED.items())]
        placed[next((one for one in known if one in own), best + name)] = value
    return placed


def _adapted(there: torch.Tensor, here: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, str] | None:
    """`there` for other channels (axis 1 of a kernel) or classes (axis 0); None where neither is the matter."""
    channels, classes = int(settings["input_channels"]), int(settings["output_classes"])
    if there.ndim != here.ndim:
        return None
    differ = [axis for axis in range(here.ndim) if there.shape[axis] != here.shape[axis]]
    if differ == [1] and here.shape[1] == channels and here.ndim > 2:
        # every channel sees what the mean of theirs saw; together they say as much as before
        mean = there.float().mean(1, keepdim=True) * (there.shape[1] / channels)
        return mean.expand_as(here).to(here.dtype).clone(), f"{there.shape[1]} to {channels} channels"
    if differ == [0] and here.shape[0] == classes:
        kept = 0 if settings["regions"] or len(there) == 1 else 1  # background stays what it was
        made = here.detach().float() + there[kept:].float().mean(0, keepdim=True)
        made[:kept] = there[:kept].float()
        return made.to(here.dtype), f"{there.shape[0]} to {classes} outputs"
    return None


def _numel(state: Tensors) -> int:
    return sum(value.numel() for value in state.values())


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Any, between: str = ", ") -> str:
    names = list(names)
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return between.join([*names[:MOST_NAMED], *more])
