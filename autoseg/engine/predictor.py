"""Predict a case by one or many trained bundles: memory bounded by the case, whatever the number of models."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError

from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.combination import Combination, post_processed
from autoseg.engine.expected import ExpectedDice, uncertainty
from autoseg.engine.foreign import ForeignBundle
from autoseg.engine.geometry import AxisMap, file_grid, longest_axis, straightened
from autoseg.engine.memory import with_less
from autoseg.engine.out_of_fold import LEAST, Collector
from autoseg.engine.precision import autocast_for
from autoseg.engine.progress import in_voxels
from autoseg.engine.streaming import PlaneStore, stream_probabilities
from autoseg.errors import one_line
from autoseg.planning.patch import halved_patch
from autoseg.records import Case, Event

CHUNK_BYTES = 128 * 2**20  # of probabilities on the way back to the image's grid, held a few times over
WEIGHT_BYTES = 2 * 2**30  # of weights held at once: what is more takes turns
logger = logging.getLogger(__name__)


class Predicted(NamedTuple):
    """A predicted case: label values [X, Y, Z] on the image's own grid, or masks [X, Y, Z, R] of regions that no label
    map can hold; its affine; the expected Dice by label (see `ExpectedDice`); percent of doubt [X, Y, Z] and the
    probabilities around the foreground, if asked for.
    """

    labels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    expected: dict[int, float | None]
    uncertainty: npt.NDArray[np.uint8] | None = None
    collected: Collector | None = None


class Answer(NamedTuple):
    """What some members say together, the mean of their probabilities, with its way to the image's grid; how much
    that counts.
    """

    store: PlaneStore
    grid: AxisMap
    weight: float


class Predictor:
    """Bundles with the same labels, combined by the mean of their probabilities or by vote, as `combination` says.

    Bundles that agree in preprocessing, windows and weight share both: their networks run in lockstep, as many as
    `WEIGHT_BYTES` hold. A vote keeps them apart and is decided, where tied, by the mean.
    A temperature T makes probabilities p into p^(1/T), made to sum up to 1 (of a region, into the logistic function of
    logit(p) / T), where any class but the background has LEAST or more; no decision changes. Post-processing changes
    labels, not what is expected of them.
    A foreign bundle that raises for a case is left out of it with a "warning" event, as long as others answer.
    `networks`: by bundle, instead of those that its weights make.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        device: torch.device,
        combination: Combination | None = None,
        scratch: Path | None = None,
        notify: Callable[[Event], None] = lambda event: None,
        networks: Mapping[Path, torch.nn.Module] | None = None,
    ):
        self.given = networks or {}
        self.combination = combination or Combination()
        self.device, self.mode, self.scratch, self.notify = device, self.combination.mode, scratch, notify
        self.classes = Classes.of(bundles[0].settings)
        self._preprocessing = {bundle.root: bundle.preprocessing_key() for bundle in bundles}
        groups: dict[Any, list[Bundle]] = {}
        for bundle in bundles:
            windows = ("roi_size", "overlap", "spatial_dims", "mirror_axes_inference", "mirror_pairs")
            key = (self._preprocessing[bundle.root], str([bundle.settings[name] for name in windows]))
            apart = bundle.root if self.mode == "vote" else self._weight(bundle)
            groups.setdefault((key, apart), []).append(bundle)
        self.groups = [part for members in groups.values() for part in _parts(members)]
        self._keep = len(_parts(list(bundles))) == 1
        self._loaded: dict[int, list[torch.nn.Module]] = {}

    def write(self, case: Case, path: Path, doubtful: Path | None = None, keep: bool = False) -> Predicted:
        """Predict a case and write its label map in the geometry of its (first) image; to `doubtful`, where that is
        given, percent of doubt by voxel. `keep`: as `predict` has it.
        """
        predicted = self.predict(case, with_uncertainty=doubtful is not None, keep=keep)
        if doubtful is not None and predicted.uncertainty is not None:
            write_label_map(doubtful, predicted.uncertainty, case, predicted.affine)
        write_label_map(path, predicted.labels, case, predicted.affine)
        return predicted

    def predict(self, case: Case, with_uncertainty: bool = False, keep: bool = False) -> Predicted:
        """Predict a case; with `keep`, the probabilities around the foreground are collected."""
        channels = (self.classes.outputs,) if self.classes.in_channels else ()
        expected = ExpectedDice(self.classes)
        with self._answers(case) as (answers, affine):
            axis, shape = answers[0].grid.chunk_axis, answers[0].grid.original_shape
            kept = Collector(axis, 0 if self.classes.regions else 1) if keep else None
            out = np.empty((*shape, *channels), self.classes.dtype)
            against = np.empty(shape, np.uint8) if with_uncertainty else None
            for start, stop in self._chunks(answers):
                combined, place = self._combined(answers, start, stop), (slice(None),) * axis + (slice(start, stop),)
                out[place] = self.classes.decide(combined)
                expected.add(combined)
                if kept is not None:
                    kept.add(combined, start)
                if against is not None:
                    against[place] = uncertainty(combined, bool(self.classes.regions)).cpu().numpy()
        if not self.classes.regions:
            out = post_processed(out, self.combination.post_processing, abs(float(np.linalg.det(affine[:3, :3]))))
        return Predicted(out, affine, expected.by_key(), against, kept)

    def probabilities(self, case: Case) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """(probabilities [K, X, Y, Z] float32 on the image's own grid, its affine): memory grows with the classes."""
        with self._answers(case) as (answers, affine):
            axis, shape = answers[0].grid.chunk_axis, answers[0].grid.original_shape
            out = np.empty((self.classes.outputs, *shape), np.float32)
            for start, stop in self._chunks(answers):
                out[(slice(None),) * (axis + 1) + (slice(start, stop),)] = self._combined(answers, start, stop)
        return out, affine

    def _weight(self, bundle: Bundle) -> float:
        return 1.0 if self.mode == "vote" else self.combination.weights.get(bundle.root.name, 1.0)

    def _networks(self, group: int) -> list[torch.nn.Module]:
        """A group's networks on the device; the last group's make way where not all fit together."""
        if group not in self._loaded:
            if not self._keep:
                self._loaded.clear()
            self._loaded[group] = [
                (self.given.get(b.root) or b.trained_network()).to(self.device) for b in self.groups[group]
            ]
        return self._loaded[group]

    @contextlib.contextmanager
    def _answers(self, case: Case) -> Iterator[tuple[list[Answer], npt.NDArray[np.float64]]]:
        """The streamed answer of every group, and the affine of the image's own grid."""
        answers: list[Answer] = []
        failed: dict[str, Exception] = {}
        image: MetaTensor | None = None
        key = ""
        try:
            for number, members in enumerate(self.groups):
                if isinstance(members[0], ForeignBundle):
                    try:
                        store, grid, affine = self._foreign(members[0], case)
                    except Exception as error:  # its own code's: the others' answer is worth no less for it
                        logger.warning("%s failed on %s", members[0].root.name, case.id, exc_info=True)
                        failed[members[0].root.name] = error.with_traceback(None)  # frames hold the case's arrays
                    else:
                        answers.append(Answer(store, grid, self._weight(members[0])))
                    continue
                if image is None or self._preprocessing[members[0].root] != key:
                    image = None  # the old one goes before the new one comes
                    image, key = members[0].preprocess(case), self._preprocessing[members[0].root]
                affine, shape = file_grid(image)
                chunk_axis = longest_axis(affine, shape)
                grid = AxisMap.between(image.affine.numpy(), image.shape[1:], straightened(affine), shape, chunk_axis)
                weight = len(members) * self._weight(members[0])
                answers.append(Answer(self._streamed(number, image, grid.stream_axis), grid, weight))
            del image
            if not answers:
                raise next(iter(failed.values()))
            for name, reason in failed.items():
                message = f"{name} is left out of the prediction of {case.id}: {one_line(reason)}"
                self.notify(Event("warning", message, {"case": case.id}))
            yield answers, affine
        finally:
            for answer in answers:
                answer.store.close()

    def _foreign(self, bundle: ForeignBundle, case: Case) -> tuple[PlaneStore, AxisMap, npt.NDArray[np.float64]]:
        """What a foreign bundle has `stored` of a case; like other networks, it makes way where not all fit."""
        try:
            return bundle.stored(case, self.scratch)
        finally:
            if not self._keep:
                bundle.release()

    def _streamed(self, group: int, image: MetaTensor, axis: int) -> PlaneStore:
        """Mean probabilities of a group's networks; from windows half as large where memory runs out for one."""
        settings, networks = self.groups[group][0].settings, self._networks(group)
        autocast = functools.partial(autocast_for, settings["precision"], self.device)
        work = image.as_tensor(), settings, self.device, autocast, self.scratch, axis

        def take_less() -> str | None:
            size, smaller = settings["roi_size"], halved_patch(settings)
            if smaller is None:
                return None
            settings["roi_size"] = smaller
            return f"memory ran out: windows of {in_voxels(smaller)} instead of {in_voxels(size)} voxels"

        def told(message: str) -> None:
            logger.warning("%s", message)
            self.notify(Event("warning", message, {"bundles": [bundle.name for bundle in self.groups[group]]}))

        return with_less(lambda: stream_probabilities(networks, *work), take_less, told)

    def _chunks(self, answers: Sequence[Answer]) -> list[tuple[int, int]]:
        length = answers[0].grid.original_shape[answers[0].grid.chunk_axis]
        step = min(answer.grid.chunk_length(4 * self.classes.outputs, CHUNK_BYTES) for answer in answers)
        return [(a, min(length, a + step)) for a in range(0, length, step)]

    def _combined(self, answers: Sequence[Answer], start: int, stop: int) -> torch.Tensor:
        """What decides a chunk: mean probabilities [K, ...]; for a vote, shares of it, the mean deciding ties."""
        mean: torch.Tensor | None = None
        votes: torch.Tensor | None = None
        for store, grid, weight in answers:
            first, last = grid.planes(start, stop)
            block = grid.resample(store.read(first, last), first, start, stop, self.classes.outside)
            if self.mode == "vote":
                vote = self.classes.votes(block)
                votes = vote if votes is None else votes.add_(vote)
            mean = block.mul_(weight) if mean is None else mean.add_(block, alpha=weight)
        assert mean is not None
        mean.div_(sum(answer.weight for answer in answers))
        if votes is not None:
            return votes.add_(mean, alpha=0.5).div_(len(answers) + 0.5)
        temperature = self.combination.temperature
        return mean if temperature == 1.0 else tempered(mean, temperature, bool(self.classes.regions))


def tempered(probabilities: torch.Tensor, temperature: float, regions: bool) -> torch.Tensor:
    """Probabilities [K, ...] at a temperature, where a class but the first, or a region, has LEAST or more."""
    if regions:
        changed = torch.sigmoid(torch.logit(probabilities, 1e-6).div_(temperature))
        return torch.where(probabilities >= LEAST, changed, probabilities)
    changed = probabilities.clamp(min=1e-6).pow_(1.0 / temperature)
    changed.div_(changed.sum(0, keepdim=True))
    return torch.where(probabilities[1:].amax(0, keepdim=True) >= LEAST, changed, probabilities)


def _parts(members: Sequence[Bundle]) -> list[list[Bundle]]:
    """Bundles in runs whose weights take `WEIGHT_BYTES` together at most."""
    parts: list[list[Bundle]] = []
    taken = 0
    for bundle in members:
        size = bundle.weights.stat().st_size if bundle.weights.is_file() else 0
        if not parts or taken + size > WEIGHT_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(bundle)
        taken += size
    return parts


def write_label_map(path: Path, labels: npt.NDArray[Any], case: Case, affine: npt.NDArray[np.float64]) -> None:
    """Write a NIfTI with the geometry (affine, q- and s-form, units) of the case's first image; whole or not at all."""
    header = None
    try:
        source = nib.load(case.image[0])
        if isinstance(source, nib.Nifti1Image):
            header, affine = source.header.copy(), source.affine
    except (OSError, ImageFileError):
        pass  # another format: its affine is what MONAI's reader gave
    image = nib.Nifti1Image(labels, affine, header)
    image.header.set_data_dtype(labels.dtype)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
