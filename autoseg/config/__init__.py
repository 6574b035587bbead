"""YAML, dict and flags to one validated run configuration, with Auto3DSeg's keys. Every fault of it at once."""

from autoseg.config.loading import load_config
from autoseg.config.record import RunConfig, config_to_input
from autoseg.config.settings import parse_settings, parse_value
from autoseg.config.sweep import SweepConfig

__all__ = ["RunConfig", "SweepConfig", "config_to_input", "load_config", "parse_settings", "parse_value"]
