"""Weights to start from: where they are in what a user names, and of which network. Files alone, no torch here."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from autoseg.bundles.marks import (
    ARCHITECTURE,
    FOUND,
    base_family,
    bundle_weights,
    family_and_fold,
    is_expression,
    is_foreign_bundle,
    named_in,
)
from autoseg.errors import Fault, InputError
from autoseg.workspace import BUNDLE, atomic_file, is_full, parse_yaml, patiently, read_json

FIELD = "pretrained"
STATES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHTS, SETTINGS, NETWORK = "models/model.pt", "configs/hyper_parameters.yaml", "configs/network.yaml"
READ = (SETTINGS, NETWORK, FOUND)  # the last one by a search, over the settings
DATA = ("input_channels", "output_classes")  # a network's settings that follow from the data, not from the weights
UNZIPPED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)  # damaged, encrypted, odd


@dataclass(frozen=True)
class Weights:
    """A file of weights (`member`: in the zip archive `path`) and what its bundle says of the network, if it is ours.

    `settings` are the network's hyper-parameters, but for what follows from the data, and `roi_multiple`.
    """

    path: Path
    member: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def find_weights(given: str, family: str) -> Weights | None:
    """The weights in a state dict's file, a bundle (a folder or zip) or a work_dir of autoseg; None: none of `family`.

    Of a work_dir it is the family's fold of the best validation. Bundles of ours that name another family, and
    work_dirs without this one, give None; whose a state dict or another bundle is, only its tensors can say.
    InputError where there is no such thing.
    """
    path = Path(given).expanduser().absolute()
    if path.is_file() and path.suffix.lower() == ".zip":
        return _zipped(path, family)
    if path.is_file():
        if path.suffix.lower() not in STATES:
            raise _fault(path, f"is no file of weights ({', '.join(STATES)}), nor a bundle's zip")
        return _beside(path, family) or Weights(path)
    if not path.is_dir():
        raise _fault(path, "no such file or folder")
    if (path / WEIGHTS).is_file():
        return _in_bundle(path, family)
    bundles = sorted(b for b in path.glob("*_*/algo_object.json") if BUNDLE.fullmatch(b.parent.name))
    if not bundles:
        raise _fault(path, f"is neither a bundle ({WEIGHTS}) nor a work_dir with trained bundles")
    trained = [b.parent for b in bundles if bundle_weights(b.parent).is_file() and not is_foreign_bundle(b.parent)]
    if not trained:
        raise _fault(path, "none of its bundles is trained and of a family of autoseg's kind")
    own = [bundle for bundle in trained if base_family(family_and_fold(bundle)[0]) == base_family(family)]
    scores = _scores(path)
    return _in_bundle(max(own, key=lambda bundle: scores.get(bundle.name, -1.0)), family) if own else None


def copy_weights(weights: Weights, folder: Path) -> Path:
    """A copy of the weights in `folder`, named by their content: a run needs nothing that lies outside of it."""
    digest = hashlib.blake2b(digest_size=8)
    with _opened(weights) as file:
        while piece := file.read(2**20):
            digest.update(piece)
    target = folder / f"{digest.hexdigest()}.pt"

    def write() -> None:
        with _opened(weights) as file, atomic_file(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 2**20)

    if not target.is_file():
        patiently(write, target)
    return target


@contextmanager
def _opened(weights: Weights) -> Iterator[IO[bytes]]:
    with _readable(weights.path):
        if weights.member is None:
            with open(weights.path, "rb") as file:
                yield file
        else:
            with zipfile.ZipFile(weights.path) as archive, archive.open(weights.member) as member:
                yield member


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of reading as a fault of the file; that the disk written to is full is none."""
    try:
        yield
    except (*UNZIPPED, OSError) as error:
        if is_full(error):
            raise
        raise _fault(path, f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _zipped(path: Path, family: str) -> Weights | None:
    """The bundle in a zip archive, or of several at the same depth the only one of the family."""
    with _readable(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found = sorted((name for name in names if f"/{name}".endswith(f"/{WEIGHTS}")), key=lambda n: (n.count("/"), n))
        if not found:
            raise _fault(path, f"holds no {WEIGHTS}")
        alike = [name for name in found if name.count("/") == found[0].count("/")]
        own = []
        for name in alike:
            root = name.removesuffix(WEIGHTS)
            read = {part: archive.read(root + part) for part in READ if root + part in names}
            own.append(_described(Weights(path, name), read, family))
    mine = [weights for weights in own if weights is not None]
    if len(mine) > 1:
        raise _fault(path, f"holds several bundles: {', '.join(str(weights.member) for weights in mine)}")
    return mine[0] if mine else None


def _beside(path: Path, family: str) -> Weights | None:
    """A model.pt that was named itself, with what its bundle says."""
    whole = PurePosixPath(path.as_posix()).match(WEIGHTS)
    return _in_bundle(path.parents[1], family) if whole and (path.parents[1] / SETTINGS).is_file() else None


def _in_bundle(bundle: Path, family: str) -> Weights | None:
    with _readable(bundle):
        read = {name: (bundle / name).read_bytes() for name in READ if (bundle / name).is_file()}
    return _described(Weights(bundle / WEIGHTS), read, family)


def _described(weights: Weights, read: dict[str, bytes], family: str) -> Weights | None:
    """With the network's settings, where the bundle is one of ours; None where it is one of another family."""
    if SETTINGS not in read or NETWORK not in read:
        return weights
    try:
        settings, network = (parse_yaml(read[name].decode("utf-8")) for name in (SETTINGS, NETWORK))
        if isinstance(settings, dict) and settings.get("search") and FOUND in read:
            found = json.loads(read[FOUND].decode("utf-8"))
            settings |= {key: found[key] for key in ARCHITECTURE}
        wanted = named_in(json.dumps(network), settings) if isinstance(settings, dict) else {}
    except (yaml.YAMLError, ValueError, TypeError, LookupError) as error:
        raise _fault(weights.path, f"its bundle cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or "name" not in settings:
        return weights
    if base_family(str(settings["name"])) != base_family(family):
        return None
    wanted = {key: value for key, value in wanted.items() if key not in DATA}
    if settings.get("roi_multiple"):
        wanted["roi_multiple"] = settings["roi_multiple"]
    if odd := [key for key, value in wanted.items() if is_expression(value) or isinstance(value, dict)]:
        raise _fault(weights.path, f"its bundle's {', '.join(odd)} would be run or resolved by MONAI: nothing of it is")
    return Weights(weights.path, weights.member, wanted)


def _scores(work_dir: Path) -> dict[str, float]:
    """Mean Dice by bundle, as far as the leaderboard knows."""
    try:
        entries = read_json(work_dir / "leaderboard.json")["entries"]
        return {f"{entry['algo']}_{entry['fold']}": float(entry["mean_dice"] or 0.0) for entry in entries}
    except (InputError, LookupError, TypeError, ValueError):
        return {}


def _fault(path: Path, message: str) -> InputError:
    return InputError([Fault(str(path), FIELD, message)])
