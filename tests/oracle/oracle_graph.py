"""The attribution graph in plain NumPy float64: the executable specification of nodes, edges and heads.

Every source is sent forward through the frozen linear model by itself and read at every target; the package
goes the other way, from a target backwards. Head loadings are what arrives when all attention entries but the
allowed ones are set to 0. Pruning and scores are in oracle_prune.py.

Frozen are the patterns (gates included) and the LayerNorm scales of the real run. Letters as in oracle.py; F
is the number of features of a layer, N the number of nodes. A matrix of edges (N,N) has targets as rows and
sources as columns.

Transcoders are a plain dictionary `coders`, lists having one entry per layer:
    w_enc (F,E), b_enc (F,), w_dec (F,W,E), output_bias (E,), threshold (F,) or None, skip (E,E) or None,
    activation "relu" | "jump_relu" | "topk", top_k, input_hook "ln2.hook_normalized" | "hook_resid_mid".
W = 1: a feature of layer l writes to the MLP output of l. W = L - l: to those of l, l+1, ..., L-1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import oracle
from numpy.typing import ArrayLike, NDArray
from oracle import Array

KINDS = ("feature", "error", "token", "position", "bias", "other", "logit")
NORMALIZED, RESIDUAL = "ln2.hook_normalized", "hook_resid_mid"
Coders = Mapping


class Sent(NamedTuple):
    """What a source adds to the residual stream, and where."""

    start: Array  # (T,E) to resid_pre of layer 0
    mid: Array  # (L,T,E) to resid_mid
    post: Array  # (L,T,E) to resid_post


class Stream(NamedTuple):
    """What arrives: the residual stream of the linear model."""

    pre: Array  # (L,T,E)
    mid: Array  # (L,T,E)
    final: Array  # (T,E)


class Features(NamedTuple):
    """Active features by (layer, position, feature), and what the transcoders make of the MLPs."""

    index: NDArray[np.int64]  # (n,3): layer, position, feature
    activation: Array  # (n,)
    reconstruction: Array  # (L,T,E)
    error: Array  # (L,T,E) = mlp_out - reconstruction
    pre: list[Array]  # per layer (T,F)


class Loadings(NamedTuple):
    """An edge, split by the head that carries it: head.sum() + direct + remainder is its weight."""

    head: Array  # (L,H)
    direct: float
    remainder: float


def random_coders(
    rng: np.random.Generator,
    config: Mapping,
    n_features: Sequence[int],
    *,
    cross: bool = False,
    skip: bool = False,
    activation: str = "relu",
    top_k: int | None = None,
    input_hook: str = NORMALIZED,
) -> dict:
    """Transcoders with every term of size about 1, rounded to float32."""
    n_layer, width = config["n_layer"], config["d_model"]

    def draw(*shape: int, size: float = 1.0) -> Array:
        return (size * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    rows = [n_layer - layer if cross else 1 for layer in range(n_layer)]
    return {
        "w_enc": [draw(n, width, size=width**-0.5) for n in n_features],
        "b_enc": [draw(n, size=0.3) for n in n_features],
        "w_dec": [draw(n, w, width, size=0.5) for n, w in zip(n_features, rows)],
        "output_bias": [draw(width, size=0.3) for _ in range(n_layer)],
        "threshold": [abs(draw(n, size=0.3)) for n in n_features] if activation == "jump_relu" else None,
        "skip": [draw(width, width, size=0.5 * width**-0.5) for _ in range(n_layer)] if skip else None,
        "activation": activation,
        "top_k": top_k,
        "input_hook": input_hook,
    }


def activate(coders: Coders, layer: int, pre: Array) -> NDArray[np.bool_]:
    """Which features are active (T,F); an active one has the activation `pre`.

    relu: pre > 0.   jump_relu: pre > threshold.   topk: among the k largest of its position, and > 0; of
    equal ones the lower number first."""
    if coders["activation"] == "relu":
        return pre > 0
    if coders["activation"] == "jump_relu":
        return pre > coders["threshold"][layer]
    active = np.zeros(pre.shape, bool)
    for position, row in enumerate(pre):
        best = sorted(range(len(row)), key=lambda f: (-row[f], f))[: coders["top_k"]]
        active[position, best] = row[best] > 0
    return active


def logit_direction(n_vocab: int, answer: int | Sequence[int], wrong: ArrayLike | None = None) -> Array:
    """c (V,): the target is c . logits. Without `wrong` the answer's logit minus the mean over the
    vocabulary, with it the mean of the answers minus the mean of the wrong ones."""
    c = np.zeros(n_vocab)
    for token in np.atleast_1d(answer):
        c[token] += 1 / np.size(answer)
    if wrong is None:
        return c - 1 / n_vocab
    for token in np.atleast_1d(wrong):
        c[token] -= 1 / np.size(wrong)
    return c


# ------------------------------------------------------------------------------------- the frozen model


class Frozen:
    """The model between two MLP reads, frozen at one run. Its arrays may be changed, to plant mistakes."""

    def __init__(self, config: Mapping, weights: Mapping[str, Array], tokens: ArrayLike, coders: Coders):
        self.config, self.weights, self.coders = config, weights, coders
        self.tokens = np.asarray(tokens, np.int64)
        self.run = oracle.forward(config, weights, tokens)
        self.pattern = self.run["pattern"].copy()
        self.ln1_scale = self.run["ln1_scale"].copy()
        self.ln2_scale = self.run["ln2_scale"].copy()
        self.ln_final_scale = self.run["ln_final_scale"].copy()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(L, H, T, E)."""
        return self.config["n_layer"], self.config["n_head"], len(self.tokens), self.config["d_model"]

    def parameter(self, name: str) -> Array:
        """A parameter; a bias that the model does not have is 0."""
        shapes = oracle.parameter_shapes({**self.config, "bias": True, "unembed_bias": True})
        return self.weights.get(name, np.zeros(shapes[name]))

    def head_block(self, layer: int, part: str, head: int) -> tuple[Array, Array]:
        """W (E,D) and b (D,) of q, k or v of one head."""
        n_head, width = self.config["n_head"], self.config["d_head"]
        first = ("qkv".index(part) * n_head + head) * width
        name = f"h.{layer}.attn.c_attn"
        columns = slice(first, first + width)
        return self.parameter(f"{name}.weight")[:, columns], self.parameter(f"{name}.bias")[columns]

    def head_output(self, layer: int, head: int) -> Array:
        """W_O (D,E) of one head."""
        width = self.config["d_head"]
        return self.parameter(f"h.{layer}.attn.c_proj.weight")[head * width : (head + 1) * width]

    def attend(self, layer: int, x: Array, pattern: Array) -> Array:
        """Linear part of attn_out (T,E): sum_h A_h (centred(x) / scale * weight) W_V W_O."""
        read = centred(x) / self.ln1_scale[layer][:, None] * self.parameter(f"h.{layer}.ln_1.weight")
        written = np.zeros_like(x)
        for head in range(self.config["n_head"]):
            if not pattern[layer, head].any():
                continue
            w_v, _ = self.head_block(layer, "v", head)
            written += pattern[layer, head] @ (read @ w_v @ self.head_output(layer, head))
        return written

    def encoder_input(self, layer: int, mid: Array) -> Array:
        """What encoders and skips read (T,E); linear in resid_mid."""
        if self.coders["input_hook"] == RESIDUAL:
            return mid
        return centred(mid) / self.ln2_scale[layer][:, None]

    def skipped(self, layer: int, mid: Array) -> Array:
        """What the skip adds to resid_post (T,E)."""
        if self.coders["skip"] is None:
            return np.zeros_like(mid)
        return self.encoder_input(layer, mid) @ self.coders["skip"][layer].T

    def propagate(self, sent: Sent, pattern: Array | None = None) -> Stream:
        """Where a source arrives, layer after layer; `pattern` (L,H,T,T) instead of the run's."""
        pattern = self.pattern if pattern is None else pattern
        pre, mid, x = [], [], sent.start
        for layer in range(self.config["n_layer"]):
            pre.append(x)
            x = x + self.attend(layer, x, pattern) + sent.mid[layer]
            mid.append(x)
            x = x + self.skipped(layer, x) + sent.post[layer]
        return Stream(np.array(pre), np.array(mid), x)

    def nothing(self) -> Sent:
        """A source that sends nothing yet."""
        n_layer, _, n_tokens, width = self.shape
        layers = (n_layer, n_tokens, width)
        return Sent(np.zeros((n_tokens, width)), np.zeros(layers), np.zeros(layers))

    def constants(self) -> Sent:
        """Every constant of attention layers and transcoders: (LayerNorm bias W_V + b_V) W_O through the
        pattern, b_O, output_bias."""
        sent = self.nothing()
        for layer in range(self.config["n_layer"]):
            norm_bias = self.parameter(f"h.{layer}.ln_1.bias")
            for head in range(self.config["n_head"]):
                w_v, b_v = self.head_block(layer, "v", head)
                value = (norm_bias @ w_v + b_v) @ self.head_output(layer, head)
                sent.mid[layer] += np.outer(self.pattern[layer, head].sum(1), value)
            sent.mid[layer] += self.parameter(f"h.{layer}.attn.c_proj.bias")
            sent.post[layer] += self.coders["output_bias"][layer]
        return sent

    def unembed(self, direction: Array) -> tuple[Array, float]:
        """(E,) and constant: the target is constant + (E,) . centred(final[-1]) / ln_final_scale[-1]."""
        row = direction @ oracle.unembedding(self.config, self.weights)
        constant = self.parameter("ln_f.bias") @ row + self.parameter("lm_head.bias") @ direction
        return self.parameter("ln_f.weight") * row, float(constant)

    def features(self) -> Features:
        """Features of the real run, their reconstruction of the MLPs and what it misses."""
        n_layer, _, n_tokens, width = self.shape
        reconstruction, index, activation, all_pre = np.zeros((n_layer, n_tokens, width)), [], [], []
        for layer in range(n_layer):
            mid = self.run["resid_mid"][layer]
            pre = self.encoder_input(layer, mid) @ self.coders["w_enc"][layer].T + self.coders["b_enc"][layer]
            active = activate(self.coders, layer, pre)
            all_pre.append(pre)
            reconstruction[layer] += self.skipped(layer, mid) + self.coders["output_bias"][layer]
            for position, feature in np.argwhere(active):
                index.append((layer, position, feature))
                activation.append(pre[position, feature])
                for later, row in enumerate(self.coders["w_dec"][layer][feature]):
                    reconstruction[layer + later, position] += pre[position, feature] * row
        numbers = np.array(index, np.int64).reshape(-1, 3)
        error = self.run["mlp_out"] - reconstruction
        return Features(numbers, np.array(activation, np.float64), reconstruction, error, all_pre)


def centred(x: Array) -> Array:
    """x minus its mean over the last axis."""
    return x - x.mean(-1, keepdims=True)


# -------------------------------------------------------------------------------------------- the graph


@dataclasses.dataclass
class Graph:
    """All nodes and edges of one prompt: features, errors, tokens, positions, bias, other, logits."""

    frozen: Frozen
    features: Features
    kind: list[str]
    layer: NDArray[np.int64]
    position: NDArray[np.int64]
    feature: NDArray[np.int64]
    value: Array  # (N,) pre-activation or logit; NaN for nodes that are no targets
    sent: list[Sent]  # of every source: all nodes but the logits
    directions: list[Array]  # (V,) of every logit
    matrix: Array  # (N,N)
    _streams: list[Stream] = dataclasses.field(default_factory=list)

    def select(self, kind: str) -> NDArray[np.int64]:
        """Numbers of the nodes of one kind."""
        return np.array([n for n, name in enumerate(self.kind) if name == kind], np.int64)

    def node(self, kind: str, layer: int = -1, position: int = -1, feature: int | None = None) -> int:
        """The one node that is described so."""
        found = [n for n in self.select(kind) if self.layer[n] == layer and self.position[n] == position
                 and feature in (None, self.feature[n])]  # fmt: skip
        if len(found) != 1:
            raise KeyError(f"{len(found)} nodes are {(kind, layer, position, feature)}")
        return found[0]

    def targets(self) -> NDArray[np.int64]:
        """Features and logits."""
        return np.concatenate([self.select("feature"), self.select("logit")])

    def closure_errors(self) -> Array:
        """|sum of incoming edges - value| / |value| of every target."""
        value = self.value[self.targets()]
        return abs(self.matrix[self.targets()].sum(1) - value) / abs(value)

    def read(self, stream: Stream, target: int) -> float:
        """The target's pre-activation or logit without constants."""
        frozen = self.frozen
        if self.kind[target] == "logit":
            row, _ = frozen.unembed(self.directions[target - self.select("logit")[0]])
            return float(row @ centred(stream.final)[-1] / frozen.ln_final_scale[-1])
        layer, position, feature = self.layer[target], self.position[target], self.feature[target]
        read = frozen.encoder_input(layer, stream.mid[layer])[position]
        return float(read @ frozen.coders["w_enc"][layer][feature])

    def constant(self, target: int) -> float:
        """The target's own constant: b_enc, or the biases of LayerNorm and unembedding."""
        if self.kind[target] == "logit":
            return self.frozen.unembed(self.directions[target - self.select("logit")[0]])[1]
        return float(self.frozen.coders["b_enc"][self.layer[target]][self.feature[target]])

    def target_position(self, target: int) -> int:
        """Where the target reads; a logit at the last position."""
        return len(self.frozen.tokens) - 1 if self.kind[target] == "logit" else int(self.position[target])

    # --- heads

    def heads(self, source: int, target: int) -> Loadings:
        """Split of one edge. Bias and other stand at no one position: theirs is all remainder."""
        k, q = int(self.position[source]), self.target_position(target)
        n_layer, n_head, _, _ = self.frozen.shape
        loading, direct, sent = np.zeros((n_layer, n_head)), 0.0, self.sent[source]
        if k < 0 or k > q:
            return Loadings(loading, direct, self.matrix[target, source])
        split = self._last_hop if k == q else self._one_hop
        for layer, head in np.ndindex(n_layer, n_head):
            loading[layer, head] = split(sent, target, k, q, layer, head)
        if k == q:
            direct = self._arriving(sent, target, np.zeros_like(self.frozen.pattern))
        return Loadings(loading, direct, self.matrix[target, source] - direct - loading.sum())

    def _arriving(self, sent: Sent, target: int, pattern: Array) -> float:
        return self.read(self.frozen.propagate(sent, pattern), target)

    def _one_hop(self, sent: Sent, target: int, k: int, q: int, layer: int, head: int) -> float:
        """k < q: the only entry from k to q is (layer, head)'s; k and q keep their self-attention."""
        allowed = np.zeros_like(self.frozen.pattern)
        for stay in (k, q):
            allowed[:, :, stay, stay] = self.frozen.pattern[:, :, stay, stay]
        allowed[layer, head, q, k] = self.frozen.pattern[layer, head, q, k]
        return self._arriving(sent, target, allowed)

    def _last_hop(self, sent: Sent, target: int, k: int, q: int, layer: int, head: int) -> float:
        """k = q: any self-attention below `layer`, in it only this head, none above; minus what needs no hop
        in `layer`."""
        allowed = np.zeros_like(self.frozen.pattern)
        allowed[:layer, :, k, k] = self.frozen.pattern[:layer, :, k, k]
        without = self._arriving(sent, target, allowed)
        allowed[layer, head, k, k] = self.frozen.pattern[layer, head, k, k]
        return self._arriving(sent, target, allowed) - without

    # --- influence through features

    def totals(self, target: int, avoid: Collection[int] = ()) -> Array:
        """(N,) total influence of every node on the target, directly and through kept features but `avoid`:
        total[s] = w[s -> target] + sum_f w[s -> f] / a_f * total[f], d activation / d pre-activation being 1.
        Edges go to higher layers, so from the highest feature down total[f] is complete when it is used."""
        total = self.matrix[target].copy()
        for f in self.select("feature")[::-1]:
            if f not in avoid:
                total += self.matrix[f] / self.value[f] * total[f]
        return total

    def total_of_group(self, group: Collection[int], target: int) -> float:
        """What all of a group do to the target together: a way that comes back to the group is left out, as
        it is counted where it leaves last."""
        return float(self.totals(target, avoid=group)[list(group)].sum())

    def total_heads(self, source: int, target: int) -> Loadings:
        """Split of a total by the head that carries its first edge."""
        found, totals = self.heads(source, target), self.totals(target)
        head, direct, remainder = found.head.copy(), found.direct, found.remainder
        for f in self.select("feature"):
            factor = totals[f] / self.value[f]
            if factor and self.matrix[f, source]:
                part = self.heads(source, f)
                head += factor * part.head
                direct += factor * part.direct
                remainder += factor * part.remainder
        return Loadings(head, direct, remainder)

    def leaving_heads(self, source: int, target: int) -> Loadings:
        """Split of a total by the head with which each path leaves the source's position: all paths are
        walked one by one, from feature to feature at the position."""
        totals, found = self.totals(target), [np.zeros_like(self.frozen.pattern[:, :, 0, 0]), 0.0, 0.0]

        def walk(node: int, part: float) -> None:
            """part: of the node's value, what comes from the source along this path."""
            for end in (*self.select("feature"), target):
                weight = part * self.matrix[end, node]
                if not weight:
                    continue
                here = self.target_position(end) == self.position[source] >= 0
                if here and end == target:
                    found[1] += weight
                elif here:
                    walk(end, weight / self.value[end])
                else:
                    onward = 1.0 if end == target else totals[end] / self.value[end]
                    split = self.heads(node, end)
                    found[0] += part * onward * split.head
                    found[1] += part * onward * split.direct
                    found[2] += part * onward * split.remainder

        walk(source, 1.0)
        return Loadings(*found)

    # --- why a head looks there

    def score_pairs(self, layer: int, head: int, query: int, key: int) -> Array:
        """(N,N) whose sum is scores[layer, head, query, key]: row = node on the query's side, column = node
        on the key's side. The constants of q and k stand with the bias node."""
        if not self._streams:
            self._streams = [self.frozen.propagate(sent) for sent in self.sent]
        sides = [self._side("q", layer, head, query), self._side("k", layer, head, key)]
        return oracle.score_factor(self.frozen.config, layer) * (sides[0] @ sides[1].T)

    def _side(self, part: str, layer: int, head: int, position: int) -> Array:
        """(N,D): what every node gives to q or k."""
        frozen, (w, b) = self.frozen, self.frozen.head_block(layer, part, head)
        side = np.zeros((len(self.kind), len(b)))
        for node, stream in enumerate(self._streams):
            read = centred(stream.pre[layer])[position] / frozen.ln1_scale[layer][position]
            side[node] = (read * frozen.parameter(f"h.{layer}.ln_1.weight")) @ w
        side[self.select("bias")] += frozen.parameter(f"h.{layer}.ln_1.bias") @ w + b
        return side


def build(
    frozen: Frozen, directions: Sequence[Array], kept: Callable[[int, int, int], bool] | None = None
) -> Graph:
    """The graph of one run. `directions`: one (V,) per logit node, see `logit_direction`; `kept(layer,
    position, feature)`: whether an active feature gets a node, else it is part of "other"."""
    features = frozen.features()
    n_layer, _, n_tokens, _ = frozen.shape
    nodes: list[tuple[str, int, int, int, float]] = []
    sent, other = [], frozen.nothing()
    for (layer, position, feature), activation in zip(features.index, features.activation):
        source = other
        if kept is None or kept(layer, position, feature):
            nodes.append(("feature", layer, position, feature, features.pre[layer][position, feature]))
            source = frozen.nothing()
            sent.append(source)
        for later, row in enumerate(frozen.coders["w_dec"][layer][feature]):
            source.post[layer + later, position] += activation * row
    n_kept = len(nodes)
    for layer, position in np.ndindex(n_layer, n_tokens):
        nodes.append(("error", layer, position, -1, np.nan))
        sent.append(frozen.nothing())
        sent[-1].post[layer, position] = features.error[layer, position]
    for kind, rows, numbers in (("token", frozen.run["embed"], frozen.tokens),
                                ("position", frozen.run["pos_embed"], np.full(n_tokens, -1))):  # fmt: skip
        for position in range(n_tokens):
            nodes.append((kind, -1, position, int(numbers[position]), np.nan))
            sent.append(frozen.nothing())
            sent[-1].start[position] = rows[position]
    nodes.append(("bias", -1, -1, -1, np.nan))
    sent.append(frozen.constants())
    if n_kept < len(features.index):
        nodes.append(("other", -1, -1, -1, np.nan))
        sent.append(other)
    for c in directions:
        nodes.append(("logit", n_layer, n_tokens - 1, named_token(c), float(c @ frozen.run["logits"][-1])))
    graph = _graph(frozen, features, nodes, sent, list(directions))
    _fill(graph)
    return graph


def named_token(direction: Array) -> int:
    """The token of a logit node, -1 for a difference (the mean over the vocabulary has one entry above 0 and
    all others equal)."""
    token = int(np.argmax(direction))
    others = np.delete(direction, token)
    return token if (others == others[0]).all() and others[0] < 0 else -1


def _graph(frozen: Frozen, features: Features, nodes: list, sent: list[Sent], directions: list) -> Graph:
    kind, *numbers, value = (list(column) for column in zip(*nodes))
    layer, position, feature = (np.array(column, np.int64) for column in numbers)
    matrix = np.zeros((len(nodes), len(nodes)))
    return Graph(frozen, features, kind, layer, position, feature, np.array(value), sent, directions, matrix)


def _fill(graph: Graph) -> None:
    """All edges: every source sent once, read at every target."""
    for source, sent in enumerate(graph.sent):
        stream = graph.frozen.propagate(sent)
        for target in graph.targets():
            own = graph.constant(target) if graph.kind[source] == "bias" else 0.0
            graph.matrix[target, source] = graph.read(stream, target) + own


def node_ids(graph: Graph) -> list[str]:
    """The names of nodes in files."""
    n_layer, found = graph.frozen.shape[0], []
    for kind, layer, position, feature in zip(graph.kind, graph.layer, graph.position, graph.feature):
        found.append({
            "feature": f"{layer}_{feature}_{position}", "error": f"err_{layer}_{position}",
            "token": f"E_{feature}_{position}", "position": f"P_{position}", "bias": "bias", "other": "other",
            "logit": f"{n_layer + 1}_{feature}_{position}" if feature >= 0 else "logit_diff",
        }[kind])  # fmt: skip
    return found
