"""Data sets as others lay them out, as cases: Decathlon, nnU-Net, BIDS, patterns of file names. Opens no image."""

from autoseg.datalist.sources.finding import find_cases
from autoseg.datalist.sources.found import Found, Wanted

__all__ = ["Found", "Wanted", "find_cases"]
