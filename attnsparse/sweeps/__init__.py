"""Sweeps: circuits of many models, tasks and seeds, kept as Parquet files."""

from .run import sweep
from .status import STATES, sweep_status
from .summary import BETWEEN, agreement, needed, table
from .tables import FRACTIONS, TABLES

__all__ = [
    "BETWEEN",
    "FRACTIONS",
    "STATES",
    "TABLES",
    "agreement",
    "needed",
    "sweep",
    "sweep_status",
    "table",
]
