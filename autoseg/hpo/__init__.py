"""Hyper-parameter sweeps: Optuna studies whose trials are jobs."""
