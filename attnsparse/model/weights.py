"""The weights of a model: read-only views of the one block that holds them, changes, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._engine import core_for
from ..errors import ConfigError
from ..io.checksums import update
from .config import Config

if TYPE_CHECKING:
    from .. import _core


class ModelWeights:
    """The part of `Model` that holds its weights; takes the first two and the last argument of `Model`."""

    def __init__(self, config: Config, weights: Mapping[str, np.ndarray] | None, dtype: str) -> None:
        _check.instance(config, Config, "config")
        self._core: _core.Model = core_for(dtype).Model(config.to_dict())
        self.config = config  #: the `Config`: sizes and kind of the model
        self.dtype = np.dtype(dtype)  #: of weights and activations: float32 or float64
        self._digest: tuple[int, str] | None = None
        if weights is not None:
            self._fill(weights)

    def _fill(self, weights: Mapping[str, np.ndarray]) -> None:
        shapes = self.config.parameter_shapes()
        for name in weights:
            if name not in shapes:
                text = f"weights: {name!r} is not a parameter of this model"
                raise ConfigError(text, code="unexpected_tensor", field=name)
        for name, shape in shapes.items():
            if name not in weights:
                raise ConfigError(f"weights: {name!r} is missing", code="missing_tensor", field=name)
            if np.shape(weights[name]) != shape:
                raise ConfigError(
                    f"weights: {name!r} has shape {np.shape(weights[name])}, expected {shape}",
                    code="config_value",
                    field=name,
                )
            self._core._writable(name)[...] = _check.reals(weights[name], name, self.dtype)

    def parameter(self, name: str) -> np.ndarray:
        """One weight array, lent.

        Parameters
        ----------
        name : str
            One of `config.parameter_shapes()`.

        Returns
        -------
        numpy.ndarray
            A read-only view that shows later changes of the weights.

        Raises
        ------
        KeyError
            For an unknown name.
        """
        if name not in self._core.names:
            raise KeyError(f"this model has no parameter {name!r:.80}")
        return self._core.parameter(name)

    def parameters(self) -> dict[str, np.ndarray]:
        """All weight arrays, lent.

        Returns
        -------
        dict of str to numpy.ndarray
            Read-only views that show later changes by training or `assign`; `copy` takes all weights at one
            moment.
        """
        return {name: self._core.parameter(name) for name in self._core.names}

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.config.n_parameters()

    def assign(self, weights: Mapping[str, np.ndarray]) -> None:
        """Change weights: all of them are written, or after an error none.

        Arrays lent before show the new values; runs made before are out of date.

        Parameters
        ----------
        weights : mapping of str to array
            Parameter names and values of the shape in `config.parameter_shapes()`.

        Raises
        ------
        KeyError
            For an unknown name.
        ValueError
            For another shape.
        RuntimeError
            While another thread runs or trains the model.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must be a mapping from names to arrays, got {type(weights).__name__}")
        self._core.assign({name: _check.reals(value, name, self.dtype) for name, value in weights.items()})

    @property
    def version(self) -> int:
        """Changes with every change of the weights."""
        return self._core.version

    @property
    def digest(self) -> str:
        """SHA-256 of configuration and weights, hexadecimal; RuntimeError while a thread changes them."""
        known = self._digest
        if known is not None and known[0] == self._core.version:
            return known[1]
        with self._core.reading():
            version = self._core.version
            sha = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
            for name in self._core.names:
                sha.update(name.encode() + b"\0")
                update(sha, self._core.parameter(name))
        self._digest = (version, sha.hexdigest())
        return self._digest[1]
