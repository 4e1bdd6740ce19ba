"""Groups of arguments of the C core: named fields, which the core reads by name.

Letters as in `_core.pyi`; "real" is float32, or float64 for a float64 model.  Arrays are C-contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Interventions(NamedTuple):
    """What one pass puts in place of activations; see `asp_interventions` in csrc/asp_circuit.h."""

    heads: np.ndarray  #: int64 [n, 4]: layer, prompt, head, position
    head_values: np.ndarray  #: real [n, D]: z
    entries: np.ndarray  #: int64 [n, 5]: layer, prompt, head, query, key
    entry_values: np.ndarray | None  #: real [n, D]: contributions; None: nothing
    mlps: np.ndarray  #: int64 [n, 3]: layer, prompt, position
    mlp_values: np.ndarray  #: real [n, E]
    resids: np.ndarray  #: int64 [n, 4]: half, layer, prompt, position
    resid_values: np.ndarray  #: real [n, E]
    heads_added: np.ndarray | None = None  #: bool [n]: values that are added to what is there; None: none
    mlps_added: np.ndarray | None = None
    resids_added: np.ndarray | None = None


class Frozen(NamedTuple):
    """What one pass takes from other runs; see `asp_frozen` in csrc/asp_circuit.h."""

    pattern: Any = None  #: `_core.Run`, or None
    pattern_first: int = 0  #: its prompt that is the first one of the pass
    gate: Any = None
    gate_first: int = 0
    scales: Any = None
    scales_first: int = 0


class Steering(NamedTuple):
    """Features that are changed in one pass; see `asp_steering` in csrc/asp_transcoder.h.

    Encoders and decoders of the layers lie one behind the other, in the order of `layers`.
    """

    activation: str  #: "relu", "jump_relu" or "topk"
    top_k: int  #: of a TopK
    from_mid: bool  #: reads resid_mid; else ln2_normalized
    layers: np.ndarray  #: int64 [m, 4]: layer, changed features, rows of its encoder, layers they write to
    w_enc: np.ndarray  #: real [rows, E]
    b_enc: np.ndarray  #: real [rows]
    threshold: np.ndarray | None  #: real [rows]
    rows: np.ndarray  #: int64: the row of each changed feature in the encoder of its layer
    decoder: np.ndarray  #: real [.., E]: of each changed feature one row for each layer that it writes to
    at: np.ndarray  #: int64 [n, 4]: layer, prompt, position, number among the layer's changed ones; sorted
    kind: np.ndarray  #: int32 [n]: `asp_steering_kind`
    number: np.ndarray  #: real [n]


class Functions(NamedTuple):
    """What sees and changes activations of one pass; see `asp_visitor` in csrc/asp.h."""

    places: (
        np.ndarray
    )  #: int32 [L + 1]: bit p of a layer: `asp_place` p; embeddings: layer 0, final LayerNorm: L
    call: Any
    """call(place, layer, first prompt, first position, array) -> array of the same shape and type. Prompts of
    which the pass has the same positions come in one call, others one by one."""


class GenerationOptions(NamedTuple):
    """How texts are continued; see `asp_generation_options` in csrc/asp.h."""

    max_new_tokens: int
    n_samples: int
    temperature: float  #: 0: always the most probable token
    top_k: int  #: 0: all
    top_p: float  #: 1: all
    seed: int
    stop: np.ndarray  #: bool [V]: tokens that end a text
    max_bytes: int


class Generated(NamedTuple):
    """New tokens of B texts, at most n of each; the core writes into these arrays."""

    n_new: np.ndarray  #: int64 [B]: how many there are
    tokens: np.ndarray  #: int32 [B, n]
    logprobs: np.ndarray  #: float64 [B, n]
    logits: np.ndarray | None  #: real [B, n, V]; None: not wanted


class Metric(NamedTuple):
    """One number for the logits after the last token of each of B prompts."""

    kind: str
    answer_start: np.ndarray  #: int64 [B + 1]
    answers: np.ndarray  #: int32: those of prompt b are [start[b], start[b + 1])
    wrong_start: np.ndarray  #: int64 [B + 1]
    wrong: np.ndarray  #: int32
    reference: np.ndarray | None = None  #: real [B, V]: logits that "kl" compares with
    custom: Any = None
    """For the kind "custom", as a `tasks.CustomMetric` has it: `gradient`, None if there is none, and the
    methods row_values(logits [n, V], sequence [n]) -> float64 [n] and row_gradients(...) -> real [n, V]."""


class Curve(NamedTuple):
    """What was measured of a circuit on P prompts with the n best items kept, for S numbers n."""

    values: np.ndarray  #: float64 [S, P]
    full: np.ndarray  #: float64 [P]: of the whole model
    empty: np.ndarray  #: float64 [P]: with everything ablated
    normalize: str  #: "mib", "ratio" or "none"
    effect: np.ndarray | None = None  #: float64 [S]: of the curve as it was evaluated
    sizes: np.ndarray | None = None  #: int64 [S]: the numbers n, ascending


class Task(NamedTuple):
    """B prompts and what is measured on them."""

    tokens: np.ndarray  #: int32 [N]
    offsets: np.ndarray  #: int64 [B + 1]
    corrupted: np.ndarray | None  #: int32 [N]: prompts of the same lengths
    metric: Metric


class EffectOptions(NamedTuple):
    """What an item is, and what replaces it; see `asp_effect_options` in csrc/asp_circuit.h."""

    unit: str
    ablation: str
    max_bytes: int
    reference: np.ndarray | None = (
        None  #: int32: tokens of prompts that "mean" averages over; None: the task's
    )
    reference_offsets: np.ndarray | None = None  #: int64
    others_stay: bool = False  #: of `keep_only`: items that are not listed are never ablated


class ComponentOptions(NamedTuple):
    """How component edges are scored; see `asp_component_options` in csrc/asp_component.h."""

    method: str
    level: str
    ablation: str
    steps: int
    denoising: bool
    held_gate: bool
    smaller_is_better: bool
    max_bytes: int
    reference: np.ndarray | None = (
        None  #: int32: tokens of prompts that means are taken over; None: the task's
    )
    reference_offsets: np.ndarray | None = None  #: int64
    mlp_input: bool = False


class Keep(Protocol):
    """Keeps what a long measurement has found; see csrc/python/py_component_values.c."""

    def due(self) -> bool:
        """Whether it is time to."""

    def write(self, state: np.ndarray) -> object:
        """Keep a state (n), int64."""


class MasksOptions(NamedTuple):
    """How masks of component edges are trained; see `asp_component_masks_options` in csrc/asp_component.h."""

    measure: ComponentOptions
    steps: int
    batch: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr_steps: int
    lr_falls: bool
    penalty: float
    pruning: bool
    nodes: bool
    sparsity: float
    node_sparsity: float
    sparsity_steps: int
    multiplier_lr: float
    seed: int


class CircuitOptions(NamedTuple):
    """How a circuit is searched for; see `asp_circuit_options` in csrc/asp_circuit.h."""

    effects: EffectOptions
    method: str
    normalize: str
    rank_by: str
    smaller_is_better: bool
    steps: int
    greedy_step: float
    sizes: np.ndarray | None  #: int64, ascending; None: the default ones
    n_bootstrap: int
    n_random: int
    confidence: float
    seed: int
    task_name: str  #: for errors, as metric_name
    metric_name: str


class HeldRun(NamedTuple):
    """A run whose patterns, gates and LayerNorm scales are held, with what is added to MLP outputs."""

    run: Any  #: `_core.Run`
    output_bias: np.ndarray | None = None  #: real [L, E]
    skip: np.ndarray | None = None  #: real [L, E, E]
    skip_from_resid: bool = False


class Writes(NamedTuple):
    """What sources write into the residual stream, by layer and position."""

    n_sources: int
    layer: np.ndarray  #: int32 [w]: 0: embeddings, l + 1: the output of MLP l
    position: np.ndarray  #: int32 [w]
    source: np.ndarray  #: int32 [w]
    vectors: np.ndarray  #: real [w, E]


class Reads(NamedTuple):
    """What targets read from the residual stream."""

    point: np.ndarray  #: int32 [n]: 2 l before layer l, 2 l + 1 in its middle
    position: np.ndarray  #: int32 [n]
    reading: np.ndarray  #: int32 [n]: as it is, normalised, or through the LayerNorm
    vectors: np.ndarray  #: real [n, E]


class Targets(NamedTuple):
    """What may become the n features, or the logits, of a graph."""

    reads: Reads
    constant: np.ndarray  #: float64 [n]: added to what they read
    value: np.ndarray  #: float64 [n]: the result in the run
    number: np.ndarray  #: int32 [n]: of a feature in its layer; token id of a logit, -1 for a difference


class FeatureChanges(NamedTuple):
    """What is made of active features: an activation a becomes factor a + added. Sorted by (layer, row,
    feature), each once."""

    layer: np.ndarray  #: int32 [n]
    row: np.ndarray  #: int32 [n]: position among all tokens
    feature: np.ndarray  #: int32 [n]
    factor: np.ndarray  #: real [n]
    added: np.ndarray  #: real [n]
    held: Any = None  #: `_core.Features`: complete, of the same tokens
    held_layers: bytes | None = (
        None  #: [L]: not 0 where the features, before they are changed, are those of held
    )


class Substitute(NamedTuple):
    """What takes the place of the MLPs of one run."""

    features: Any  #: `_core.Features`, new
    source: Any  #: gives the weights of each layer
    errors: np.ndarray | None  #: real [L, N, E]: added to the outputs
    changes: FeatureChanges | None = None  #: of features
