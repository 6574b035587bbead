"""Datalists: read, check, split and write Auto3DSeg's JSON, every fault of it at once. Opens no image."""

from autoseg.datalist.folds import DEFAULT_FOLDS, make_folds
from autoseg.datalist.reading import case_id, load_datalist, plain_datalist

__all__ = ["DEFAULT_FOLDS", "case_id", "load_datalist", "make_folds", "plain_datalist"]
