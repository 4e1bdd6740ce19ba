"""Model: configuration, weights and tokenizer of a GPT-2-family transformer, and the calls that run it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import _check
from .._engine import core_for
from ..errors import ConfigError
from ..io.checksums import update
from .batch import as_batch
from .config import Config
from .gradients import Gradients, compute_gradients
from .run import DEFAULT_MAX_BYTES, Run, compute_run
from .tokenizer import checked_ids

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Model:
    """A GPT-2-family transformer, dense or with gated attention.

    Made by `attnsparse.load`, or from a `Config` and a mapping from parameter names (Hugging Face's, such as
    "h.0.attn.c_attn.weight") to arrays.  Weights are kept in one block owned by the C core and lent as
    read-only arrays; `assign` changes them.  Runs made before a change keep their arrays.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, np.ndarray] | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "",
        dtype: str = "float32",
    ) -> None:
        """Copy `weights` (all of `config.parameter_shapes()`; None: zeros) into a new model.

        `dtype` is "float32", or "float64" for the double-precision build of the same code.
        Raises ConfigError (code missing_tensor, config_value), ValueError for a wrong dtype.
        """
        if not isinstance(config, Config):
            raise TypeError(f"config must be an attnsparse.Config, got {type(config).__name__}")
        self._core = core_for(dtype).Model(config.to_dict())
        self.config = config  #: the `Config`: sizes and kind of the model
        self.tokenizer = tokenizer  #: the `Tokenizer`, or None
        self.name = name  #: as tables and figures show it
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

    @classmethod
    def _empty(cls, config: Config, dtype: str = "float32") -> Model:
        """A model with zero weights, to be filled by a loader through `_core._writable(name)`."""
        return cls(config, dtype=dtype)

    # --- weights

    def parameter(self, name: str) -> np.ndarray:
        """Read-only zero-copy view of one weight array; KeyError for an unknown name."""
        if name not in self._core.names:
            raise KeyError(f"this model has no parameter {name!r:.80}")
        return self._core.parameter(name)

    def parameters(self) -> dict[str, np.ndarray]:
        """All weight arrays by name, read-only and zero-copy: they show what training or `assign` makes of
        them. `copy` takes all weights of one moment."""
        return {name: self._core.parameter(name) for name in self._core.names}

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.config.n_parameters()

    def assign(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copy arrays into the weights of these names.

        Raises KeyError for an unknown name, ValueError for another shape, RuntimeError while another thread
        runs or trains the model; then nothing is written.  Arrays lent before show the new values; runs made
        before are out of date.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must be a mapping from names to arrays, got {type(weights).__name__}")
        self._core.assign({name: _check.reals(value, name, self.dtype) for name, value in weights.items()})

    def copy(self) -> Model:
        """A model with its own copy of the weights, all of one moment; RuntimeError while another thread
        changes them."""
        with self._core.reading():
            return Model(self.config, self.parameters(), self.tokenizer, self.name, str(self.dtype))

    @property
    def version(self) -> int:
        """Changes with every change of the weights."""
        return self._core.version

    @property
    def digest(self) -> str:
        """SHA-256 of configuration and weights, in hexadecimal; RuntimeError while another thread changes
        them."""
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

    # --- tokens

    def to_tokens(self, text: str, prepend_bos: bool = False) -> np.ndarray:
        """Token ids (int32, one dimension) of a text; ValueError if the model has no tokenizer."""
        return np.array(self._need_tokenizer().encode(text, prepend_bos=prepend_bos), dtype=np.int32)

    def to_str_tokens(self, text: str | Sequence[int] | np.ndarray, prepend_bos: bool = False) -> list[str]:
        """Token strings of a text or of token ids, as tables and figures show them; `<id>` for an id without
        a name.

        Raises TypeError for ids that are not integers, IndexError for ids that neither the model nor its
        tokenizer has, ValueError if the model has no tokenizer.
        """
        tokenizer = self._need_tokenizer()
        if isinstance(text, str):
            return tokenizer.token_strings(tokenizer.encode(text, prepend_bos=prepend_bos))
        return tokenizer.token_strings(checked_ids(text, max(self.config.n_vocab, tokenizer.n_vocab)))

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"model {self.name!r} has no tokenizer; give token ids, or load(..., tokenizer=...)"
            )
        return self.tokenizer

    # --- runs

    def run(
        self,
        prompts: Any,
        record: str | Sequence[str] = "attention",
        *,
        logits: str = "all",
        prepend_bos: bool = False,
        edge_threshold: float = 0.0,
        ablate: Any = None,
        patch: Any = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> Run:
        """One forward pass.

        `prompts` is a text, a one-dimensional sequence of token ids, or a list of texts or of such sequences,
        which may differ in length: nothing is padded.  `record` is a name or several (see `Run`):
        "attention" = pattern, q, k, v and the final LayerNorm's scale; "all"; "edges" = the open edges with
        their weights, never holding a T x T array (above `edge_threshold`; a closed gate is never an edge).
        `logits` is "all" positions, "last" of each prompt, or "none".  `prepend_bos` puts the tokenizer's BOS
        token first, also before given ids; it is recorded in the Run.

        `ablate` is one or more items to zero (heads such as "L9H6", edges such as "a9.h6[5->8]", ...), or an
        `interventions.Ablation` for means, counterfactuals and keep-only; `patch` maps items to values that
        take their place, the same in every prompt. See `attnsparse.interventions`. Recorded arrays are those
        of the changed run: z with its replaced rows, pattern with 0 where an edge is ablated. Where both
        name the same place, the patch counts.

        Raises MemoryError before allocating more than `max_bytes` (4 GiB), IndexError for token ids out of
        range, ValueError for a prompt that is empty or longer than n_ctx, TypeError for other kinds of input,
        RuntimeError while another thread trains this model, KeyboardInterrupt on Ctrl-C.
        """
        batch = as_batch(self, prompts, prepend_bos)
        changes = None
        if ablate is not None or patch is not None:
            from .interventions import compile_interventions

            changes = compile_interventions(self, batch, ablate, patch)
        return compute_run(self, batch, record, logits, edge_threshold, max_bytes, threads, changes)

    def run_with_cache(
        self,
        prompts: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        *,
        return_type: str | None = "logits",
        remove_batch_dim: bool = False,
        prepend_bos: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> tuple[Any, Any]:
        """(logits, cache) with TransformerLens's hook names and shapes (see `cache.ActivationCache`).

        Logits are [batch, pos, vocabulary], None with return_type=None, the mean next-token loss with "loss".
        All prompts must have the same length: TransformerLens would pad them, and padding changes results.
        """
        from .transformer_lens import run_with_cache

        return run_with_cache(
            self, prompts, names_filter, return_type, remove_batch_dim, prepend_bos, max_bytes
        )

    def gradients(
        self,
        prompts: Any,
        *,
        dlogits: np.ndarray | None = None,
        targets: Any = None,
        loss_mask: Any = None,
        wrt: str | Sequence[str] = "parameters",
        gate_gradient: str = "none",
        prepend_bos: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> Gradients:
        """Gradients of one scalar with respect to weights and activations, gates as at evaluation.

        The scalar is sum(dlogits * logits) for a given `dlogits` (all tokens of all prompts, V), or else the
        cross-entropy: `targets` (one id per token; default the next token) weighted by `loss_mask` (one
        number per token; default 1, and 0 at the last token of a prompt), divided by the sum of the weights.
        A target of -100, the usual mark for "ignore", has the weight 0; another negative id is an IndexError.
        `wrt`: "parameters" and names of activations: pattern, scores, q, k, v, z, resid_pre, resid_mid,
        resid_post, mlp_pre, mlp_post.  `gate_gradient`: "none" (a gate is a step: its derivative is 0), or
        "straight-through" (the step's derivative is taken to be that of the sigmoid, as in training).
        """
        batch = as_batch(self, prompts, prepend_bos)
        return compute_gradients(
            self, batch, dlogits, targets, loss_mask, wrt, gate_gradient, max_bytes, threads
        )

    # --- the rest

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a Hugging Face folder: see `attnsparse.save`."""
        from .load import save

        save(self, folder)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Model cannot be pickled: save it and load the folder; model.copy() is a copy")

    def __repr__(self) -> str:
        c = self.config
        kind = f"gated (gate_bias={c.gate_bias:g})" if c.gated else "dense"
        name = f"{self.name!r}, " if self.name else ""
        return (
            f"Model({name}{c.n_layer} layers x {c.n_head} heads, d_model={c.d_model}, n_vocab={c.n_vocab}, "
            f"{kind}, {self.n_parameters:,} weights, {self.dtype})"
        )
