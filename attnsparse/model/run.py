"""Run: what one forward pass recorded, as zero-copy read-only arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import _check
from .._core_types import Interventions, Substitute
from . import tables
from .batch import Batch
from .tokenizer import token_texts

if TYPE_CHECKING:
    import pandas as pd

    from .model import Model

DEFAULT_MAX_BYTES = 4 * 2**30
LOGITS = {"none": 0, "last": 1, "all": 2}

# name in Python -> array of the core
SQUARE = {"pattern": "pattern", "scores": "scores", "gate": "gate"}
LAYERED = {
    "resid_pre": "resid", "resid_mid": "resid_mid", "resid_post": "resid",
    "q": "qkv", "k": "qkv", "v": "qkv",
    "z": "z", "result": "result", "attn_out": "attn_out", "mlp_pre": "mlp_pre", "mlp_post": "mlp_post",
    "mlp_out": "mlp_out", "ln1_scale": "ln1_scale", "ln1_normalized": "ln1_normalized",
    "ln2_scale": "ln2_scale",
    "ln2_normalized": "ln2_normalized",
}  # fmt: skip
FLAT = {name: name for name in ("embed", "pos_embed", "ln_final_scale", "ln_final_normalized", "token_loss")}
PRESETS = {
    "attention": ("pattern", "q", "k", "v", "ln_final_scale"),
    "all": (*SQUARE, *LAYERED, *FLAT, "lse"),
    "none": (),
}
CORE_NAMES = {**SQUARE, **LAYERED, **FLAT, "lse": "lse", "loss": "token_loss"}


def core_records(record: str | Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Names of the core's arrays for `record`, and whether edges are asked for; ValueError else."""
    asked = _check.names(record, "record")
    names = [name for item in asked for name in PRESETS.get(item, (item,))]
    unknown = [name for name in names if name not in CORE_NAMES and name not in ("edges", "logits")]
    if unknown:
        presets = ", ".join([*PRESETS, "edges"])
        raise ValueError(
            f"record: there is nothing called {unknown[0]!r:.60}; known: {presets} and the arrays of "
            "help(attnsparse.Run), such as pattern, q or resid_pre"
        )
    return tuple(dict.fromkeys(CORE_NAMES[name] for name in names if name in CORE_NAMES)), "edges" in names


def compute_run(
    model: Model,
    batch: Batch,
    record: str | Sequence[str],
    logits: str,
    edge_threshold: float,
    max_bytes: int,
    threads: int | None,
    changes: Interventions | None = None,
    substitute: Substitute | None = None,
) -> Run:
    """See `Model.run`.

    changes: see `interventions.compile_interventions`; substitute: see `_core.Model.run`.
    """
    if not isinstance(logits, str) or logits not in LOGITS:
        raise ValueError(f"logits must be 'all', 'last' or 'none', got {logits!r}")
    names, edges = core_records(record)
    if not isinstance(edge_threshold, (int, float)) or not edge_threshold >= 0:
        raise ValueError(f"edge_threshold must be a number that is not negative, got {edge_threshold!r:.60}")
    threshold = float(edge_threshold) if edges else None
    max_bytes = _check.byte_limit(max_bytes)
    core = model._core.run(
        batch.tokens,
        batch.offsets,
        names,
        LOGITS[logits],
        max_bytes,
        threshold,
        _check.threads(threads),
        changes,
        substitute,
    )
    altered = "interventions" if changes is not None else "replaced MLPs" if substitute is not None else ""
    return Run(model, core, batch, logits, None, altered)


class Run:
    """One forward pass over one prompt or several; `len(run)` prompts, `run[i]` is one prompt's Run.

    Arrays are float32 (float64 for a float64 model), read-only, and lend the memory of the pass, which lives
    as long as any of them.  Of one prompt, with L layers, H heads, T tokens, D head width, E model width,
    M MLP width and V tokens in the vocabulary:

    * pattern [L, H, query, key], C-contiguous; rows of a gated model sum to anything in 0..1;
    * scores [L, H, query, key], -inf for key > query, and gate, the same as bool;
    * lse [L, H, T], the log-sum-exp of each score row;
    * q, k, v, z [L, T, H, D]; result [L, T, H, E], the output of each head;
    * resid_pre, resid_mid, resid_post, attn_out, mlp_out [L, T, E]; mlp_pre, mlp_post [L, T, M];
    * ln1_scale, ln2_scale [L, T]; ln1_normalized, ln2_normalized [L, T, E], which is (x - mean) / scale
      before weight and bias; ln_final_scale [T], ln_final_normalized [T, E];
    * embed, pos_embed [T, E]; logits [T, V], or [V] of the last token; token_loss [T - 1], the
      cross-entropy of each next token.

    A batch of equally long prompts has the same arrays with a batch axis in front; for other batches ask
    `run[i]`.  What was not recorded is not stored: AttributeError.
    """

    def __init__(
        self, model: Model, core: Any, batch: Batch, logits: str, index: int | None, altered: str = ""
    ) -> None:
        """Made by `Model.run`."""
        self.model = model
        self._core = core
        self._batch = batch
        self._logits = logits
        self._index = 0 if batch.single else index
        self._altered = altered  # what made this run other than the model's own, or an empty text
        self._recorded = frozenset(core.names)

    # --- prompts

    def __len__(self) -> int:
        return 1 if self._index is not None else len(self._batch)

    def __getitem__(self, i: int) -> Run:
        return Run(self.model, self._core, self._batch, self._logits, self._prompt_index(i), self._altered)

    def _prompt_index(self, i: int) -> int:
        n = len(self)
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(f"the number of a prompt must be an integer, got {type(i).__name__}") from None
        if not -n <= i < n:
            raise IndexError(f"there is no prompt {i}: this run has {n}")
        return self._index if self._index is not None else i % n

    def __iter__(self) -> Iterator[Run]:
        return (self[i] for i in range(len(self)))

    @property
    def prepend_bos(self) -> bool:
        """True if a BOS token was put before the prompt; positions count it."""
        return self._batch.prepend_bos

    @property
    def prompt(self) -> str | None:
        """The text that was run; None if token ids were given."""
        return self._batch.texts[self._one("prompt")]

    @property
    def tokens(self) -> np.ndarray:
        """Token ids, int32 [T], or [batch, T] of equally long prompts."""
        return self._flat(self._batch.tokens)

    @property
    def n_tokens(self) -> int:
        """T, the number of tokens (of each prompt)."""
        return self._length()

    @property
    def token_strings(self) -> list[str]:
        """The tokens as text; in angle brackets ids that have no name."""
        first, last = self._range(self._one("token_strings"))
        ids = self._batch.tokens[first:last].tolist()
        return token_texts(self.model.tokenizer, ids)

    # --- arrays

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the arrays that this run has."""
        names = [name for name, core in CORE_NAMES.items() if core in self._recorded and name != "loss"]
        return (
            *names,
            *(["logits"] if self._logits != "none" else []),
            *(["edges"] if self._has_edges() else []),
        )

    def _array(self, name: str) -> np.ndarray:
        """One recorded array in the shape of this run's prompts; AttributeError if it was not recorded."""
        self._need(name)
        packed = self._core.array(CORE_NAMES[name])
        if name in SQUARE:
            return self._square(packed)
        if name == "lse":
            return self._layered(packed.transpose(0, 2, 1)).swapaxes(-1, -2)
        if name in ("q", "k", "v"):
            packed = packed[:, :, "qkv".index(name)]
        elif name == "resid_pre":
            packed = packed[:-1]
        elif name == "resid_post":
            packed = packed[1:]
        elif name == "token_loss":
            return self._flat(packed)[..., :-1]
        return self._flat(packed) if name in FLAT else self._layered(packed)

    @property
    def logits(self) -> np.ndarray:
        """[T, V], or [V] for logits="last"; with a batch axis in front for a batch."""
        if self._logits == "none":
            raise AttributeError("this run did not compute logits; run with logits='all' or 'last'")
        packed = self._core.array("logits")
        if self._logits == "all":
            return self._flat(packed)
        return packed if self._index is None else packed[self._index]

    @property
    def loss(self) -> float:
        """Mean next-token cross-entropy in nats over all prompts; needs record="token_loss" (or "loss")."""
        self._need("token_loss")
        packed = self._core.array("token_loss").astype(np.float64)
        first, last = (0, len(packed)) if self._index is None else self._range(self._index)
        n = last - first - len(self)
        return float(packed[first:last].sum() / n) if n else float("nan")

    def edge_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(layer, head, query, key, weight) of one prompt's open edges, sorted in that order.

        Needs record="edges".
        layer, head, query and key are int32, weight is a zero-copy view.
        """
        prompt = self._one("edge_arrays")
        if not self._has_edges():
            raise AttributeError('this run did not record edges; run with record="edges"')
        config, (first, last) = self.model.config, self._range(prompt)
        per_token = config.n_layer * config.n_head
        start, key, weight = self._core.edges()
        start = start[per_token * first : per_token * last + 1]
        counts = np.diff(start).reshape(config.n_layer, config.n_head, last - first)
        layer, head, query = (
            np.repeat(index.ravel().astype(np.int32), counts.ravel()) for index in np.indices(counts.shape)
        )
        span = slice(int(start[0]), int(start[-1]))
        return layer, head, query, key[span], weight[span]

    @property
    def edge_csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start, key, weight) of record="edges": CSR with rows in the order (prompt, layer, head, query).

        start is int64 [rows + 1], key int32 and weight real [edges]; all zero-copy.
        """
        if not self._has_edges():
            raise AttributeError('this run did not record edges; run with record="edges"')
        return self._core.edges()

    # --- what a key carries

    def value_norms(
        self, direction: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """|v|, |v W_O of the head| and, given a direction [E], (v W_O) . direction; each [L, H, key].

        Needs q, k, v.  Raises RuntimeError if the weights changed after the run.
        """
        self._need("v")
        if direction is not None:
            direction = _check.reals(direction, "direction", self.model.dtype)
        return self._core.value_norms(direction, *self._range(self._one("value_norms")))

    def entry_scores(self, layer: Any, head: Any, query: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores and gates (bool; all True for a dense model) of entries given by four equally long arrays.

        Needs q, k, v.  Raises IndexError out of range, ValueError for a key after its query, RuntimeError if
        the weights changed after the run.
        """
        self._need("q")
        first, last = self._range(self._one("entry_scores"))
        named = {"layer": layer, "head": head, "query": query, "key": key}
        layer, head, query, key = (_indices(name, values) for name, values in named.items())
        if not len(layer) == len(head) == len(query) == len(key):
            raise ValueError("layer, head, query and key must have the same length")
        scores = np.empty(len(layer), self.model.dtype)
        # in parts, between which signals are heard, and whose copies are small
        for at in range(0, max(len(layer), 1), _ENTRIES_AT_ONCE):
            part = slice(at, at + _ENTRIES_AT_ONCE)
            _check_entries(query[part], key[part], last - first, at)
            scores[part] = self._core.entry_scores(
                layer[part], head[part], query[part] + first, key[part] + first
            )
        config = self.model.config
        gates = (
            scores + scores.dtype.type(config.gate_bias) > 0 if config.gated else np.ones(len(scores), bool)
        )
        return scores, gates

    # --- tables

    def heads(self, key: int | str, query: int | str, base: int = 0, logit_diff: Any = None) -> pd.DataFrame:
        """Which heads carry `key` to `query`: see `attnsparse.model.tables.heads`."""
        return tables.heads(self, key, query, base, logit_diff)

    def edges(self, threshold: float = 0.0, base: int = 0) -> pd.DataFrame:
        """The open edges: see `attnsparse.model.tables.edges`."""
        return tables.edges(self, threshold, base)

    def _repr_html_(self) -> str:
        return tables.summary_html(self)

    def __copy__(self) -> Run:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Run cannot be pickled: take its arrays, or tables such as run.heads()")

    def __repr__(self) -> str:
        what = f"{self.n_tokens} tokens" if self._index is not None else f"{len(self)} prompts"
        recorded = ", ".join(self.recorded)
        return f"Run({what}, model={self.model.name!r}, prepend_bos={self.prepend_bos}, {recorded})"

    # --- packed -> one prompt, or a batch of equally long ones

    def _has_edges(self) -> bool:
        try:
            self._core.edges()
        except KeyError:
            return False
        return True

    def _need(self, name: str) -> None:
        if CORE_NAMES[name] not in self._recorded:
            raise AttributeError(f"this run did not record {name}; {self._how_to_record(name)}")

    def _how_to_record(self, name: str) -> str:
        return f"run with record={name!r} (it has: {', '.join(self.recorded) or 'nothing'})"

    def _one(self, what: str) -> int:
        if self._index is None:
            raise ValueError(f"{what} is of one prompt, this run has {len(self)}; use run[i].{what}")
        return self._index

    def _range(self, prompt: int) -> tuple[int, int]:
        return int(self._batch.offsets[prompt]), int(self._batch.offsets[prompt + 1])

    def _length(self) -> int:
        if self._index is not None:
            return int(self._batch.lengths[self._index])
        lengths = set(self._batch.lengths.tolist())
        if len(lengths) > 1:
            raise ValueError(
                f"prompts have {min(lengths)} to {max(lengths)} tokens, so there is no one array; use run[i]"
            )
        return lengths.pop()

    def _flat(self, packed: np.ndarray) -> np.ndarray:
        """[N, ...] -> [T, ...] or [batch, T, ...]."""
        if self._index is not None:
            first, last = self._range(self._index)
            return packed[first:last]
        return packed.reshape(len(self), self._length(), *packed.shape[1:])

    def _layered(self, packed: np.ndarray) -> np.ndarray:
        """[L, N, ...] -> [L, T, ...] or [batch, L, T, ...]."""
        if self._index is not None:
            first, last = self._range(self._index)
            return packed[:, first:last]
        return packed.reshape(len(packed), len(self), self._length(), *packed.shape[2:]).swapaxes(0, 1)

    def _square(self, packed: np.ndarray) -> np.ndarray:
        """Packed per prompt (L, H, T, T) -> [L, H, T, T] or [batch, L, H, T, T]."""
        config = self.model.config
        heads = (config.n_layer, config.n_head)
        if self._index is None:
            return packed.reshape(len(self), *heads, self._length(), self._length())
        units, t = config.n_layer * config.n_head, self._length()
        first, last = self._batch.squares[self._index : self._index + 2] * units
        return packed[first:last].reshape(*heads, t, t)


_ENTRIES_AT_ONCE = 1 << 17


def _check_entries(query: np.ndarray, key: np.ndarray, n_tokens: int, begin: int) -> None:
    for name, values in (("query", query), ("key", key)):
        if values.size and (values.min() < 0 or values.max() >= n_tokens):
            raise IndexError(f"{name} must be in 0..{n_tokens - 1}")
    if (key > query).any():
        at = int(np.argmax(key > query))
        raise ValueError(
            f"attention looks back: entry {begin + at} has key {key[at]} after query {query[at]}"
        )


def _indices(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _array_property(name: str) -> property:
    return property(lambda run: run._array(name), doc=f"The recorded array {name}; its shape: see `Run`.")


for _name in (*SQUARE, *LAYERED, *FLAT, "lse"):
    setattr(Run, _name, _array_property(_name))
