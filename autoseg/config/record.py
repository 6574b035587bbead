"""The run configuration as a record, and its way into a work_dir's input.yaml."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from autoseg.config.sweep import SweepConfig
from autoseg.records import Datalist


@dataclass(frozen=True)
class RunConfig:
    """All that a run is told. Paths are absolute; None means: from the data, or as the planner thinks best."""

    work_dir: str
    datalist: str
    dataroot: str  # what the datalist's paths are relative to
    modality: str  # CT, MRI or PET, or one a channel (CT+PET); another word only beside `normalization`
    algos: tuple[str, ...] | None = None  # network families; None: those that suit the data
    num_fold: int | None = None  # folds to train; None: as in the datalist, else five
    class_names: tuple[Any, ...] | None = None  # of the label values without background, ascending; or regions
    sigmoid: bool | None = None  # every label, or region, by itself instead of the likeliest of all
    templates_path_or_url: str | None = None  # a folder of algorithm templates
    train_on_all: bool = False  # one network a family on every training case
    refit: int | None = None  # so many a family beside the folds, of different seeds, in the ensemble; see `refits`
    patient_pattern: str | None = None  # regular expression on file names; its first group is the patient
    seed: int = 0
    ensemble_method: str = "auto"  # by what members say out of fold; or one of MONAI's methods
    n_best: int = 5  # members of AlgoEnsembleBestN
    predict_seconds_per_case: float | None = None  # most that the ensemble may take to predict one
    ensemble_mode: str = "mean"  # mean of probabilities, or vote
    uncertainty_maps: bool = False  # beside every prediction a map of percent of doubt
    normalization: str | tuple[str, ...] | None = None  # ct or zscore, or one a channel, whatever the modality
    mirror_pairs: tuple[tuple[int, int], ...] | None = None  # label values that swap sides in a mirror; () for none
    check: bool = True  # stop at faults of the images
    analyze: bool | None = None  # Auto3DSeg's switches of the stages
    algo_gen: bool | None = None
    train: bool | None = None
    ensemble: bool | None = None
    not_use_cache: bool = False
    allow_skip: bool = True  # leave out families that do not suit the data
    multigpu: bool = True  # a training takes several GPUs where there are twice as many, or more
    pretrained: str | None = None  # weights to start from: a state dict, a bundle (folder or zip), a work_dir
    settings: dict[str, Any] = field(default_factory=dict)  # hyper-parameters of every family
    family_settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # ... of one, by its name
    time_limit: float | None = None  # seconds of the whole call, every stage included; written as 40m, 6h
    minutes: float | None = None  # training budget of the whole stage, all jobs together
    max_parallel: int | None = None  # most jobs at a time
    max_tries: int = 3  # starts of a job that fails
    stuck_minutes: float = 30.0  # without a sign of life, after which a job is ended
    tolerance_mm: float = 1.0  # of the surface Dice
    hpo: bool = False  # a sweep over hyper-parameters comes before the trainings
    hpo_params: SweepConfig = field(default_factory=SweepConfig)
    tuned: str | None = None  # the family that this sweep made, trained beside the others
    starts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by family, what its pretrained weights ask for

    def said(self, family: str) -> dict[str, Any]:
        """The hyper-parameters that are set for a family: those of every one, and its own over them."""
        return {**self.settings, **self.family_settings.get(family, {})}

    def folds(self, datalist: Datalist, foreign: bool = False) -> list[int]:
        """The folds that a family is trained for, and `refits` more, past those of the cases: all are trained on.

        A `foreign` family, of a template written for MONAI's Auto3DSeg, must have cases to validate on.
        """
        past = 1 + datalist.highest_fold
        return [*range(datalist.num_fold), *range(past, past + self.refits(datalist) * (not foreign))]

    def refits(self, datalist: Datalist) -> int:
        """The networks a family on all training cases that there can be: as said, or half as many as folds.

        Half where a time limit chooses among them: without one, or where the number of folds is said, here or by a
        datalist that names fewer than its cases have, nothing is trained that was not asked for.
        """
        if self.refit is not None:
            return self.refit
        said = self.num_fold is not None or self.train_on_all or datalist.num_fold <= datalist.highest_fold
        return math.ceil(datalist.num_fold / 2) if self.time_limit and not said and not datalist.validation else 0

    def says(self, key: str) -> bool:
        """Whether a hyper-parameter is set, to something, for any family."""
        return any(said.get(key) for said in (self.settings, *self.family_settings.values()))


def config_to_input(config: RunConfig) -> dict[str, Any]:
    """`input.yaml` of a work_dir: MONAI's keys, and this project's where they are not the default.

    `load_config` reads it back. It leaves out where the run is (a work_dir can be moved) and the switches of one call.
    """
    plain: dict[str, Any] = {key: getattr(config, key) for key in ("modality", "datalist", "dataroot")}
    plain |= {"multigpu": config.multigpu}
    passing = {"work_dir", "check", "analyze", "algo_gen", "train", "ensemble", "not_use_cache"}
    passing |= {"hpo", "hpo_params", "tuned", "starts"}
    defaults = RunConfig("", "", "", "")
    for key in (f.name for f in dataclasses.fields(config) if f.name not in (*plain, *passing)):
        value = getattr(config, key)
        if key == "family_settings" and config.tuned:
            value = {name: said for name, said in value.items() if name != config.tuned}
        if value != getattr(defaults, key):
            plain[key] = f"{value}s" if key == "time_limit" else _lists(value)
    return plain


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
