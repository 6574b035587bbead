"""`AutoRunner`: the one call from Python, with the constructor and the `set_*` methods of MONAI 1.6's AutoRunner.

Auto3DSeg's users change one import. What has no counterpart here says so in one sentence: a warning where the result
is the same without it, an InputError where it would not be.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autoseg.config import RunConfig, SweepConfig, load_config
from autoseg.config.nni import only_choices, read_nni_space, without_nni
from autoseg.datalist import load_datalist, plain_datalist
from autoseg.devices import forget_devices
from autoseg.errors import Fault, InputError, nearest
from autoseg.records import Event
from autoseg.workspace import write_json

if TYPE_CHECKING:
    from autoseg.pipeline import RunResult
    from autoseg.pipeline.judging import SweepResult

logger = logging.getLogger(__name__)
Algos: TypeAlias = Mapping[str, Any] | Sequence[str] | str | None
SAVE_IMAGE = (
    "output_dir output_postfix output_ext output_dtype resample mode padding_mode scale dtype squeeze_end_dims "
    "data_root_dir separate_folder print_log output_format writer channel_dim output_name_formatter folder_layout "
    "savepath_in_metadict"
)
GPUS = "CUDA_VISIBLE_DEVICES"
PREDICTION = ("mode", "files_slices", "sigmoid")
SWEEP = tuple(field.name for field in fields(SweepConfig))
Notify: TypeAlias = Callable[[Event], None]


class AutoRunner:
    """Analyse, plan, train, ensemble, predict and evaluate: `AutoRunner(work_dir=..., input=...).run()`.

    `input` is a YAML or JSON file or a dict with at least `modality` and `datalist` (`dataroot` defaults to the
    datalist's folder); left out, `<work_dir>/input.yaml` of an earlier run is read. `algos` names network families
    (a name, a list, or Auto3DSeg's dict). `analyze`, `algo_gen`, `train` and `ensemble` switch stages. With `hpo` a
    sweep over hyper-parameters comes before the trainings; only without it `hpo_backend` may be MONAI's default, nni.
    `kwargs` are those of `set_image_save_transform`. Raises InputError with every fault of the configuration.
    """

    def __init__(
        self,
        work_dir: str | Path = "./work_dir",
        input: Mapping[str, Any] | str | Path | None = None,
        algos: Algos = None,
        analyze: bool | None = None,
        algo_gen: bool | None = None,
        train: bool | None = None,
        hpo: bool = False,
        hpo_backend: str = "optuna",
        ensemble: bool = True,
        not_use_cache: bool = False,
        templates_path_or_url: str | None = None,
        allow_skip: bool = True,
        mlflow_tracking_uri: str | None = None,
        mlflow_experiment_name: str | None = None,
        **kwargs: Any,
    ):
        if mlflow_tracking_uri or mlflow_experiment_name:
            logger.warning("mlflow_*: nothing is sent to MLflow; metrics.jsonl and TensorBoard events hold the same")
        self._input = input
        # what MONAI gives a default is left to the input's own keys
        self._flags: dict[str, Any] = {
            "work_dir": None if str(work_dir) == "./work_dir" else str(work_dir),
            "analyze": analyze,
            "algo_gen": algo_gen,
            "train": train,
            "hpo": hpo or None,
            "hpo_backend": None if hpo_backend == "optuna" else hpo_backend,
            "ensemble": None if ensemble else False,
            "not_use_cache": not_use_cache or None,
            "allow_skip": None if allow_skip else False,
            "templates_path_or_url": templates_path_or_url,
        }
        self._flags |= _algos(algos)
        self._devices: str | None = None
        self._files: slice | None = None
        self._ensemble: Any = None
        self._settings: dict[str, Any] = {}  # of set_training_params
        self._held: dict[str, Any] = {}  # of set_hpo_params: hyper-parameters
        self._sweep: dict[str, Any] = {}  # ... and all else
        self._space: dict[str, Any] = {}  # of set_nni_search_space
        self.set_image_save_transform(**kwargs)
        self._set()

    def _set(self, **flags: Any) -> AutoRunner:
        """Keep flags; raises every fault of the configuration at once and now, not when `run` is called."""
        self._flags |= flags
        _ = self.config
        return self

    @property
    def config(self) -> RunConfig:
        """The configuration that `run` would use now."""
        return load_config(self._input, **self._flags)

    def set_num_fold(self, num_fold: int = 5) -> AutoRunner:
        """Train so many folds: the first ones of those given, or the number to split the cases into."""
        return self._set(num_fold=num_fold)

    def set_training_params(self, params: Mapping[str, Any] | None = None) -> AutoRunner:
        """Hyper-parameters for all families ({"num_epochs": 2}) or for one ({"segresnet": {"num_epochs": 2}}).

        A name that no bundle knows is refused by `run`, before any image is read.
        """
        params = dict(params or {})
        if GPUS in params:
            logger.warning("%s belongs to set_device_info; it is passed on", GPUS)
            self.set_device_info(params.pop(GPUS))
        families = {key: dict(value) for key, value in params.items() if isinstance(value, Mapping)}
        self._settings = {key: value for key, value in params.items() if key not in families}
        return self._set(settings={**self._settings, **self._held}, family_settings=families)

    def set_device_info(
        self,
        cuda_visible_devices: Sequence[int] | str | None = None,
        num_nodes: int | None = None,
        mn_start_method: str | None = None,
        cmd_prefix: str | None = None,
    ) -> AutoRunner:
        """The GPUs to use, as [0, 1] or "0,1"; by default CUDA_VISIBLE_DEVICES, or all there are."""
        if (num_nodes or 1) > 1 or mn_start_method or cmd_prefix:
            logger.warning("num_nodes, mn_start_method, cmd_prefix: jobs run on this machine, by this Python; ignored")
        if cuda_visible_devices is not None and not isinstance(cuda_visible_devices, str):
            cuda_visible_devices = ",".join(str(index) for index in cuda_visible_devices)
        self._devices = cuda_visible_devices
        return self

    def set_ensemble_method(
        self, ensemble_method_name: Any = "AlgoEnsembleBestByFold", n_best: int | None = None, **kwargs: Any
    ) -> AutoRunner:
        """AlgoEnsembleBestByFold, AlgoEnsembleBestN (of `n_best` members) or AlgoEnsembleAll.

        Or a subclass of MONAI's AlgoEnsemble, or an instance of one: its `collect_algos` chooses the members.
        """
        self.set_image_save_transform(**kwargs)
        if isinstance(ensemble_method_name, str):
            self._ensemble = None
            return self._set(ensemble_method=ensemble_method_name, n_best=n_best)
        from autoseg.ensemble.custom import ensemble_instance

        self._ensemble = ensemble_instance(ensemble_method_name)
        return self._set(**({"ensemble_mode": "vote"} if self._ensemble.mode == "vote" else {}))

    def set_image_save_transform(self, **kwargs: Any) -> AutoRunner:
        """Arguments of MONAI's SaveImage; predictions keep the place, the geometry and the type they have here."""
        unknown = [name for name in kwargs if name not in SAVE_IMAGE.split()]
        if unknown:
            known = SAVE_IMAGE.split()
            raise InputError(Fault("", name, f"no argument of SaveImage{nearest(name, known)}") for name in unknown)
        if kwargs:
            what = "predictions are ensemble_output/<case>/<case>_ensemble.nii.gz in the image's geometry"
            logger.warning("%s have no effect: %s", ", ".join(kwargs), what)
        return self

    def set_prediction_params(self, params: Mapping[str, Any] | None = None) -> AutoRunner:
        """`mode`: mean (of probabilities) or vote; `files_slices`: a slice of the testing cases to predict."""
        params = dict(params or {})
        unknown = [key for key in params if key not in PREDICTION]
        if unknown:
            hint = "set what a network is run with by set_training_params"
            raise InputError(Fault("", key, f"unknown{nearest(key, PREDICTION)}; {hint}") for key in unknown)
        files = params.get("files_slices")
        if not isinstance(files, slice | None):
            raise _refused("files_slices", f"{files!r} is not a slice")
        self._files = files
        return self._set(ensemble_mode=params.get("mode"), sigmoid=params.get("sigmoid"))

    def set_analyze_params(self, params: Mapping[str, Any] | None = None) -> AutoRunner:
        """Nothing to set: the analysis uses every core, one read a case."""
        if params:
            logger.warning("%s have no effect: the analysis reads each case once, on every core", ", ".join(params))
        return self

    def set_hpo_params(self, params: Mapping[str, Any] | None = None) -> AutoRunner:
        """What a sweep is told: n_trials, time_limit, sampler, pruner, space, objective, ... (keys of `SweepConfig`).

        As in MONAI hyper-parameters may stand among them, which hold in every trial and in the trainings after it.
        NNI's maxTrialNumber, maxExperimentDuration and trialConcurrency are understood.
        """
        sweep, sentence = without_nni(params or {})
        if sentence:
            logger.warning("%s", sentence)
        parallel = {"max_parallel": sweep.pop("max_parallel", None)}
        known = set() if set(sweep) <= set(SWEEP) else _hyper_parameters()
        self._held = {key: sweep.pop(key) for key in list(sweep) if key not in SWEEP and key in known}
        self._sweep = sweep
        if "space" in sweep:
            self._space = {}
        settings = {**self._settings, **self._held}
        return self._set(**parallel, settings=settings, hpo_params={**self._space, **sweep})

    def set_nni_search_space(self, search_space: Mapping[str, Any]) -> AutoRunner:
        """Search these hyper-parameters, and no other: {"learning_rate": {"_type": "choice", "_value": [0.01, 0.001]}}.

        `_type` is choice, uniform, loguniform, quniform or randint. Where all are choices, each combination is tried
        once, as in MONAI, unless several families are named or `set_hpo_params` names a `sampler`.
        """
        space = read_nni_space(search_space)
        grid = only_choices(space) and len(self.config.algos or ()) <= 1
        self._space = {"space": space, **({"sampler": "grid"} if grid else {})}
        self._sweep.pop("space", None)
        return self._set(hpo_params={**self._space, **self._sweep})

    def set_gpu_customization(
        self, gpu_customization: bool = False, gpu_customization_specs: Mapping[str, Any] | None = None
    ) -> AutoRunner:
        """Nothing to set: patch and batch always follow the memory of the device."""
        if gpu_customization or gpu_customization_specs:
            logger.warning("set_gpu_customization has no effect: the planner always fits patches to the GPU's memory")
        return self

    def run(self, notify: Notify | None = None, *, dry_run: bool = False) -> RunResult:
        """Do it all; returns leaderboard, members, evaluation and paths.

        With `dry_run` nothing is done: the result's `dry` says what would run, what is kept, and why.
        Progress is shown as the shell shows it; `notify` hears the events instead. Raises InputError where what was
        given is wrong (nothing was spent then) and NoResultError where nothing valid came out.
        """
        from autoseg import pipeline

        with _visible_devices(self._devices), self._sliced() as config, _listener(notify) as listener:
            return pipeline.run(config, listener, dry_run=dry_run, ensemble_method=self._ensemble)

    def tune(self, notify: Notify | None = None) -> SweepResult:
        """The sweep alone, whatever `hpo` says; returns the best trial, and whether it beats the default.

        `notify` and errors are those of `run`.
        """
        from autoseg import pipeline

        with _visible_devices(self._devices), self._sliced() as config, _listener(notify) as listener:
            return pipeline.tune(config, listener)

    @contextmanager
    def _sliced(self) -> Iterator[RunConfig]:
        """The configuration; with `files_slices`, of a datalist that holds only those testing cases."""
        config = self.config
        if self._files is None:
            yield config
            return
        datalist = load_datalist(config.datalist, config.dataroot)
        datalist = replace(datalist, testing=datalist.testing[self._files])
        with tempfile.TemporaryDirectory(prefix="autoseg_") as folder:
            path = Path(folder) / "datalist.json"
            write_json(path, plain_datalist(datalist))
            yield replace(config, datalist=str(path), dataroot=datalist.dataroot)


def _algos(algos: Algos) -> dict[str, Any]:
    """Auto3DSeg's three ways to name families, as flags."""
    if not isinstance(algos, Mapping):
        return {"algos": algos}
    paths = {str(value["template_path"]) for value in algos.values() if "template_path" in dict(value)}
    folders = {str(Path(path).parent) for path in paths if os.path.isabs(path)}
    if len(folders) > 1:
        raise _refused("algos", f"templates lie in several folders: {', '.join(sorted(folders))}")
    return {"algos": list(algos), **({"templates_path_or_url": folders.pop()} if folders else {})}


def _hyper_parameters() -> set[str]:
    """Names of the hyper-parameters of autoseg's own families."""
    from autoseg.bundles import available_templates, template_settings

    return {name for folder in available_templates().values() for name in template_settings(folder)}


@contextmanager
def _listener(notify: Notify | None) -> Iterator[Notify]:
    """Who hears the events: `notify`, or the screen as the shell has it."""
    if notify is not None:
        yield notify
        return
    from autoseg.report.screen import Screen

    with Screen() as screen:
        yield screen


@contextmanager
def _visible_devices(devices: str | None) -> Iterator[None]:
    """CUDA_VISIBLE_DEVICES for the length of a run."""
    before = {name: os.environ[name] for name in (GPUS,) if name in os.environ}
    os.environ.update({GPUS: devices} if devices is not None else {})
    forget_devices()
    try:
        yield
    finally:
        os.environ.pop(GPUS, None)
        os.environ.update(before)
        forget_devices()


def _refused(field: str, message: str) -> InputError:
    return InputError([Fault("", field, message)])
