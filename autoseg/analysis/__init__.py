"""Analysis: cases in, statistics out, and what is wrong with the data. Loads neither torch nor monai."""

from autoseg.analysis.check import check_reports
from autoseg.analysis.examining import examine
from autoseg.analysis.report import CaseExtras, CaseReport, CheckResult, Place, Pool, discovered_labels, label_counts
from autoseg.analysis.summary import summarize

__all__ = [
    "CaseExtras",
    "CaseReport",
    "CheckResult",
    "Place",
    "Pool",
    "check_reports",
    "discovered_labels",
    "examine",
    "label_counts",
    "summarize",
]
