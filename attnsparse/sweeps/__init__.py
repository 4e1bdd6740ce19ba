"""Sweeps: circuits of many models, tasks and seeds, kept as Parquet files."""

from .run import sweep
from .status import STATES, sweep_status
from .tables import FRACTIONS, TABLES

__all__ = ["FRACTIONS", "STATES", "TABLES", "sweep", "sweep_status"]
