"""What a bundle's scripts call: train, validate, infer. Sets up logging, runs, leaves the files DESIGN names."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from monai.data import MetaTensor

from autoseg.bundles.inference import referenced
from autoseg.bundles.marks import WINDOWS, architecture_file, out_of_fold_file, patch_file, validation_folder
from autoseg.bundles.writer import write_bundle
from autoseg.config import parse_value
from autoseg.datalist import case_id
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.memory import used_memory
from autoseg.engine.out_of_fold import OutOfFold
from autoseg.engine.predictor import Predictor
from autoseg.engine.ranks import Ranks, is_left_alone
from autoseg.engine.search import ArchitectureSearch
from autoseg.engine.trainer import Trainer
from autoseg.engine.validation import recall_dice
from autoseg.errors import AutosegError, one_line
from autoseg.evaluation import mean_dice, mean_dice_by_label, onto_grid_of
from autoseg.records import Case
from autoseg.workspace import read_json, read_yaml, write_json

# What Auto3DSeg's callers say that is no hyper-parameter of ours and changes no result: who calls, how a cache is
# filled, where it is logged.
IGNORED = {"rank", "image_save_func", "CUDA_VISIBLE_DEVICES", "multigpu", "mlflow_tracking_uri"}
IGNORED |= {"cache_rate", "train_cache_rate", "validate_cache_rate", "num_cache_workers", "log_output_file", "debug"}
IGNORED |= {"mlflow_experiment_name", "num_iterations_per_validation", "auto_scale_allowed", "auto_scale_batch"}
IGNORED |= {"auto_scale_roi", "auto_scale_filters"}
# by these the bundle's files are written one way or another
RENDERED = {"resample", "normalize_mode", "intensity_asinh", "image_files", "image_dims", "spatial_dims", "regions"}
RENDERED |= {"label_values", "output_classes", "class_names", "modality", "input_channels"}
RENDERED |= {"mirror_axes_inference", "mirror_pairs"}
PROBABILITIES_GB = 0.5  # of a bundle that does not say: of a foreign template, or of an older version
logger = logging.getLogger(__name__)


def train(root: Path, override: Mapping[str, Any]) -> None:
    """Train the bundle at `root`, then predict and score its validation fold at the original geometry.

    One without validation cases is asked, in a few windows, of what it was trained on: `recall_dice` in scores.json.
    """

    def work() -> None:
        ranks = Ranks.join(torch_device())
        with ranks.first_alone():
            bundle = _ready(root, override)
        if not ranks.first:
            logging.getLogger().setLevel(logging.WARNING)
        trainer = Trainer(bundle)
        if bundle.settings["pretrained"] and ranks.first:
            logger.info("%s: %s", bundle.path("pretrained").name, trainer.transfer)
            trainer.transfer.write(root / "pretrained.json")
        until_first_step = time.time() - psutil.Process().create_time()
        progress = trainer.run()
        ranks.part()
        own = Bundle.load(root).settings
        windows = {key: bundle.settings[key] for key in WINDOWS}
        if any(own[key] != value for key, value in windows.items()):
            write_json(patch_file(root), windows)
        facts = {
            "start_seconds": round(until_first_step, 1),
            "memory": used_memory(trainer.device),
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "returns": progress.returns,
            "parts": progress.parts,
            "roi_size": bundle.settings["roi_size"],
        }
        if not trainer.validation:
            facts["recall_dice"] = _recalled(trainer)
        mean = score_validation(bundle, facts)
        if progress.is_unscored:
            trainer.journal.write_history(progress.ended_with(mean))

    _scripted(root, work)


def _recalled(trainer: Trainer) -> float | None:
    """What the network knows of cases that it was trained on; None where it cannot be asked: that costs no training."""
    how = trainer.settings, trainer.device, trainer.autocast
    try:
        return recall_dice(trainer.average.module.eval(), trainer.training, *how)
    except (MemoryError, RuntimeError, OSError) as error:
        logger.warning("whether it has learned its cases is not known: %s", one_line(error))
        return None


def _ready(root: Path, override: Mapping[str, Any]) -> Bundle:
    """The bundle as it is to be trained: its architecture found, its files fit for inference."""
    patch_file(root).unlink(missing_ok=True)  # an earlier training's; the checkpoint knows this one's
    bundle = _bundle(root, override)
    if bundle.settings.get("search") and not architecture_file(root).is_file():
        ArchitectureSearch(bundle).run()
        bundle = _bundle(root, override)
    _keep_for_inference(bundle)
    return bundle


def find_architecture(root: Path, override: Mapping[str, Any]) -> None:
    """Search for the architecture of the bundle at `root`, which its training then takes; one that is there stays."""

    def work() -> None:
        if architecture_file(root).is_file():
            logger.info("%s is there: nothing is searched", architecture_file(root).name)
        else:
            ArchitectureSearch(_bundle(root, override)).run()

    _scripted(root, work)


def validate(root: Path, override: Mapping[str, Any]) -> None:
    """Predict and score the validation fold of a trained bundle; what scores.json says of its training stays."""

    def work() -> None:
        path = root / "scores.json"
        score_validation(_bundle(root, override), read_json(path) if path.is_file() else {})

    _scripted(root, work)


def infer(root: Path, image: str, output: str, override: Mapping[str, Any]) -> None:
    """Write the label map of one image file to `output`."""

    def work() -> None:
        bundle = _bundle(root, override)
        case = Case(case_id(image), (str(Path(image).absolute()),))
        Predictor([bundle], torch_device()).write(case, Path(output))

    _scripted(root, work)


def score_validation(bundle: Bundle, facts: Mapping[str, Any]) -> float:
    """Mean Dice of the bundle's fold, with its best weights.

    Writes scores.json, validation/<case>.nii.gz and <case>.npz, the probabilities around the foreground, as far as
    `probabilities_gb` lets.

    In scores.json a row a case and label: Dice, the one that the probabilities expect, and what the setting
    `scored_metrics` names.
    """
    _, cases = bundle.cases()
    scored = Classes.of(bundle.settings).scored
    further = [name for name in bundle.settings["scored_metrics"] if name != "dice"]
    labels, tolerance = sorted(scored.names), float(bundle.settings["tolerance_mm"])
    predicting = 0.0  # seconds
    rows: list[dict[str, Any]] = []
    scores = []
    predictor = Predictor([bundle], torch_device())
    room = int(1e9 * float(bundle.settings.get("probabilities_gb", PROBABILITIES_GB)))
    told = room <= 0
    for stale in validation_folder(bundle.root).glob("*.npz"):
        stale.unlink()
    for case in (c for c in cases if c.label):
        path = validation_folder(bundle.root) / f"{case.id}.nii.gz"
        started = time.monotonic()
        _, _, expected, _, collected = predictor.write(case, path, keep=room > 0)
        predicting += time.monotonic() - started
        prediction = scored.read(path)
        reference, _ = onto_grid_of(prediction, scored.read(str(case.label)))
        scores.append(scored.dice(prediction.data, reference.data))
        logger.info("validated %s", case.id)  # a sign of life
        both = prediction.data, reference.data
        taken = collected.taken(reference.data, scored, reference.spacing) if collected is not None else None
        if taken is not None:
            room -= _kept(taken, out_of_fold_file(bundle.root, case.id))
        elif not told:
            told = True
            logger.info("%s and what follows: probabilities are not kept, for want of room", case.id)
        more = scored.metrics(*both, reference.spacing, tolerance, labels) if further else {}
        rows += [
            {"case": case.id, "label": int(k), "dice": v, "expected": expected[int(k)]}
            | {name: more[int(k)][name] for name in further}
            for k, v in scores[-1].items()
        ]
    mean = mean_dice(scores)
    found = {"mean_dice": mean, "dice": mean_dice_by_label(scores), "cases": rows}
    found["seconds_a_case"] = round(predicting / len(scores), 3) if scores else None
    write_json(bundle.root / "scores.json", {**facts, **found})
    logger.info("validation at the original geometry: %d cases, mean Dice %.4f", len(scores), mean)
    return mean


def _kept(taken: OutOfFold, path: Path) -> int:
    """Bytes of the file that was written; a disk that is full costs the file, not the scores."""
    try:
        return taken.save(path)
    except OSError as error:
        logger.warning("the probabilities of %s are not kept: %s", path.name, error)
        return 0


class Inferer:
    """Auto3DSeg's InferClass: `infer` gives class probabilities [C, ...] on the image's own grid."""

    def __init__(self, root: Path, override: Mapping[str, Any]):
        self.predictor = Predictor([_bundle(root, override)], torch_device())

    def infer(self, image_file: Any, save_mask: bool = False) -> MetaTensor:
        """Probabilities of one image, given as a path, a list of channels or {"image": ...}."""
        image = image_file["image"] if isinstance(image_file, Mapping) else image_file
        paths = [str(p) for p in (image if isinstance(image, (list, tuple)) else [image])]
        case = Case(case_id(paths[0]), tuple(paths))
        probabilities, affine = self.predictor.probabilities(case)
        meta = {"filename_or_obj": paths[0], "original_affine": affine}
        return MetaTensor(torch.from_numpy(probabilities), affine=torch.as_tensor(affine), meta=meta)


def fold_cases(bundle_root: str, part: str, dataroot: str | None = None) -> list[dict[str, Any]]:
    """The cases of a bundle's fold as MONAI data dictionaries; `part` is training or validation."""
    bundle = Bundle.load(bundle_root, {"dataroot": dataroot} if dataroot else None)
    training, validation = bundle.cases()
    return [bundle.item(case, with_label=True) for case in (training if part == "training" else validation)]


class BundleTrainer:
    """The trainer that train.yaml names: `run` is what `scripts/train.py run` does, with the same overrides.

    A `max_epochs` that differs from the bundle's num_epochs is meant to count: it puts aside a num_iterations that
    is the bundle's own.
    """

    def __init__(self, bundle_root: str, max_epochs: int | None, overrides: Mapping[str, Any] | None = None):
        self.root, self.max_epochs = Path(bundle_root).resolve(), max_epochs
        self.overrides = dict(overrides or {})

    def run(self) -> None:
        """Train and score the bundle."""
        own = Bundle.load(self.root).settings
        changed = {"num_epochs": self.max_epochs}
        if self.max_epochs != own["num_epochs"] and self.overrides.get("num_iterations") == own["num_iterations"]:
            changed["num_iterations"] = None
        train(self.root, {**self.overrides, **changed})


def _bundle(root: Path, override: Mapping[str, Any]) -> Bundle:
    """The bundle with overrides as a command line gives them.

    MONAI writes lists as text ('16,16,16'), fire makes tuples of them; Auto3DSeg's `training#num_epochs` is num_epochs.
    """
    own = Bundle.load(root).settings
    names = {name: name.rpartition("#")[2] for name in override}
    known = {
        key: _as_held(own.get(key), override[name]) for name, key in names.items() if key in own or key not in IGNORED
    }
    return Bundle.load(root, known)


def _keep_for_inference(bundle: Bundle) -> None:
    """Write overrides without which the weights cannot be used (width, patch, spacing) into the bundle's files.

    Fewer windows than planned stand in `patch_file` once the weights are there.
    """
    own = Bundle.load(bundle.root).settings
    needed = referenced(bundle.settings, read_yaml(bundle.root / "configs" / "network.yaml"))
    needed |= {key: bundle.settings[key] for key in RENDERED}
    needed["overlap"] = own["overlap"]
    if not needed["mirror_axes_inference"] and all(own[key] == needed[key] for key in ("regions", "mirror_pairs")):
        needed["mirror_axes_inference"] = own["mirror_axes_inference"]
    if any(own[key] != value for key, value in needed.items()):
        write_bundle(bundle.root, {**own, **needed})


def _as_held(held: Any, value: Any) -> Any:
    """`value` in the form of the one that the bundle holds: a list where that is one."""
    if isinstance(value, str) and not isinstance(held, str):
        value = parse_value(value)
    if isinstance(value, tuple):
        return list(value)
    return [value] if isinstance(held, list) and isinstance(value, (int, float)) else value


def _scripted(root: Path, work: Callable[[], object]) -> None:
    """Run `work` with logging to the screen and training.log; bad input ends in exit code 2, in one line each."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers.append(logging.FileHandler(root / "training.log", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    warnings.filterwarnings("ignore", module="monai|torch|nibabel")
    try:
        work()
    except AutosegError as error:
        logger.error("%s", error)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        if is_left_alone(error):
            raise SystemExit(1) from None
        logger.exception("failed")
        raise
