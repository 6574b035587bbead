"""The flags that every verb of a run shares, and the run configuration that they make with the input file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoseg.cli.words import read_object
from autoseg.errors import Fault, InputError

if TYPE_CHECKING:
    from autoseg.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of every verb of a run; one that is given wins over the input file.

    work_dir: folder of the run (default: ./work_dir)
    input: YAML or JSON file with configuration keys, or the keys themselves as a JSON object
    datalist: Auto3DSeg's JSON: training (image, label, fold), validation, testing
    dataroot: folder that the datalist's paths are relative to (default: the datalist's folder)
    modality: CT, MRI, PET, ...
    algos: network families, separated by commas (default: those that suit the data)
    num_fold: number of folds to train (default: as many as the datalist names, else 5)
    train_on_all: one network, trained on every case, with no cross-validation
    refit: beside the folds, so many networks trained on every case, which join the ensemble (default: 0; within a time
        limit, as the time allows)
    class_names: names of the labels 1, 2, ..., separated by commas; or regions, as [{name: whole, index: [1, 2]}, ...]
    sigmoid: every label is decided by itself instead of the likeliest of all
    patient_pattern: regular expression whose first group, in the file name, is the patient; folds keep patients whole
    mirror_pairs: label values that are left and right of one another, such as [[1, 2]]
    normalization: how intensities are scaled, where the modality does not say it
    time_limit: for the whole call, such as 40m or 6h: families, folds and steps are chosen to fit
    minutes: time for the whole training stage (default: as the planner counts steps)
    max_parallel: at most so many jobs at once
    seed: seed of folds, networks and patches
    pretrained: weights to start from: a state dict, a bundle (folder or zip), or the work_dir of an earlier run
    set: a hyper-parameter as key=value, of one family as family.key=value, or @file.yaml; repeats
    allow_skip: leave out families that do not suit the data
    templates_path_or_url: folder of algorithm templates (default: those that come with autoseg)
    ensemble_method: auto (by what members say out of fold), AlgoEnsembleBestByFold, AlgoEnsembleBestN, AlgoEnsembleAll
    n_best: members of AlgoEnsembleBestN
    predict_seconds_per_case: most that the ensemble may take to predict a case, as its networks took in validation
    ensemble_mode: mean (of probabilities) or vote
    uncertainty_maps: beside every prediction a map of percent of doubt
    tolerance_mm: tolerance of the surface Dice in mm
    check: false trains although the check found faults
    not_use_cache: do everything anew, whatever the work_dir holds
    """

    work_dir: str | None = None
    input: str | None = None
    datalist: str | None = None
    dataroot: str | None = None
    modality: str | None = None
    algos: list[str] | None = None
    num_fold: int | None = None
    train_on_all: bool | None = None
    refit: int | None = None
    class_names: Any = None
    sigmoid: bool | None = None
    patient_pattern: str | None = None
    mirror_pairs: Any = None
    normalization: str | None = None
    time_limit: str | None = None
    minutes: float | None = None
    max_parallel: int | None = None
    seed: int | None = None
    pretrained: str | None = None
    set: list[str] | None = None
    allow_skip: bool | None = None
    templates_path_or_url: str | None = None
    ensemble_method: str | None = None
    n_best: int | None = None
    predict_seconds_per_case: float | None = None
    ensemble_mode: str | None = None
    uncertainty_maps: bool | None = None
    tolerance_mm: float | None = None
    check: bool | None = None
    not_use_cache: bool | None = None


def load(*, input: str | None = None, set: list[str] | None = None, **flags: Any) -> RunConfig:
    """The configuration of these flags, and of further keys; where it has faults, those that later checks would find
    are said with them.
    """
    from autoseg.config import load_config, parse_settings

    settings, family_settings = parse_settings(set or [])
    flags |= {"settings": settings or None, "family_settings": family_settings or None}
    source = read_object("--input", input) if input is not None and input.lstrip().startswith("{") else input
    try:
        return load_config(source, **flags)
    except InputError as error:
        from autoseg.pipeline.prepare import with_later_faults

        if "hpo_params" not in flags and not getattr(error.partial, "hpo", False):
            raise with_later_faults(error) from None
        from autoseg.pipeline.tuning import refuse_bad_sweep  # and Optuna

        raise with_later_faults(error, refuse_bad_sweep) from None


def read_scored(labels: Any) -> tuple[dict[int, str] | None, list[list[int]]]:
    """(names, regions) of `{1: liver}`, `[1, 2]`, `1` or `{tumour: [1, 2]}`; InputError where that is none of them."""
    if labels is None:
        return None, []
    named = labels if isinstance(labels, dict) else {v: v for v in (labels if isinstance(labels, list) else [labels])}
    if all(isinstance(value, int) for value in named):
        return {value: str(name) for value, name in named.items()}, []
    regions = [values for values in named.values() if isinstance(values, list)]
    if len(regions) < len(named) or not all(isinstance(v, int) for values in regions for v in values):
        message = f"{labels!r}: values are whole numbers, as in {{1: liver, 2: tumour}} or {{tumour: [1, 2]}}"
        raise InputError([Fault("", "--labels", message)])
    return dict(enumerate(map(str, named), 1)), regions
