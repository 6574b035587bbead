"""Evaluation: metrics by case and label, their means with intervals, and the files that hold them."""

from autoseg.evaluation.evaluate import evaluate_folder, evaluate_pairs
from autoseg.evaluation.label_maps import LabelMap, onto_grid_of, read_label_map
from autoseg.evaluation.matching import Pair, match_folders
from autoseg.evaluation.metrics import METRICS, dice_by_label, evaluate_case
from autoseg.evaluation.regions import nesting
from autoseg.evaluation.results import CaseScore, Evaluation, read_evaluation, summarize, write_evaluation
from autoseg.evaluation.scored import Scored
from autoseg.evaluation.statistics import Interval, bootstrap_mean, mean_dice, mean_dice_by_label

__all__ = [
    "METRICS",
    "CaseScore",
    "Evaluation",
    "Interval",
    "LabelMap",
    "Pair",
    "Scored",
    "bootstrap_mean",
    "dice_by_label",
    "evaluate_case",
    "evaluate_folder",
    "evaluate_pairs",
    "match_folders",
    "mean_dice",
    "mean_dice_by_label",
    "nesting",
    "onto_grid_of",
    "read_evaluation",
    "read_label_map",
    "summarize",
    "write_evaluation",
]
