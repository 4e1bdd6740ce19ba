"""The C core.  attnsparse._core64 is the same code in float64; "real" below is float32 here, float64 there.

Letters: B sequences, N tokens of all of them, L layers, H heads, D head width, E model width, M MLP width,
V vocabulary.  Sequences are packed without padding: sequence b is tokens[offsets[b]:offsets[b + 1]].  Arrays
passed in must be C-contiguous and of the stated type; arrays returned lend memory of the object and keep it
alive.  `threads=0` means the number set by `set_num_threads`.
"""

from collections.abc import Sequence
from typing import Any, Literal, final, overload

import numpy as np
import numpy.typing as npt

from ._core_types import HeldRun, Interventions, Metric, Reads, Reference, Substitute, Writes

Real = npt.NDArray[np.floating[Any]]

def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def machine() -> dict[str, Any]: ...
def graph_loadings(
    carried: Real,
    received: Real,
    received_alone: Real,
    pattern: Real,
    pairs: np.ndarray,
    places: np.ndarray,
    factor: np.ndarray,
    /,
) -> np.ndarray:
    """(n,L,H) float64: factor (n) times what each head moves along pairs (n,2) of source and target between
    places (n,2), int64; carried (n_sources,L,H,D), received and received_alone (n_targets,L,H,D), pattern
    (L,H,T,T)."""

def graph_influence(
    start: np.ndarray, source: np.ndarray, weight: Real, weights: np.ndarray, /
) -> np.ndarray:
    """(n) float64 of a graph in CSR by target (start (n+1) int64, source int32); weights (n) float64."""

def graph_factors(
    start: np.ndarray,
    source: np.ndarray,
    weight: Real,
    value: Real,
    wanted: np.ndarray,
    blocked: np.ndarray,
    /,
) -> np.ndarray:
    """(n) float64: derivative of the wanted nodes by each node's input; wanted, blocked (n) bool."""

def graph_prune(
    start: np.ndarray,
    source: np.ndarray,
    weight: Real,
    weights: np.ndarray,
    always: np.ndarray,
    feature: np.ndarray,
    node_threshold: float,
    edge_threshold: float,
    /,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes kept (n) bool, edges kept (m) bool, cumulative influence (n) float64)."""

def _blas_state() -> object: ...
def _share_blas_state(state: object, /) -> None: ...
def _select_isa(name: str, /) -> None: ...
def _debug_stats() -> dict[str, int]: ...
def _debug_fail_at(n: int, /) -> None: ...
def _noise_row(n: int, seed: int, step: int, sequence: int, layer: int, head: int, query: int, /) -> Real:
    """Uniform numbers u in (0, 1) of keys 0..n-1 of one gate row; the noise is log(u / (1 - u))."""

def _exp(x: Real, /) -> Real: ...

@final
class Model:
    def __init__(self, config: dict[str, Any]) -> None:
        """Zero weights; ValueError for a config without one of the fields of attnsparse.Config."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def version(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def shape(self, name: str, /) -> tuple[int, ...]: ...
    def parameter(self, name: str, /) -> Real:
        """Read-only view."""

    def _writable(self, name: str, /) -> Real:
        """View for loaders that fill a new model before its first run."""

    def assign(self, weights: dict[str, Real], /) -> None:
        """All or nothing."""
    def reading(self) -> Reading:
        """Held until it is left or gone; RuntimeError while another thread changes the weights."""
    def nonfinite(self) -> tuple[str, int, int] | None:
        """(name, count, first flat index) of the first array with NaN or infinity."""

    def run(
        self,
        tokens: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        record: Sequence[str],
        logits: int = 2,
        max_bytes: int = ...,
        edge_threshold: float | None = None,
        threads: int = 0,
        interventions: Interventions | None = None,
        substitute: Substitute | None = None,
    ) -> Run:
        """Forward pass; logits 0 none, 1 last token of each sequence, 2 all.

        substitute: transcoders in place of MLPs, new Features of N tokens.
        """

    @overload
    def sweep(
        self,
        clean: Run,
        variants: npt.NDArray[np.int64],
        unit: int,
        order: npt.NDArray[np.int32],
        reference: Reference,
        metric: Metric,
        threads: int = 0,
        count: Literal[False] = False,
    ) -> npt.NDArray[np.float64]:
        """Metric of every variant (n,7: the fields of asp_variant) of a clean run
        that recorded resid and qkv; see asp_sweep in csrc/asp.h.

        unit: 0 heads, 1 heads at positions, 2 attention entries; order: flat ranks of all items of the unit.
        count: also return how many rows of layers were computed, and how many the variants have each alone.
        """

    @overload
    def sweep(
        self,
        clean: Run,
        variants: npt.NDArray[np.int64],
        unit: int,
        order: npt.NDArray[np.int32],
        reference: Reference,
        metric: Metric,
        threads: int,
        count: Literal[True],
    ) -> tuple[npt.NDArray[np.float64], int, int]: ...
    def attribution(
        self,
        tokens: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        unit: int,
        steps: int,
        through_gate: bool,
        reference: Reference,
        closed: npt.NDArray[np.bool_] | None,
        metric: Metric,
        max_bytes: int = ...,
        threads: int = 0,
    ) -> npt.NDArray[np.float64]:
        """First-order effects (L,H), (L,H,T) or (L,H,T,T), summed over sequences; see asp_attribution."""

    def graph_edges(
        self, frozen: HeldRun, writes: Writes, reads: Reads, threads: int = 0
    ) -> tuple[Real, np.ndarray]:
        """((n_targets,n_sources), constants (n_targets) float64): linear effects of sources on targets."""

    def graph_carried(self, frozen: HeldRun, writes: Writes, threads: int = 0) -> Real:
        """(n_sources,L,H,D): what each head's values hold of a source at its own position."""

    def graph_received(self, frozen: HeldRun, reads: Reads, alone: bool, threads: int = 0) -> Real:
        """(n_targets,L,H,D): derivative of a target with respect to z at its position, on paths that stay
        there; alone: through the residual stream only."""

    def gradients(
        self,
        tokens: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        record: Sequence[str],
        parameters: bool,
        dlogits: Real | None,
        targets: npt.NDArray[np.int32] | None,
        weights: Real | None,
        straight_through: bool = False,
        max_bytes: int = ...,
        threads: int = 0,
    ) -> Gradients:
        """dlogits (N,V); or targets (N) and weights (N) of the cross-entropy sum(w ce) / sum(w)."""

@final
class Reading:
    """While it is held nobody changes the weights: `assign` and a training step raise RuntimeError."""

    def __enter__(self) -> Reading: ...
    def __exit__(self, *exc: object) -> None: ...

@final
class Run:
    @property
    def names(self) -> list[str]: ...
    @property
    def nbytes(self) -> int: ...
    def array(self, name: str, /) -> np.ndarray:
        """Packed: resid (L+1,N,E), qkv (L,N,3,H,D), z (L,N,H,D), result (L,N,H,E), resid_mid, attn_out,
        mlp_out, ln1_normalized, ln2_normalized (L,N,E), mlp_pre, mlp_post (L,N,M), ln1_scale, ln2_scale
        (L,N), lse (L,H,N), embed, pos_embed, ln_final_normalized (N,E), ln_final_scale, token_loss (N),
        logits (N or B,V); pattern, scores, gate flat, one (L,H,T,T) block per sequence."""

    def edges(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], Real]:
        """(start, key, weight), rows in the order (sequence, layer, head, query)."""

    def value_norms(
        self, direction: Real | None, first: int, last: int, /
    ) -> tuple[Real, Real, Real | None]: ...
    def mean_entries(self) -> Real:
        """(L,H,T,T,D): mean over sequences of one length of A[q,k] v[k]; needs pattern and qkv."""

    def entry_scores(
        self,
        layer: npt.NDArray[np.int64],
        head: npt.NDArray[np.int64],
        query: npt.NDArray[np.int64],
        key: npt.NDArray[np.int64],
        /,
    ) -> Real: ...

@final
class Features:
    def __init__(
        self,
        model: Model,
        n_tokens: int,
        activation: str,
        top_k: int = 0,
        cross_layer: bool = False,
        from_mid: bool = False,
        max_bytes: int = ...,
        absent: bytes | None = None,
    ) -> None:
        """To be filled once, by `fill` or as `substitute` of a run; activation "relu", "jump_relu", "topk".

        absent: for each layer a byte, not 0 where it has no transcoder; there nothing is active, the
        reconstruction is 0 and the MLP stays.

        A source has, in the core's dtype: output(layer) -> (bias (E), skip (E,E) or None), encoder(layer) ->
        (weight (F,E), bias (F), threshold (F) or None), rows(layer, features (n)) -> (n,W,E), where W is 1 or
        L - layer if cross_layer. They are asked in this order, layer after layer, rows in parts.
        """

    @property
    def nbytes(self) -> int: ...
    def fill(self, run: Run, first: int, source: Any, threads: int = 0) -> None:
        """From rows first .. first + n_tokens of a run with ln2_normalized (or resid_mid) and mlp_out."""

    def array(self, name: str, /) -> np.ndarray:
        """start (L+1) int64; layer, position, feature (n) int32, activation (n) real; reconstruction (L,N,E);
        error (L,N,E), only after `fill`."""

@final
class Gradients:
    @property
    def names(self) -> list[str]: ...
    @property
    def loss(self) -> float: ...
    def array(self, name: str, /) -> Real: ...
    def parameter(self, name: str, /) -> Real: ...

@final
class Trainer:
    step_count: int
    multiplier: float
    ema: float
    def __init__(self, model: Model) -> None: ...
    def step(
        self,
        micro: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32], Real]],
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        clip: float,
        seed: int = 0,
        gate_bias: Sequence[float] | None = None,
        edge_weight: Sequence[float] | None = None,
        tau: float = 0.0,
        geco_rate: float = 0.0,
        geco_clip: float = 1.0,
        geco_ema: float = 0.95,
        geco_relative: bool = True,
        lambda_min: float = 0.0,
        lambda_max: float = 1e9,
        threads: int = 0,
    ) -> dict[str, float]:
        """One optimiser step over micro-batches (tokens, offsets, targets, weights)."""

    def moments(self, name: str, /) -> tuple[Real, Real]: ...
    def load_moments(self, name: str, m: Real, v: Real, /) -> None: ...

@final
class CoderTrainer:
    """Weights, moments and scratch of one layer's transcoder in training; I inputs, O outputs, F features."""

    step_count: int
    def __init__(self, n_in: int, n_out: int, n_features: int) -> None:
        """All weights are zero; `load` them, with rows of w_dec of length 1."""

    def step(
        self,
        x: Real,
        y: Real,
        *,
        activation: int = 0,
        top_k: int = 1,
        sparsity: float = 0.0,
        sharpness: float = 1.0,
        bandwidth: float = 1.0,
        dead_after: int = ...,
        aux_k: int = 0,
        aux_weight: float = 0.0,
        output_scale: float = 1.0,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip: float = 0.0,
        threads: int = 0,
    ) -> dict[str, float]:
        """One optimiser step on rows x (N,I) and y (N,O); activation 0 relu, 1 jump_relu, 2 topk.

        Gives step, loss, error, penalty, aux, l0, grad_norm, n_dead; see asp_transcoder_trainer_step in
        csrc/asp_graph.h.
        """

    def array(self, name: str, /) -> np.ndarray:
        """Read-only view: w_enc (F,I), b_enc, log_threshold (F), w_dec (F,O), b_dec (O), with m/ and v/ in
        front their moments, with g/ the last gradient; silent (F), int64, steps since a feature was active.
        """

    def load(self, name: str, values: np.ndarray, /) -> None: ...
