"""Members chosen by a subclass of MONAI's AlgoEnsemble; they predict together as any other members do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import AlgoEnsemble
from monai.auto3dseg import algo_from_json
from monai.utils.enums import AlgoKeys

from autoseg.ensemble.members import standing
from autoseg.errors import Fault, InputError
from autoseg.records import LeaderboardEntry

logger = logging.getLogger(__name__)


def ensemble_instance(method: Any) -> AlgoEnsemble:
    """An instance of the given AlgoEnsemble subclass (or the instance itself); InputError where it is none."""
    name = getattr(method, "__name__", type(method).__name__)
    kind: Any = method if isinstance(method, type) else type(method)
    if not issubclass(kind, AlgoEnsemble):
        raise _refused(f"{name} is neither the name of a method nor a subclass of MONAI's AlgoEnsemble")
    try:
        instance = method() if isinstance(method, type) else method
    except TypeError as error:
        raise _refused(f"{name} cannot be made without arguments, give an instance: {error}") from error
    if kind.ensemble_pred is not AlgoEnsemble.ensemble_pred or kind.__call__ is not AlgoEnsemble.__call__:
        logger.warning("%s: only its collect_algos counts; members are combined by ensemble_mode, mean or vote", name)
    return instance


def choose_by(ensemble: AlgoEnsemble, work_dir: Path, entries: Sequence[LeaderboardEntry]) -> list[LeaderboardEntry]:
    """The entries that `ensemble.collect_algos` takes among `entries`, trained bundles of `work_dir`, in its order.

    It sees what MONAI's builder would give it: a list of {identifier, algo_instance, best_metric, is_trained}. Raises
    InputError where it takes what is not among them.
    """
    by_name = {entry.name: entry for entry in entries}
    ensemble.set_algos([_algo(work_dir / name, entry, standing(entry, entries)) for name, entry in by_name.items()])
    ensemble.collect_algos()
    names = [algo[AlgoKeys.ID] for algo in ensemble.get_algo_ensemble() if algo is not None]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise _refused(f"{type(ensemble).__name__} took {', '.join(unknown)}, not offered: {', '.join(by_name)} were")
    return [by_name[name] for name in dict.fromkeys(names)]


def _algo(bundle: Path, entry: LeaderboardEntry, score: float) -> dict[AlgoKeys, Any]:
    algo, _ = algo_from_json(str(bundle / "algo_object.json"))
    return {
        AlgoKeys.ID: entry.name,
        AlgoKeys.ALGO: algo,
        AlgoKeys.SCORE: score,
        AlgoKeys.IS_TRAINED: True,
    }


def _refused(message: str) -> InputError:
    return InputError([Fault("", "ensemble_method", message)])
