"""Run: one forward pass, what it recorded, and tables of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._core_types import Frozen, Functions, Interventions, Steering, Substitute
from . import run_page, tables
from .batch import Batch
from .lens import attribution, detectors, logit_lens
from .recorded import CORE_NAMES, FLAT, LAYERED, SQUARE, Recorded

if TYPE_CHECKING:
    import pandas as pd

    from .. import _core as core_types
    from .model import Model

DEFAULT_MAX_BYTES = 4 * 2**30
FROZEN = {
    "pattern": ("pattern",),
    "gate": ("gate",),
    "ln_scale": ("ln1_scale", "ln2_scale", "ln_final_scale"),
}  #: what `freeze=` takes from another run, and the arrays that it needs
Freeze: TypeAlias = "str | Sequence[str] | Mapping[str, Run]"
LOGITS = {"none": 0, "last": 1, "all": 2}
AFTER_LAYERS = ("ln_final_scale", "ln_final_normalized", "token_loss", "loss")

PRESETS = {
    "attention": ("pattern", "q", "k", "v", "ln_final_scale"),
    "all": (*SQUARE, *LAYERED, *FLAT, "lse"),
    "none": (),
    "attribution": (
        "pattern", "v", "z", "mlp_out", "mlp_post", "embed", "pos_embed", "resid_pre", "ln_final_scale",
        "ln_final_normalized",
    ),
}  # fmt: skip


def core_records(record: str | Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Names of the core's arrays for `record`, and whether edges are asked for; ValueError else."""
    asked = _check.names(record, "record")
    names = [name for item in asked for name in PRESETS.get(item, (item,))]
    unknown = [name for name in names if name not in CORE_NAMES and name not in ("edges", "logits")]
    if unknown:
        presets = ", ".join([*PRESETS, "edges"])
        raise ValueError(
            f"record: unknown name {unknown[0]!r:.60}; choose from {presets} and the arrays of "
            "help(attnsparse.Run), such as pattern, q or resid_pre"
        )
    return tuple(dict.fromkeys(CORE_NAMES[name] for name in names if name in CORE_NAMES)), "edges" in names


def _before_stop(record: str | Sequence[str], names: tuple[str, ...], stop: int | None) -> tuple[str, ...]:
    """Without what a run that stops does not compute; ValueError if that is asked for by its own name."""
    if stop is None:
        return names
    for name in _check.names(record, "record"):
        if name in (*AFTER_LAYERS, "logits"):
            raise ValueError(f"record: a run that stops before layer {stop} computes no {name}")
    return tuple(name for name in names if name not in AFTER_LAYERS)


def stop_layer(model: Model, stop_at_layer: int | None) -> int | None:
    """The layer, counted from 0, before which a run stops: 1..n_layer."""
    if stop_at_layer is None:
        return None
    n_layer, layer = model.config.n_layer, _check.integer(stop_at_layer, "stop_at_layer")
    if not -n_layer < layer <= n_layer or layer == 0:
        raise ValueError(
            f"stop_at_layer must be in 1..{n_layer}, or -1..{1 - n_layer} counted from the end, got {layer}"
        )
    return layer % n_layer or n_layer


def compute_run(
    model: Model,
    batch: Batch,
    record: str | Sequence[str],
    logits: str,
    edge_threshold: float,
    max_bytes: int,
    threads: int | None,
    changes: tuple[Interventions | None, Steering | None] = (None, None),
    substitute: Substitute | None = None,
    functions: Functions | None = None,
    freeze: Freeze | None = None,
    stop_at_layer: int | None = None,
) -> Run:
    """See `Model.run`."""
    _check.choice(logits, "logits", LOGITS)
    names, edges = core_records(record)
    stop = stop_layer(model, stop_at_layer)
    names, logits = _before_stop(record, names, stop), logits if stop is None else "none"
    edge_threshold = _check.number(edge_threshold, "edge_threshold", 0.0)
    frozen = None if freeze is None else compile_frozen(model, batch, freeze)
    core = model._core.run(
        batch.tokens,
        batch.offsets,
        names,
        logits=LOGITS[logits],
        max_bytes=_check.byte_limit(max_bytes),
        edge_threshold=edge_threshold if edges else None,
        threads=_check.threads(threads),
        interventions=changes[0],
        substitute=substitute,
        functions=functions,
        frozen=frozen,
        steering=changes[1],
        stop_at=stop or 0,
    )
    features = None if substitute is None else substitute.changes
    changed = any(each is not None for each in (*changes, functions, frozen, features))
    altered = "interventions" if changed else "replaced MLPs" if substitute is not None else ""
    return Run(model, core, batch, logits, None, altered, stop)


def compile_frozen(model: Model, batch: Batch, freeze: Freeze) -> Frozen:
    """What the core takes for `Model.run(freeze=)`."""
    names = list(freeze) if isinstance(freeze, Mapping) else _check.names(freeze, "freeze")
    for name in names:
        _check.choice(name, "freeze", FROZEN)
    fields: dict[str, Any] = {}
    if not isinstance(freeze, Mapping):
        records = tuple(array for name in dict.fromkeys(names) for array in FROZEN[name])
        own = model._core.run(batch.tokens, batch.offsets, records, 0, DEFAULT_MAX_BYTES)
        fields = {_FIELDS[name]: own for name in names}
    else:
        for name in names:
            run = _check.instance(freeze[name], Run, f"freeze[{name!r}]")
            _check_fits(run, model, batch, name)
            fields |= {_FIELDS[name]: run._core, f"{_FIELDS[name]}_first": run._index or 0}
    return Frozen(**fields)


_FIELDS = {"pattern": "pattern", "gate": "gate", "ln_scale": "scales"}


def _check_fits(run: Run, model: Model, batch: Batch, name: str) -> None:
    """Whether a run of another pass can give these prompts its patterns, gates or scales."""
    if run.stop_at_layer is not None:
        raise ValueError(f"freeze[{name!r}]: the run stopped before layer {run.stop_at_layer}")
    for array in FROZEN[name]:
        if array not in run.recorded:
            raise ValueError(f"freeze[{name!r}]: the run did not record {array}; {run._how_to_record(array)}")
    one, other = (m.config for m in (run.model, model))
    if (one.n_layer, one.n_head, run.model.dtype) != (other.n_layer, other.n_head, model.dtype):
        raise ValueError(
            f"freeze[{name!r}]: the run is of a model of {one.n_layer} layers, {one.n_head} heads and "
            f"{run.model.dtype}, this one has {other.n_layer}, {other.n_head} and {model.dtype}"
        )
    if len(run) != len(batch):
        raise ValueError(f"freeze[{name!r}]: the run has {len(run)} prompts, expected {len(batch)}")


class Run(Recorded):
    """One forward pass over one prompt or several: `len(run)` prompts, `run[i]` is the Run of one of them.

    Made by `Model.run`.

    Notes
    -----
    Arrays are float32 (float64 for a float64 model), read-only, and share the memory of the pass, which
    lives as long as any of them.  Of one prompt, with L layers, H heads, T tokens, D head width, E model
    width, M MLP width and V tokens in the vocabulary:

    * pattern [L, H, query, key], C-contiguous; rows of a gated model sum to anything in 0..1;
    * scores [L, H, query, key], -inf for key > query, and gate, bool of the same shape;
    * lse [L, H, T], the log-sum-exp of each row of scores;
    * q, k, v, z [L, T, H, D]; result [L, T, H, E], the output of each head;
    * resid_pre, resid_mid, resid_post, attn_out, mlp_out [L, T, E]; mlp_pre, mlp_post [L, T, M];
    * ln1_scale, ln2_scale [L, T]; ln1_normalized, ln2_normalized [L, T, E], which is (x - mean) / scale
      before weight and bias; ln_final_scale [T], ln_final_normalized [T, E];
    * embed, pos_embed [T, E]; logits [T, V], or [V] of the last token; token_loss [T - 1], the
      cross-entropy of each next token.

    A batch of equally long prompts has the same arrays with a batch axis in front; for other batches use
    `run[i]`.  An array that was not recorded raises AttributeError.

    A run with ``stop_at_layer=`` has arrays of the layers before it, and neither logits, token_loss nor the
    final LayerNorm; ``resid_post[-1]`` is where it stopped. Tables, lenses and pages need all layers.
    """

    _core: core_types.Run

    def __init__(
        self,
        model: Model,
        core: core_types.Run,
        batch: Batch,
        logits: str,
        index: int | None,
        altered: str = "",
        stop_at_layer: int | None = None,
    ) -> None:
        super().__init__(model, core, batch, index)
        #: the layer before which the run stopped, or None
        self.stop_at_layer = stop_at_layer
        self._logits = logits
        self._altered = altered  # what made this run other than the model's own, or an empty text

    def __getitem__(self, i: int) -> Run:
        twin = copy.copy(self)
        twin._index = self._prompt_index(i)
        return twin

    def __iter__(self) -> Iterator[Run]:
        return (self[i] for i in range(len(self)))

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the arrays that this run has."""
        logits = ("logits",) if self._logits != "none" else ()
        return (*super().recorded, *logits, *(("edges",) if self._has_edges() else ()))

    @property
    def _n_layer(self) -> int:
        return self.model.config.n_layer if self.stop_at_layer is None else self.stop_at_layer

    def _how_to_record(self, name: str) -> str:
        if self.stop_at_layer is not None and name in AFTER_LAYERS:
            return f"it stopped before layer {self.stop_at_layer}"
        return super()._how_to_record(name)

    @property
    def logits(self) -> np.ndarray:
        """Logits, [T, V], or [V] for logits="last"; with a batch axis in front for a batch."""
        if self.stop_at_layer is not None:
            raise AttributeError(f"this run stopped before layer {self.stop_at_layer}: it has no logits")
        if self._logits == "none":
            raise AttributeError("this run did not compute logits; run with logits='all' or 'last'")
        packed = self._core.array("logits")
        if self._logits == "all":
            return self._flat(packed)
        return packed if self._index is None else packed[self._index]

    @property
    def loss(self) -> float:
        """Mean next-token cross-entropy in nats over all prompts; needs record="token_loss" or "loss"."""
        self._need("token_loss")
        packed = self._core.array("token_loss").astype(np.float64)
        first, last = (0, len(packed)) if self._index is None else self._range(self._index)
        n = last - first - len(self)
        return float(packed[first:last].sum() / n) if n else float("nan")

    def edge_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The open edges of one prompt as arrays, sorted by layer, head, query and key.

        Returns
        -------
        layer, head, query, key : numpy.ndarray
            int32 [edges].
        weight : numpy.ndarray
            Entries of the pattern, [edges]; a view of the run's memory.

        Raises
        ------
        AttributeError
            If the run was made without ``record="edges"``.
        ValueError
            If the run holds several prompts.
        """
        prompt = self._one("edge_arrays")
        if not self._has_edges():
            raise AttributeError('this run did not record edges; run with record="edges"')
        config, (first, last) = self.model.config, self._range(prompt)
        per_token = self._n_layer * config.n_head
        start, key, weight = self._core.edges()
        start = start[per_token * first : per_token * last + 1]
        counts = np.diff(start).reshape(self._n_layer, config.n_head, last - first)
        layer, head, query = (
            np.repeat(index.ravel().astype(np.int32), counts.ravel()) for index in np.indices(counts.shape)
        )
        span = slice(int(start[0]), int(start[-1]))
        return layer, head, query, key[span], weight[span]

    # --- what a key carries

    def value_norms(
        self, direction: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Sizes of what each key gives to the queries that attend to it; needs q, k and v.

        Parameters
        ----------
        direction : array of float [E], optional
            A direction in the residual stream.

        Returns
        -------
        value_norm : numpy.ndarray
            ``|v|``, [L, H, key].
        output_norm : numpy.ndarray
            ``|v W_O|`` with the head's part of W_O, [L, H, key].
        projection : numpy.ndarray or None
            ``(v W_O) . direction``, [L, H, key]; None without a direction.

        Raises
        ------
        RuntimeError
            If the weights changed after the run.
        """
        self._need("v")
        if direction is not None:
            direction = _check.reals(direction, "direction", self.model.dtype)
        return self._core.value_norms(direction, *self._range(self._one("value_norms")))

    def entry_scores(self, layer: Any, head: Any, query: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores and gates of chosen attention entries; needs q, k and v.

        Parameters
        ----------
        layer, head, query, key : array of int [n]
            The entries, counted from 0.

        Returns
        -------
        scores : numpy.ndarray
            Scores before the softmax, [n].
        gates : numpy.ndarray
            Whether the gate is open, bool [n]; all True for a dense model.

        Raises
        ------
        IndexError
            For an entry out of range.
        ValueError
            For a key after its query.
        RuntimeError
            If the weights changed after the run.
        """
        self._need("q")
        first, last = self._range(self._one("entry_scores"))
        named = {"layer": layer, "head": head, "query": query, "key": key}
        layer, head, query, key = (_indices(name, values) for name, values in named.items())
        if not len(layer) == len(head) == len(query) == len(key):
            raise ValueError("layer, head, query and key must have the same length")
        scores = np.empty(len(layer), self.model.dtype)
        # in parts: signals are handled between them, and their copies are small
        for at in range(0, max(len(layer), 1), _ENTRIES_AT_ONCE):
            part = slice(at, at + _ENTRIES_AT_ONCE)
            _check_entries(query[part], key[part], last - first, at)
            scores[part] = self._core.entry_scores(
                layer[part], head[part], query[part] + first, key[part] + first
            )
        config = self.model.config
        if not config.gated:
            return scores, np.ones(len(scores), bool)
        gates = scores + scores.dtype.type(config.gate_bias) > 0
        return scores, gates & (query != key) if config.self_closed else gates

    # --- tables

    def heads(
        self,
        key: int | str,
        query: int | str,
        base: int = 0,
        logit_diff: tables.LogitDiff | Iterable[tables.LogitDiff] | None = None,
        *,
        texts: bool = False,
    ) -> pd.DataFrame:
        """What each head moves from position `key` to position `query`, in one prompt or in each.

        Needs ``record=`` with pattern, q, k and v, and ln_final_scale for `logit_diff`.

        Parameters
        ----------
        key, query : int or str
            Positions counted from `base`; negative ones count from the end (-1 is the last token for either
            base). A text is a token as displayed, with or without its leading space.
        base : int, default 0
            Number of the first position, 0 or 1.
        logit_diff : pair of str or int, or sequence of pairs, optional
            (right, wrong), two single tokens as text or ids, for all prompts or for each: adds the column
            logit_diff.
        texts : bool, default False
            Also give each prompt as text, in the column prompt_text.

        Returns
        -------
        pandas.DataFrame
            One row per head, sorted by contribution, largest first; equal ones stay in the order of layers
            and heads; of a batch, prompt by prompt. Columns: model, prompt (from 0; of a batch alone),
            prompt_text, layer, head_index, label ("L9H6"), query_position, key_position (counted from
            `base`), query_token, key_token, weight (the entry of `pattern` that was used, 0 if the gate is
            closed), score, gate (bool), value_norm ``|v|``, contribution ``|weight * v W_O|``. logit_diff is
            what the head writes at `query` from `key` adds to logit(right) - logit(wrong) there, straight
            through the final LayerNorm with its scale kept as in this run; later layers do not see it.

        Raises
        ------
        ValueError
            If `key` comes after `query`, if an array is missing, if no token or several tokens match a text
            (the message lists their positions), or for pairs of another number than the prompts.
        IndexError
            If a position is outside the prompt.
        """
        return tables.heads(self, key, query, base, logit_diff, texts)

    def open_edges(self, threshold: float = 0.0, base: int = 0, *, texts: bool = False) -> pd.DataFrame:
        """The open attention edges of the prompts: entries with an open gate and a weight above `threshold`.

        A dense model has no gate: there every entry above `threshold` is an edge. Needs `pattern`, or
        ``record="edges"`` (the open edges without the T x T arrays), which keeps nothing below the
        edge_threshold of its run.

        Parameters
        ----------
        threshold : float, default 0
            Weight above which an entry is an edge, at least 0.
        base : int, default 0
            Number of the first position, 0 or 1.
        texts : bool, default False
            As in `heads`.

        Returns
        -------
        pandas.DataFrame
            One row per edge in the order of prompt, layer, head, query, key; columns as in `heads`, without
            logit_diff. Without q and k there is no score and gate, without v no value_norm and contribution.

        Raises
        ------
        ValueError
            For a negative threshold, or if neither form of the edges was recorded.
        """
        return tables.edges(self, threshold, base, texts)

    # --- logits

    top = logit_lens.top
    logit_lens = logit_lens.logit_lens
    attribute = attribution.attribute
    detect_heads = detectors.detect_heads
    # --- pages

    to_html = run_page.to_html
    show = run_page.show
    widget = run_page.widget

    def _repr_html_(self) -> str:
        return tables.summary_html(self)

    def __repr__(self) -> str:
        one = self._index is not None
        what = f"{self.n_tokens} tokens" if one else f"{len(self)} prompt{'s' * (len(self) != 1)}"
        recorded = ", ".join(self.recorded)
        stop = "" if self.stop_at_layer is None else f", stopped before layer {self.stop_at_layer}"
        return f"Run({what}, model={self.model.name!r}, prepend_bos={self.prepend_bos}, {recorded}{stop})"

    def _has_edges(self) -> bool:
        try:
            self._core.edges()
        except KeyError:
            return False
        return True


_ENTRIES_AT_ONCE = 1 << 17


def _check_entries(query: np.ndarray, key: np.ndarray, n_tokens: int, begin: int) -> None:
    for name, values in (("query", query), ("key", key)):
        if values.size and (values.min() < 0 or values.max() >= n_tokens):
            worst = int(values.min() if values.min() < 0 else values.max())
            raise IndexError(f"{name} must be in 0..{n_tokens - 1}, got {worst}")
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
