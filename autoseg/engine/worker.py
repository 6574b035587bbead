"""Loaded once, by the server from which the processes that preprocess cases are forked."""

from autoseg.engine.lean import start_lean

start_lean()

import autoseg.engine.cache  # noqa: E402, F401 - what they work with
