"""Datalists: read, check, split and write Auto3DSeg's JSON, every fault of it at once. Opens no image."""

from autoseg.datalist.folds import DEFAULT_FOLDS, make_folds
from autoseg.datalist.formats import case_id, find_images, is_image, unreadable
from autoseg.datalist.reading import load_datalist, plain_datalist, with_regions

__all__ = [
    "DEFAULT_FOLDS",
    "case_id",
    "find_images",
    "is_image",
    "load_datalist",
    "make_folds",
    "plain_datalist",
    "unreadable",
    "with_regions",
]
