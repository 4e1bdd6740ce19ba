"""Writes what `torch.load` reads, with torch itself, where it is installed."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np


def torch_bytes(data: Mapping[str, Any], otherwise: str) -> bytes:
    """The bytes of the file that `torch.save` writes of a dict, its arrays as tensors.

    ImportError says what to do otherwise, if torch is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(f"torch is not installed, which writes this file; {otherwise}") from error
    tensors = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in data.items()
    }
    written = io.BytesIO()
    torch.save(tensors, written)
    return written.getvalue()
