"""The C core.  attnsparse._core64 is the same code in float64; "real" below is float32 here, float64 there.

Letters: B sequences, N tokens of all of them, L layers, H heads, D head width, E model width, M MLP width,
V vocabulary.  Sequences are packed without padding: sequence b is tokens[offsets[b]:offsets[b + 1]].  Arrays
passed in must be C-contiguous and of the stated type; arrays returned lend memory of the object and keep it
alive.  `threads=0` means the number set by `set_num_threads`.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ._core_types import (
    CircuitOptions,
    ComponentOptions,
    Curve,
    EffectOptions,
    Frozen,
    Functions,
    Generated,
    GenerationOptions,
    HeldRun,
    Interventions,
    Keep,
    MasksOptions,
    Metric,
    Reads,
    Steering,
    Substitute,
    Targets,
    Task,
    Writes,
)

Real = npt.NDArray[np.floating[Any]]
Progress = Callable[[str, int, int], object]
Measure = Callable[
    [str, bool, npt.NDArray[np.int32], npt.NDArray[np.int64], int, Callable[[str, int, int], None] | None],
    npt.NDArray[Any],
]
"""(question, of the ranking or the evaluation, items, sizes, steps, progress) -> flat: see
`asp_circuit_question` in csrc/asp_circuit.h."""
# token, logit, probability (rows,n) of the most likely; logit, probability, place (rows,m) of those asked for
LensReadout = tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
]

def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def machine() -> dict[str, Any]: ...
def metric_names() -> dict[str, bool]:
    """All metrics of the core: whether each needs nothing but answers and wrong answers."""

def metric_values(logits: Real, metric: Metric, /) -> npt.NDArray[np.float64]:
    """(B) of logits (B,V), one row for each prompt of the metric."""

def metric_gradients(logits: Real, metric: Metric, /) -> Real:
    """(B,V): the derivative of each value by its row of logits."""

def lens_read(logits: Real, n: int, asked: npt.NDArray[np.int32], /) -> LensReadout:
    """Of rows of logits (rows,V)."""

def lens_normalize(stack: Real, scale: Real | None, eps: float, /) -> Real:
    """(x - mean) / scale (rows) of a stack (n,rows,E); None: each row by its own sqrt(variance + eps)."""

def curve_effect(curve: Curve, /) -> npt.NDArray[np.float64]:
    """(S): faithfulness; infinite or NaN where the divisor is 0."""

def curve_bootstrap(curve: Curve, n_resamples: int, seed: int, threads: int = 0) -> npt.NDArray[np.float64]:
    """(n,S): the effects of resamples, without those that are not finite."""

def curve_band(
    curves: npt.NDArray[np.float64], confidence: float, threads: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(low (S), high (S)): percentile interval of finite curves (n,S); NaN for none."""

def curve_shares(effect: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
    """(n+1): the sum of the first 0..n effects above 0, as a share of the sum of all of them."""

def component_order(
    n_layer: int, n_head: int, scores: npt.NDArray[np.float64], absolute: bool, greedy: bool
) -> npt.NDArray[np.int64]:
    """Places in the matrix (S,R) of all component edges, best first."""

def component_select(
    n_layer: int, n_head: int, order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], prune: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(masks (n,S,R), kept (n)): circuits of the first component edges of an order."""

def component_best(scores: npt.NDArray[np.float64], absolute: bool) -> npt.NDArray[np.int64]:
    """Places of scores (n), best first."""

def component_select_neurons(
    n_layer: int,
    n_head: int,
    width: int,
    order: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    prune: bool,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(masks (n,S,width), kept (n)): circuits of the first nodes (width 1) or neurons of an order."""

def component_prune(n_layer: int, n_head: int, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The circuit (S,R) without dangling nodes."""

def component_roc(
    n_layer: int, n_head: int, scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], absolute: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """(false rate, true rate, area) of scores (S,R) against a circuit (S,R)."""

def component_areas(
    curves: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n,2): areas under curves (n,S) over shares (S), and of their distance from 1."""

def curve_needed(
    curves: npt.NDArray[np.float64], fraction: float, /
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(first (n), stays (n)) of curves (n,S): indices into the sizes, S where a curve never does."""

def curve_needed_interval(
    curve: Curve, fraction: float, n_resamples: int, seed: int, confidence: float, threads: int = 0
) -> tuple[int, int, int, int, int, int]:
    """(first, stays, first_low, first_high, stays_low, stays_high): indices into the sizes, S for never."""

def curve_ratio(
    curve: Curve,
    other: Curve,
    fraction: float,
    stays: bool,
    n_resamples: int,
    seed: int,
    confidence: float,
    threads: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of how many times more items a circuit needs than the other; all NaN if one of them
    never reaches the fraction."""

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

def graph_total(weight: Real, factor: np.ndarray, /) -> float:
    """The sum of n edges, each times its factor (n) float64."""

def graph_between(
    carried: Real,
    received: Real,
    received_alone: Real,
    pattern: Real,
    pairs: np.ndarray,
    places: np.ndarray,
    factor: np.ndarray,
    weight: Real,
    loose_weight: Real,
    loose_factor: np.ndarray,
    /,
) -> tuple[np.ndarray, float, float]:
    """(by_head (L,H) float64, direct, remainder): the sum of graph_loadings over all pairs; what is left of
    their edges, weight (n), within one position; of all others, with the edges whose source has no place."""

def graph_shares(
    parts: np.ndarray, rest: np.ndarray, absolute: bool, /
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(order (n) int64, share (n+r), sum so far (n+r), whole) of parts (n) and rest (r), float64; by falling
    share, or by falling |part|."""

def graph_entries(
    received: Real, pattern: Real, values: Real, entries: np.ndarray, weights: np.ndarray, /
) -> np.ndarray:
    """(k) float64: what entries (n,4) int64 (layer, head, query, key) give to the targets, weighted by
    weights (k,n_targets) float64; values (L,T,H,D)."""

def graph_moved(
    carried: Real,
    received: Real,
    pattern: Real,
    position: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    query: int,
    /,
) -> np.ndarray:
    """(L,H,T) float64: what each entry of a query moves from the sources, at position (n_sources) int32, to
    the targets rows (k) int64, by size, weighted by weights (k)."""

def graph_pairs(
    query_rows: Real,
    query_bias: np.ndarray,
    key_rows: Real,
    key_bias: np.ndarray,
    node: np.ndarray,
    n_nodes: int,
    bias_node: int,
    scale: float,
    /,
) -> tuple[np.ndarray, np.ndarray, float]:
    """(pairs (n,n) float64, used (n) bool, their sum) of a score; rows (D,n_sources), bias (D) float64, node
    (n_sources) int64: which node each source is part of."""

def graph_largest_pairs(pairs: np.ndarray, rest: int, most: int, /) -> tuple[np.ndarray, np.ndarray]:
    """(kept int64, merged): the nodes with the largest pairs, with all others added to node `rest`."""

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

def graph_within(
    start: np.ndarray,
    source: np.ndarray,
    weight: Real,
    value: Real,
    position: npt.NDArray[np.int64],
    origin: np.ndarray,
    /,
) -> np.ndarray:
    """(n) float64: the share of each node's value that comes from the nodes `origin` (n) bool along paths
    that stay at one position."""

def graph_writes(
    layer: npt.NDArray[np.int32], position: npt.NDArray[np.int32], n_outputs: np.ndarray, n_tokens: int, /
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """layer, position, source int32 and rows int64, (n_writes) each; see `asp_graph_sources_order` in
    csrc/asp_graph.h.  layer, position: of the active features; n_outputs (L) int64: MLP outputs that a
    feature of the layer writes to."""

def graph_likely(logits: Real, most: int, desired: float, /) -> tuple[np.ndarray, np.ndarray, int]:
    """probability (V) float64; tokens int64 by falling probability, and how many of them have the desired
    probability together."""

def token_losses(logits: Real, targets: npt.NDArray[np.int32], threads: int = 0) -> npt.NDArray[np.float64]:
    """(n) cross-entropy in nats of targets (n) under logits (n,V), computed in float64."""

def first_weights_from_text(
    x: Real,
    y: Real,
    scale: float,
    draws: npt.NDArray[np.float64],
    random: npt.NDArray[np.float64],
    threads: int = 0,
) -> tuple[np.ndarray, ...]:
    """w_enc (F,E), b_enc (F), w_dec (F,E), b_dec (E) float64, chosen (F) int64 (-1: a random direction), of
    rows x, y (N,E); draws (F) uniform in 0..1, random (2,F,E) normal; see asp_first_weights_from_text."""

def first_weights_from_set(
    w_enc: Real,
    b_enc: Real,
    w_dec: Real,
    b_dec: Real,
    threshold: Real | None,
    scale: npt.NDArray[np.float64],
    threads: int = 0,
) -> tuple[np.ndarray, ...]:
    """The same weights, float64, of a set with w_dec (F,W,E), whose outputs are divided by scale (W); w_dec
    (F,W E), with rows of length 1; at the end log_threshold (F) if there are thresholds."""

def first_weights_scale(y: Real) -> float:
    """Standard deviation of y (N,E) from the means of its columns."""

def first_weights_threshold(
    w_enc: npt.NDArray[np.float64], b_enc: npt.NDArray[np.float64], x: Real, l0: float, threads: int = 0
) -> float:
    """The threshold above which rows of x (N,E) have l0 features on average."""

def _blas_state() -> object: ...
def _share_blas_state(state: object, /) -> None: ...
def _select_isa(name: str, /) -> None: ...
def _debug_stats() -> dict[str, int]: ...
def _debug_fail_at(n: int, /) -> None: ...
def _noise_row(n: int, seed: int, step: int, sequence: int, layer: int, head: int, query: int, /) -> Real:
    """Uniform numbers u in (0, 1) of keys 0..n-1 of one gate row; the noise is log(u / (1 - u))."""

def _random_raw(start: int, n: int, seed: int, use: int, first: int, second: int, /) -> npt.NDArray[np.int64]:
    """The bits of n random numbers of a stream, as `_random.raw` has them."""

def _random_permutation(n: int, seed: int, use: int, first: int, second: int, /) -> npt.NDArray[np.int64]: ...
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

    def stacked(self, name: str, /) -> Real:
        """Read-only view of one array of all layers, such as "mlp.c_fc.weight"; KeyError if there is none."""

    def composition(self) -> npt.NDArray[np.float64]:
        """(3,L,H,L,H): how much each head's queries, keys and values read of what earlier heads write."""

    def lens_project(
        self,
        stack: Real,
        scale: Real,
        right: npt.NDArray[np.int32],
        wrong: npt.NDArray[np.int32] | None,
        /,
    ) -> npt.NDArray[np.float64]:
        """(n,rows): what vectors (n,rows,E) add to logits of rows with this scale of the final LayerNorm."""

    def _writable(self, name: str, /) -> Real:
        """View for loaders that fill a new model before its first run."""

    def assign(self, weights: dict[str, Real], /) -> None:
        """All or nothing."""
    def reading(self) -> Reading:
        """Held until it is left or gone; RuntimeError while another thread changes the weights."""
    def share(self) -> int | None:
        """Move the weights into sealed memory that other processes can map; its descriptor, or None.

        None too while another thread does this; RuntimeError while another thread changes the weights.
        """
    def take_shared(self, descriptor: int, /) -> bool:
        """Map that memory in place of the same weights; True: the descriptor is now the model's."""
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
        functions: Functions | None = None,
        frozen: Frozen | None = None,
        steering: Steering | None = None,
        stop_at: int = 0,
    ) -> Run:
        """Forward pass; logits 0 none, 1 last token of each sequence, 2 all.

        substitute: transcoders in place of MLPs, new Features of N tokens.
        functions: Python that sees and changes activations; with a substitute there are no neurons, and no
        steering.  stop_at: the layer, from 1, before which the pass ends; 0: none.
        """

    def generate(
        self,
        tokens: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        options: GenerationOptions,
        generated: Generated,
        interventions: Interventions | None = None,
        threads: int = 0,
        progress: Progress | None = None,
        functions: Functions | None = None,
        frozen: Frozen | None = None,
        steering: Steering | None = None,
    ) -> None:
        """Continues prompts, and writes the new tokens of B = prompts x n_samples texts into `generated`: the
        first n_new tokens of each text, which hold after an exception too.  interventions: as of one run of
        all texts at full length, prompt and max_new_tokens; so is steering.  frozen: of the prompts alone.
        functions: see prompts first, then new tokens."""

    def candidates(self, task: Task, unit: str, threads: int = 0) -> npt.NDArray[np.int32]:
        """Every item (n, 2 | 3 | 4) that can have an effect."""

    def whole(self, task: Task, threads: int = 0) -> npt.NDArray[np.float64]:
        """The metric of the whole model (B)."""

    def patching_sweep(
        self,
        task: Task,
        kind: str,
        by_position: bool,
        denoising: bool,
        held_gate: bool,
        layers: npt.NDArray[np.int64] | None,
        positions: npt.NDArray[np.int64] | None,
        max_bytes: int,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The metric with each activation of a kind alone replaced: (layers, H or 1, positions or 1, B).

        The others are the metric of the runs that are patched (B) and of those that the values come from (B).
        """

    def path_values(
        self,
        task: Task,
        senders: npt.NDArray[np.bool_],
        receivers: npt.NDArray[np.bool_],
        positions: npt.NDArray[np.bool_] | None,
        denoising: bool,
        held_gate: bool,
        max_bytes: int,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The metric with paths from senders (n,S) into receivers (n,R) patched at positions (N) (n,B).

        The others are as those of `patching_sweep`.
        """

    def knock_out(
        self,
        task: Task,
        items: npt.NDArray[np.int32],
        options: EffectOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """The metric with each item alone ablated (n,B).

        progress is called now and then with a stage, and how much of how much of it is done; what it raises
        ends the call.
        """

    def keep_only(
        self,
        task: Task,
        items: npt.NDArray[np.int32],
        sizes: npt.NDArray[np.int64],
        options: EffectOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """The metric with the first so many items kept, everything else of the unit ablated (n_sizes,B)."""

    def leave_one_out(
        self,
        task: Task,
        items: npt.NDArray[np.int32],
        dropped: npt.NDArray[np.int64],
        options: EffectOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """The same with all items kept but one in turn, numbered in `dropped` (n_dropped,B)."""

    def attribution(
        self,
        task: Task,
        options: EffectOptions,
        steps: int,
        through_gate: bool,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """First-order effects summed over prompts: (L,H), (L,H,T) or (L,H,T,T)."""

    def component_scores(
        self, task: Task, options: ComponentOptions, threads: int = 0, progress: Progress | None = None
    ) -> npt.NDArray[np.float64]:
        """Scores of component edges (S,R), of nodes (S) or of neurons (S,E), summed over prompts."""

    def component_values(
        self,
        task: Task,
        masks: npt.NDArray[np.bool_],
        options: ComponentOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """Metric (n,P) of circuits, which are masks (n,S,R) of component edges."""

    def component_neuron_values(
        self,
        task: Task,
        neurons: npt.NDArray[np.bool_],
        options: ComponentOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """Metric (n,P) of circuits of neurons (n,S,E)."""

    def component_exact(
        self,
        task: Task,
        edges: tuple[int, int],
        options: ComponentOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """Scores of component edges (S,R), each replaced alone, summed over prompts: of those from one number
        to before another, in the order of `asp_component_exact`; 0 elsewhere."""

    def component_acdc(
        self,
        task: Task,
        threshold: float,
        options: ComponentOptions,
        threads: int = 0,
        progress: Progress | None = None,
        state: npt.NDArray[np.int64] | None = None,
        keep: Keep | None = None,
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        """(mask (S,R), scores (S,R)): component edges left, and by how much the loss rose without each."""

    def component_gradients(
        self,
        task: Task,
        masks: npt.NDArray[np.float64],
        options: ComponentOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(values (n,P), gradients (n,S,R)) of masks (n,S,R) of component edges."""

    def component_masks(
        self,
        task: Task,
        step: int,
        end: int,
        parameters: Real,
        multipliers: Real,
        options: MasksOptions,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> tuple[Real, Real, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(parameters (3,n), multipliers (3,4), history (end-step,8), expected (n)) after the steps."""

    def component_senders_before(self) -> npt.NDArray[np.int64]:
        """How many senders come before each receiver (R)."""

    def circuit(
        self, ranking: Task, evaluation: Task, items: npt.NDArray[np.int32], options: CircuitOptions, /
    ) -> Circuit:
        """A search for a circuit among items, which has not begun."""

    def promoted_tokens(
        self, rows: np.ndarray, n: int, threads: int = 0
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(tokens, effects), each (2,n_features,n): those that features raise and lower most, by what they
        write, rows (n_features,W,E)."""

    def graph_edges(
        self, frozen: HeldRun, writes: Writes, reads: Reads, threads: int = 0
    ) -> tuple[Real, np.ndarray]:
        """((n_targets,n_sources), constants (n_targets) float64): linear effects of sources on targets."""

    def graph_logits(
        self, logits: Real, tokens: np.ndarray, wrong: np.ndarray, threads: int = 0
    ) -> tuple[Real, np.ndarray, np.ndarray]:
        """vectors (n,E), constant and value (n) float64 of logit nodes: one for each of tokens (int64), less
        the mean of the vocabulary; with wrong (int64) one, the mean of the tokens less that of these."""

    def graph_build(
        self,
        frozen: HeldRun,
        writes: Writes,
        features: Targets,
        logits: Targets,
        probability: np.ndarray,
        tokens: npt.NDArray[np.int32],
        most: int,
        max_bytes: int,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> tuple[Graph, np.ndarray, float, float]:
        """(graph, chosen int64, closure, closure_absolute); see `asp_graph_build` in csrc/asp_graph.h.

        most: features that become nodes, -1 for all; probability float64: of the logits' tokens, NaN for a
        difference; tokens (T).
        """

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

    def lens(
        self,
        points: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        held: bool,
        n: int,
        asked: npt.NDArray[np.int32],
        /,
    ) -> LensReadout:
        """Of the residual stream at points (n) of packed rows (n)."""

    def attribute(
        self,
        rows: npt.NDArray[np.int64],
        right: npt.NDArray[np.int32],
        wrong: npt.NDArray[np.int32] | None,
        parts: Sequence[str],
        /,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """What each part adds: value, ln_bias, unembed_bias, embed, pos_embed (n), value_bias, attn_bias,
        mlp, mlp_bias (n,L), head (n,L,H), neuron (n,L,M), key (n,T of the longest sequence)."""

    def detect(
        self,
        patterns: npt.NDArray[np.float64],
        measure: str,
        exclude_first: bool,
        exclude_current: bool,
        /,
    ) -> npt.NDArray[np.float64]:
        """(n,B,L,H) of patterns (n,squares)."""

    def entry_scores(
        self,
        layer: npt.NDArray[np.int64],
        head: npt.NDArray[np.int64],
        query: npt.NDArray[np.int64],
        key: npt.NDArray[np.int64],
        /,
    ) -> Real: ...

@final
class Circuit:
    """A search for a circuit, then the owner of its arrays."""

    def step(
        self, threads: int = 0, progress: Progress | None = None, measure: Measure | None = None
    ) -> bool:
        """Take one step; whether the search has ended. An exception leaves it as before or after the step.

        measure: what is asked in place of measuring here.
        """

    def state(self) -> npt.NDArray[np.int64]:
        """All that the search has found."""

    def restore(self, state: npt.NDArray[np.int64], /) -> None:
        """Continue from the state of a search of the same question."""

    def array(self, name: str, /) -> npt.NDArray[Any]:
        """Read-only view of one array of a search that has ended."""

@final
class Graph:
    """Owner of the arrays of a graph: n nodes, m edges, P nodes before the bias, R features and logits."""

    def __init__(
        self,
        kind: np.ndarray,
        layer: np.ndarray,
        position: np.ndarray,
        feature: np.ndarray,
        value: Real,
        probability: Real,
        start: np.ndarray,
        source: np.ndarray,
        weights: Real,
        carried: Real,
        received: Real,
        received_alone: Real,
    ) -> None:
        """Copies of arrays: kind (n) int32, rising, as `attnsparse.graphs.select.KINDS`; the rest as those of
        `attnsparse.Graph`."""

    @property
    def nbytes(self) -> int: ...
    def array(self, name: str, /) -> np.ndarray:
        """Read-only view of one of these arrays."""

    def influence(self) -> np.ndarray:
        """(n) float64: of every node on the logits, with absolute weights that sum to 1 for every target."""

    def scores(self) -> dict[str, float]: ...
    def prune(
        self, node_threshold: float, edge_threshold: float, /
    ) -> tuple[Graph, npt.NDArray[np.bool_], np.ndarray]:
        """The graph of the nodes and edges with most influence, nodes (n): those that it has, and (n) float64
        the share of the influence of all nodes with at least as much."""

    def total_influence(self) -> np.ndarray:
        """(n) float64: of every node on the sum of the logits, directly and through features."""

    def drivers(self) -> np.ndarray:
        """(n_features,T) float64: total influence of each token's embedding on each feature."""

    def flows(self, group: np.ndarray, n_groups: int, /) -> np.ndarray:
        """(n_groups,n_groups) float64: effect of one group on the logits by way of another; group (n) int64:
        of each node, -1 for none."""

    def profile(
        self, group: np.ndarray, n_groups: int, n_layer: int, most: float, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n_groups,n_layer) float64: share of each layer in the influence of a group's features on the
        logits; (n_groups,2) int64: first and last of the fewest neighbouring layers with `most` of it."""

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
class Contexts:
    def __init__(
        self, n_features: int, wanted: npt.NDArray[np.int64] | None, top: int, before: int, after: int
    ) -> None:
        """The strongest contexts of the wanted features of a layer (rising; None: all); nothing yet."""

    def add(
        self,
        position: npt.NDArray[np.int32],
        feature: npt.NDArray[np.int32],
        activation: Real,
        tokens: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        first: int,
        /,
    ) -> None:
        """The active features (n) of a layer in a batch of prompts, of which `first` is the number of the
        first one, sorted by position and feature."""

    def array(self, name: str, /) -> np.ndarray:
        """prompt, position int32 and activation float32 (n,top), prompt -1 where there are fewer; tokens
        int32 and activations float32 (n,top,before+1+after), -1 and 0 outside the prompt; count (n) int64.
        Nothing can be added after it."""

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
    def __init__(self, model: Model, rank: int = 0, ranks: int = 1) -> None: ...
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
        gate_noise: bool = True,
        gate_bias: Sequence[float] | None = None,
        self_edge_weight: Sequence[float] | None = None,
        previous_edge_weight: Sequence[float] | None = None,
        first_edge_weight: Sequence[float] | None = None,
        edge_weight: Sequence[float] | None = None,
        entry_dropout: Sequence[float] | None = None,
        head_dropout: Sequence[float] | None = None,
        attn_out_dropout: Sequence[float] | None = None,
        mlp_out_dropout: Sequence[float] | None = None,
        tau: float = 0.0,
        geco_rate: float = 0.0,
        geco_clip: float = 1.0,
        geco_ema: float = 0.95,
        geco_relative: bool = True,
        lambda_min: float = 0.0,
        lambda_max: float = 1e9,
        constraint: str = "training",
        measured: float = ...,
        edges_per_token: float = 0.0,
        parts: int = 1,
        threads: int = 0,
    ) -> dict[str, float]:
        """One optimiser step over micro-batches (tokens, offsets, targets, weights)."""

    def gradients(
        self, micro: Sequence[Any], *, parts: int, first: int, count: int, threads: int = 0, **options: Any
    ) -> tuple[npt.NDArray[np.float64], list[tuple[int, int, Real]]]:
        """A step in pieces: sums over parts first..first+count of it; options as of `step`.

        What was found in each part [count, n], and sums of gradients as (first part, number of parts, array),
        which are views.
        """

    def combine(self, sums: npt.NDArray[np.int64], received: Real, /) -> npt.NDArray[np.float64]:
        """The sum over all parts for the slice: its squares, one for each chunk.

        sums: (first part, number of parts) of each; received: as many times the slice, changed.
        """

    def update(
        self,
        gathered: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Real],
        /,
        **options: Any,
    ) -> dict[str, float]:
        """Update the slice, from (numbers of all parts, squares of all chunks, weights); of the last, which
        are all weights, the slice is written."""

    def adopt(self, weights: Real, /) -> None:
        """Take over the weights of the other slices; the end of the step."""

    def abandon(self) -> None:
        """End a step in pieces that was begun, if one was."""

    def slice(self, rank: int, /) -> tuple[int, int, int, int]:
        """Begin and end of what a process updates, then of its chunks."""

    def slice_moments(self) -> tuple[Real, Real]: ...
    def place(self, name: str, /) -> tuple[int, int]:
        """Begin and end of a parameter among all weights."""

    def moments(self, name: str, /) -> tuple[Real, Real]: ...
    def load_moments(self, name: str, m: Real, v: Real, /) -> None: ...

@final
class CoderTrainer:
    """Weights, moments and scratch of the L layers of transcoders that are trained together: one, or all of a
    cross-layer transcoder; I inputs, O outputs, F features of a layer."""

    step_count: int
    def __init__(self, n_in: int, n_out: int, n_features: npt.NDArray[np.int64]) -> None:
        """n_features (L). All weights are zero; `load` them, with rows of w_dec of length 1."""

    def step(
        self,
        x: Real,
        y: Real,
        sparsity: npt.NDArray[np.float64],
        output_scale: npt.NDArray[np.float64],
        *,
        activation: int = 0,
        top_k: int = 1,
        sharpness: float = 1.0,
        bandwidth: float = 1.0,
        dead_after: int = ...,
        aux_k: int = 0,
        aux_weight: float = 0.0,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip: float = 0.0,
        threads: int = 0,
    ) -> list[dict[str, float]]:
        """One optimiser step on rows x (L,N,I) and y (L,N,O); activation 0 relu, 1 jump_relu, 2 topk.

        Gives step, loss, error, penalty, aux, l0, grad_norm, n_dead of each layer; see
        asp_transcoder_trainer_step in csrc/asp_transcoder.h.
        """

    def array(self, name: str, layer: int = 0, /) -> np.ndarray:
        """Read-only view: w_enc (F,I), b_enc, log_threshold (F), w_dec (F,(L-layer) O), b_dec (O), with m/
        and v/ in front their moments, with g/ the last gradient; silent (F), int64, steps since a feature was
        active.
        """

    def load(self, name: str, values: np.ndarray, layer: int = 0, /) -> None: ...
    def scaled(
        self, output_scale: npt.NDArray[np.float64], layer: int = 0, /
    ) -> tuple[Real, Real, Real, Real, Real]:
        """w_enc, b_enc, w_dec, b_dec and threshold in the units of the model."""
