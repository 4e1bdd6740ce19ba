"""The file in which `find_circuit(..., resume=path)` keeps how far a search is, and of which question."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from .._version import __version__
from ..errors import raise_file_error
from ..io.bundle import Bundle, Schema, write_bundle
from ..io.strict_json import shown

if TYPE_CHECKING:
    from .. import _core
    from ..model.model import Model

SCHEMA = Schema("search", 1, ".search.safetensors")
_STATE = "state"


def question(model: Model, names: Mapping[str, Any]) -> dict[str, Any]:
    """All that the bits of a circuit depend on, as JSON values: its names and options, and the build."""
    dtype = model.dtype.name
    machine = core_for(dtype).machine()
    build = {"version": __version__, "dtype": dtype, "isa": machine["isa"], "blas": machine["blas_core"]}
    asked = {
        name: value for name, value in names.items() if name not in ("model_name", "task_name", "options")
    }
    return {**build, **asked, **names["options"]}


class SearchFile:
    """A file of this question, which need not exist yet."""

    def __init__(self, path: str | os.PathLike[str], asked: Mapping[str, Any]) -> None:
        self.path = SCHEMA.file(_check.path(path, "resume"))
        self._question = dict(asked)

    def read(self) -> np.ndarray | None:
        """The state that is kept; None if there is no file.

        FormatError: codes of `Bundle`, value, and question if it is of another one.
        """
        try:
            bundle = Bundle(self.path, SCHEMA)
        except FileNotFoundError:
            return None
        with bundle:
            for name in {**self._question, **bundle.fields}:
                here, there = self._question.get(name), bundle.fields.get(name)
                if here != there:
                    text = (
                        f"this search is of another question: {name} is {shown(there)} there and "
                        f"{shown(here)} here; remove the file or give another path"
                    )
                    raise_file_error("question", self.path, text, name)
            tensors = {name: (info.dtype, len(info.shape)) for name, info in bundle.tensors.items()}
            if tensors != {_STATE: ("I64", 1)}:
                raise_file_error("value", self.path, "must hold one flat tensor 'state' of I64", _STATE)
            return bundle.read_all()[_STATE]

    def restore(self, search: _core.Circuit, state: np.ndarray) -> None:
        """Let a search continue from there; FormatError `value` for a state that it cannot have."""
        try:
            search.restore(state)
        except ValueError as error:
            raise_file_error("value", self.path, str(error), _STATE)

    def write(self, state: np.ndarray) -> None:
        """Keep the state; the file is the old one or the new one, whatever happens."""
        write_bundle(self.path, SCHEMA, self._question, {_STATE: state})
