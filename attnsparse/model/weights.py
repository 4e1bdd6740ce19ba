"""The weights of a model: read-only views of the one block that holds them, changes, and their digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from ..errors import ConfigError
from ..io.checksums import update
from .config import Config, LensConfig
from .lens.factored import FactoredMatrix

if TYPE_CHECKING:
    from .. import _core


class ModelWeights:
    """The part of `Model` that holds its weights; takes the first two and the last argument of `Model`."""

    def __init__(self, config: Config, weights: Mapping[str, np.ndarray] | None, dtype: str) -> None:
        _check.instance(config, Config, "config")
        self._core: _core.Model = core_for(dtype).Model(dataclasses.asdict(config))
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

    # --- views of all layers at once, under TransformerLens's names and shapes

    @property
    def cfg(self) -> LensConfig:
        """Sizes under TransformerLens's names: ``n_layers``, ``n_heads``, ``d_vocab``, ``act_fn``, ..."""
        return LensConfig.of(self.config)

    @property
    def W_E(self) -> np.ndarray:
        """Token embedding, [d_vocab, d_model]; a view."""
        return self._core.parameter("wte.weight")

    @property
    def W_pos(self) -> np.ndarray:
        """Position embedding, [n_ctx, d_model]; a view."""
        return self._core.parameter("wpe.weight")

    @property
    def W_U(self) -> np.ndarray:
        """Unembedding, [d_model, d_vocab]; a view, of `W_E` transposed in a tied model."""
        rows: np.ndarray = self._core.parameter("wte.weight" if self.config.tied else "lm_head.weight")
        columns: np.ndarray = rows.T
        return columns

    @property
    def b_U(self) -> np.ndarray:
        """Bias of the unembedding, [d_vocab]; a view, or zeros."""
        if self.config.unembed_bias:
            return self._core.parameter("lm_head.bias")
        return _zeros((self.config.n_vocab,), self.dtype)

    @property
    def W_Q(self) -> np.ndarray:
        """Query weights, [n_layers, n_heads, d_model, d_head]; a view."""
        return self._of_heads("q")

    @property
    def W_K(self) -> np.ndarray:
        """Key weights, [n_layers, n_heads, d_model, d_head]; a view."""
        return self._of_heads("k")

    @property
    def W_V(self) -> np.ndarray:
        """Value weights, [n_layers, n_heads, d_model, d_head]; a view."""
        return self._of_heads("v")

    @property
    def W_O(self) -> np.ndarray:
        """Output weights, [n_layers, n_heads, d_head, d_model]; a view."""
        c = self.config
        stacked = self._core.stacked("attn.c_proj.weight")
        return stacked.reshape(c.n_layer, c.n_head, c.d_head, c.d_model)

    @property
    def b_Q(self) -> np.ndarray:
        """Query biases, [n_layers, n_heads, d_head]; a view, or zeros."""
        return self._biases_of_heads("q")

    @property
    def b_K(self) -> np.ndarray:
        """Key biases, [n_layers, n_heads, d_head]; a view, or zeros."""
        return self._biases_of_heads("k")

    @property
    def b_V(self) -> np.ndarray:
        """Value biases, [n_layers, n_heads, d_head]; a view, or zeros."""
        return self._biases_of_heads("v")

    @property
    def b_O(self) -> np.ndarray:
        """Biases of the attention outputs, [n_layers, d_model]; a view, or zeros."""
        return self._stacked("attn.c_proj.bias", self.config.d_model)

    @property
    def W_in(self) -> np.ndarray:
        """Input weights of the MLPs, [n_layers, d_model, d_mlp]; a view."""
        return self._core.stacked("mlp.c_fc.weight")

    @property
    def b_in(self) -> np.ndarray:
        """Biases of the MLPs' neurons, [n_layers, d_mlp]; a view, or zeros."""
        return self._stacked("mlp.c_fc.bias", self.config.d_mlp)

    @property
    def W_out(self) -> np.ndarray:
        """Output weights of the MLPs, [n_layers, d_mlp, d_model]; a view."""
        return self._core.stacked("mlp.c_proj.weight")

    @property
    def b_out(self) -> np.ndarray:
        """Biases of the MLPs' outputs, [n_layers, d_model]; a view, or zeros."""
        return self._stacked("mlp.c_proj.bias", self.config.d_model)

    @property
    def ln1_w(self) -> np.ndarray:
        """Weights of the LayerNorms before attention, [n_layers, d_model]; a view."""
        return self._core.stacked("ln_1.weight")

    @property
    def ln1_b(self) -> np.ndarray:
        """Biases of the LayerNorms before attention, [n_layers, d_model]; a view, or zeros."""
        return self._stacked("ln_1.bias", self.config.d_model)

    @property
    def ln2_w(self) -> np.ndarray:
        """Weights of the LayerNorms before the MLPs, [n_layers, d_model]; a view."""
        return self._core.stacked("ln_2.weight")

    @property
    def ln2_b(self) -> np.ndarray:
        """Biases of the LayerNorms before the MLPs, [n_layers, d_model]; a view, or zeros."""
        return self._stacked("ln_2.bias", self.config.d_model)

    @property
    def ln_final_w(self) -> np.ndarray:
        """Weights of the final LayerNorm, [d_model]; a view."""
        return self._core.parameter("ln_f.weight")

    @property
    def ln_final_b(self) -> np.ndarray:
        """Biases of the final LayerNorm, [d_model]; a view, or zeros."""
        return (
            self._core.parameter("ln_f.bias")
            if self.config.bias
            else _zeros((self.config.d_model,), self.dtype)
        )

    def OV(self, layer: int | None = None, head: int | None = None) -> FactoredMatrix:
        """What heads write of what they read: ``W_V @ W_O``, d_model x d_model of rank d_head.

        A residual stream x, as a row after LayerNorm, is moved to ``x @ OV``; biases are left out.

        Parameters
        ----------
        layer, head : int, optional
            One head, negative numbers from the end; None: all of them as a stack [n_layers, n_heads].

        Returns
        -------
        FactoredMatrix
            Of views of the weights.

        Raises
        ------
        IndexError
            If there is no such head.
        """
        at = self._one_head(layer, head)
        return FactoredMatrix(self.W_V[at], self.W_O[at])

    def QK(self, layer: int | None = None, head: int | None = None) -> FactoredMatrix:
        """What heads attend to: ``W_Q @ W_K.T``, d_model x d_model of rank d_head.

        A query x and a key y, as rows after LayerNorm, have the score ``x @ QK @ y``, before it is divided by
        ``sqrt(d_head)``; biases are left out.

        Parameters
        ----------
        layer, head : int, optional
            As for `OV`.

        Returns
        -------
        FactoredMatrix
            Of views of the weights.

        Raises
        ------
        IndexError
            If there is no such head.
        """
        at = self._one_head(layer, head)
        return FactoredMatrix(self.W_Q[at], np.swapaxes(self.W_K[at], -1, -2))

    def _one_head(self, layer: int | None, head: int | None) -> tuple[int | slice, int | slice]:
        sizes = {"layer": (layer, self.config.n_layer), "head": (head, self.config.n_head)}
        found: list[int | slice] = []
        for name, (value, size) in sizes.items():
            number = None if value is None else _check.integer(value, name)
            if number is not None and not -size <= number < size:
                raise IndexError(f"{name} {number} is out of range: this model has {size}")
            found.append(slice(None) if number is None else number)
        return found[0], found[1]

    def _of_heads(self, which: str) -> np.ndarray:
        c = self.config
        stacked = self._core.stacked("attn.c_attn.weight").reshape(
            c.n_layer, c.d_model, 3, c.n_head, c.d_head
        )
        one: np.ndarray = stacked[:, :, "qkv".index(which)].transpose(0, 2, 1, 3)
        return one

    def _biases_of_heads(self, which: str) -> np.ndarray:
        c = self.config
        stacked = self._stacked("attn.c_attn.bias", 3 * c.n_head * c.d_head)
        return stacked.reshape(c.n_layer, 3, c.n_head, c.d_head)[:, "qkv".index(which)]

    def _stacked(self, bias: str, size: int) -> np.ndarray:
        return (
            self._core.stacked(bias) if self.config.bias else _zeros((self.config.n_layer, size), self.dtype)
        )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """In place of biases that a model does not have."""
    zeros = np.zeros(shape, dtype)
    zeros.setflags(write=False)
    return zeros
