"""Which trained networks answer together, and the process in which they predict. Loads torch only to predict."""

from autoseg.ensemble.members import METHODS, choose_members

__all__ = ["METHODS", "choose_members"]
