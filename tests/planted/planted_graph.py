"""A model and transcoders made by hand, whose attribution graph can be written down with a pencil.

The prompt is `The opposite of "large" is "`: large at position 4, the last quote at 7 (5 and 8 counted from
1). As in planted.py, LayerNorm is the identity (ln_eps 2^80, weight 2^40, one coordinate holds minus the sum
of the others), softmax is exactly 0, 1/2 or 1, and everything has a coordinate of its own, named below. All
numbers are small multiples of powers of two, so they are exact in float32 too.

Layer by layer, a coordinate's name standing for its value:

    MLP 0   brackets = 2 [quote] - 1 = 1 at 3 and 7, writes junk
            opposite = 2 [opposite] - 1 = 1 at 1, writes opp
            large0 = 4 [large] - 2 = 2 at 4, writes chain0 and wide
    L1H0    4 <- 4   self += 3 chain0
    MLP 1   large1 = chain0 - 1 = 1, writes chain1 and wide
    L2H1    7 <- 1   out += 5 opp
    MLP 2   large2 = chain0 + self + 2 chain1 - 6 = 2 + 6 + 2 - 6 = 4, writes 1/4 chain2 and 1/2 wide
            one neuron that no transcoder has: [large] = 1 at 4, writes wide: the error of layer 2
    MLP 3   large3 = 3 chain2 - 2 = 1, writes wide                            so wide = 2 + 1 + 2 + 1 + 1 = 7
    L4H0    7 <- 4   out += 4 wide, carry += 3 wide
    L4H1    7 <- 4   junk += 32 wide: a decoy, the entry is 1 and carries nothing
    L4H2    6 <- 1   relay += opp
    L4H3    4 <- 4   copy += wide
    L5H0    7 <- 4   out += 2 [large]: a decoy for the features, it carries the token's embedding alone
    L5H1    7 <- 4 and 0, half each: out += (4 wide + 2 copy) / 2
    L5H2    7 <- 6   out += 5 relay
    L5H3    7 <- 7   out += carry
    MLP 5   small = out / 2 - 33 = 41 - 33 = 8 at 7, writes out
    logit   of small: 8 out = 720; minus the mean over 8 tokens 7 out = 630; minus that of large 720

What stands in wide comes to out ten times: 4 + 3 by L4H0, (4 + 2) / 2 by L5H1; shares 0.7 and 0.3. The 3
through carry are L4H0's although L5H3 hops too, because that one stays at 7; the 2 through copy are L5H1's,
because L4H3 stays at 4. What stands in opp comes five times by L2H1, five times over position 6: remainder.
In the rows without a planted entry these heads look at position 0 in the dense model, where nothing is that
they read; in the gated one their gates are closed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import oracle
import oracle_graph as og
from oracle import Array
from planted import GATE_BIAS, LN_EPS, LN_WEIGHT, SURE

WORDS = ("The", " opposite", " of", ' "', "large", '"', " is", "small")
PROMPT = 'The opposite of "large" is "'
TOKENS = (0, 1, 2, 3, 4, 5, 6, 3)
SMALL_TOKEN, LARGE_TOKEN = 7, 4
N_LAYER, N_HEAD, WIDTH, N_FEATURES, N_TOKENS = 6, 4, 4, 4, len(TOKENS)
NAMES = (
    *(f"[{word.strip()}]" if word != ' "' else "[quote]" for word in WORDS),
    *(f"at {position}" for position in range(N_TOKENS)),
    "chain0", "chain1", "chain2", "self", "wide", "copy", "carry", "out", "opp", "relay", "junk",
)  # fmt: skip
AT = {name: i for i, name in enumerate(NAMES)}
D_MODEL = len(NAMES) + 1
GAIN = 8.0
Row = Mapping[str, float]


class Unit(NamedTuple):
    """max(0, sum of reads + bias), times `writes`: a neuron, and the feature of that number if it has one."""

    layer: int
    number: int
    reads: Row
    bias: float
    writes: Row


UNEXPLAINED = N_FEATURES  # the number of the neuron without a feature
UNITS = (
    Unit(0, 0, {"[quote]": 2}, -1, {"junk": 1}),
    Unit(0, 1, {"[opposite]": 2}, -1, {"opp": 1}),
    Unit(0, 3, {"[large]": 4}, -2, {"chain0": 1, "wide": 1}),
    Unit(1, 2, {"chain0": 1}, -1, {"chain1": 1, "wide": 1}),
    Unit(2, 0, {"chain0": 1, "self": 1, "chain1": 2}, -6, {"chain2": 1 / 4, "wide": 1 / 2}),
    Unit(2, UNEXPLAINED, {"[large]": 1}, 0, {"wide": 1}),
    Unit(3, 1, {"chain2": 3}, -2, {"wide": 1}),
    Unit(5, 2, {"out": 1 / 2}, -33, {"out": 1}),
)

# (layer, head, query, keys, ((read at the key, written at the query, gain), ...))
HEADS = (
    (1, 0, 4, (4,), (("chain0", "self", 3),)),
    (2, 1, 7, (1,), (("opp", "out", 5),)),
    (4, 0, 7, (4,), (("wide", "out", 4), ("wide", "carry", 3))),
    (4, 1, 7, (4,), (("wide", "junk", 32),)),
    (4, 2, 6, (1,), (("opp", "relay", 1),)),
    (4, 3, 4, (4,), (("wide", "copy", 1),)),
    (5, 0, 7, (4,), (("[large]", "out", 2),)),
    (5, 1, 7, (4, 0), (("wide", "out", 4), ("copy", "out", 2))),
    (5, 2, 7, (6,), (("relay", "out", 5),)),
    (5, 3, 7, (7,), (("carry", "out", 1),)),
)


def vector(row: Row) -> Array:
    """(E,) with mean 0: what is written, and minus its sum in the last coordinate."""
    found = np.zeros(D_MODEL)
    for name, value in row.items():
        found[AT[name]] += value
        found[-1] -= value
    return found


def model(gated: bool) -> tuple[dict, dict[str, Array]]:
    """Configuration and weights."""
    config = oracle.full_config(
        n_layer=N_LAYER, n_head=N_HEAD, d_model=D_MODEL, d_head=WIDTH, d_mlp=N_FEATURES + 1, n_ctx=N_TOKENS,
        n_vocab=len(WORDS), activation="relu", tied=False, ln_eps=LN_EPS, gated=gated,
        gate_bias=GATE_BIAS if gated else 0.0,
    )  # fmt: skip
    weights = {name: np.zeros(shape) for name, shape in oracle.parameter_shapes(config).items()}
    for name in weights:
        if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
            weights[name][:] = LN_WEIGHT
    weights["wte.weight"][:] = [vector({NAMES[token]: 1}) for token in range(len(WORDS))]
    weights["wpe.weight"][:] = [vector({f"at {position}": 1}) for position in range(N_TOKENS)]
    weights["lm_head.weight"][SMALL_TOKEN, AT["out"]] = GAIN
    for unit in UNITS:
        at = f"h.{unit.layer}.mlp"
        for name, value in unit.reads.items():
            weights[f"{at}.c_fc.weight"][AT[name], unit.number] = value
        weights[f"{at}.c_fc.bias"][unit.number] = unit.bias
        weights[f"{at}.c_proj.weight"][unit.number] = vector(unit.writes)
    for head in HEADS:
        _write_head(weights, *head, elsewhere=not gated)
    return config, weights


def _write_head(
    weights: Mapping, layer: int, head: int, query: int, keys: Iterable[int], moves: Iterable, elsewhere: bool
) -> None:
    """Scores SURE for the query and its keys and, if `elsewhere`, for other queries and key 0; else 0."""
    block = weights[f"h.{layer}.attn.c_attn.weight"]
    q, k, v = (block[:, (i * N_HEAD + head) * WIDTH :] for i in range(3))
    for position in range(N_TOKENS):
        q[AT[f"at {position}"], :2] = SURE * np.sqrt(WIDTH) * np.array([position == query, position != query])
    for key in keys:
        k[AT[f"at {key}"], 0] = 1
    k[AT["at 0"], 1] = elsewhere
    project = weights[f"h.{layer}.attn.c_proj.weight"][head * WIDTH : (head + 1) * WIDTH]
    for i, (read, written, gain) in enumerate(moves):
        v[AT[read], i] = 1
        project[i] = vector({written: gain})


def transcoders(kind: str) -> dict:
    """The transcoders that have all neurons but one, as a dictionary of oracle_graph.py.

    kind: "per layer" and "resid_mid" (another hook) write where the neurons do; "cross-layer": features of
    the layers 0 to 2 write wide only in layer 3, so that the errors of the layers 0 to 3 differ."""
    hook = og.RESIDUAL if kind == "resid_mid" else og.NORMALIZED
    read = 1.0 if hook == og.RESIDUAL else LN_WEIGHT
    cross = kind == "cross-layer"
    coders = {
        "w_enc": [np.zeros((N_FEATURES, D_MODEL)) for _ in range(N_LAYER)],
        "b_enc": [np.full(N_FEATURES, -1.0) for _ in range(N_LAYER)],
        "w_dec": [np.zeros((N_FEATURES, N_LAYER - i if cross else 1, D_MODEL)) for i in range(N_LAYER)],
        "output_bias": [np.zeros(D_MODEL) for _ in range(N_LAYER)],
        "threshold": None, "skip": None, "activation": "relu", "top_k": None, "input_hook": hook,
    }  # fmt: skip
    for unit in (unit for unit in UNITS if unit.number != UNEXPLAINED):
        for name, value in unit.reads.items():
            coders["w_enc"][unit.layer][unit.number, AT[name]] = read * value
        coders["b_enc"][unit.layer][unit.number] = unit.bias
        rows = coders["w_dec"][unit.layer][unit.number]
        for name, value in unit.writes.items():
            rows[3 - unit.layer if cross and name == "wide" else 0] += vector({name: value})
    return coders


# ---------------------------------------------------------------------------------------- what must come out


class Node(NamedTuple):
    """A node as graph.kind, layer, position and feature describe it."""

    kind: str
    layer: int = -1
    position: int = -1
    feature: int = -1


@dataclasses.dataclass(frozen=True)
class Edge:
    """Loading of every head that has one, what needs no head, and what goes over other positions."""

    heads: Mapping[tuple[int, int], float] = dataclasses.field(default_factory=dict)
    direct: float = 0.0
    remainder: float = 0.0

    @property
    def weight(self) -> float:
        """The edge."""
        return sum(self.heads.values()) + self.direct + self.remainder


LARGE = (
    Node("feature", 0, 4, 3),
    Node("feature", 1, 4, 2),
    Node("feature", 2, 4, 0),
    Node("feature", 3, 4, 1),
)
OPPOSITE, SMALL = Node("feature", 0, 1, 1), Node("feature", 5, 7, 2)
QUOTES = (Node("feature", 0, 3, 0), Node("feature", 0, 7, 0))
BIAS, LOGIT = Node("bias"), Node("logit", N_LAYER, 7, SMALL_TOKEN)
TOKEN = tuple(Node("token", -1, position, token) for position, token in enumerate(TOKENS))
VALUES = dict(zip((*LARGE, OPPOSITE, *QUOTES, SMALL, LOGIT), (2, 1, 4, 1, 1, 1, 1, 8, 630)))
WIDE = dict(zip(LARGE, (2, 1, 2, 1)))  # activation times what it writes to wide
CARRIERS = {(4, 0): 0.7, (5, 1): 0.3}
DECOY = (4, 1, 7, 4)  # layer, head, query, key
PER_OUT = {SMALL: 1 / 2, LOGIT: GAIN * (1 - 1 / len(WORDS))}  # of each target: what 1 in out does
DIFFERENCE = GAIN  # the same of the logit of small minus that of large
SCORE = (4, 0, 7, 4)  # its score, SURE, is of one pair: position 7 with position 4


def carried(wide: float, per_out: float) -> Edge:
    """What an amount in wide at position 4 does to a target at 7, 1 in out doing per_out."""
    return Edge({(4, 0): 7 * wide * per_out, (5, 1): 3 * wide * per_out})


def errors(kind: str) -> dict[Node, float]:
    """Error nodes that are not 0, and what they write to wide: the neuron without a feature; and across
    layers what features write later than neurons do."""
    if kind != "cross-layer":
        return {Node("error", 2, 4): 1}
    return {Node("error", layer, 4): wide for layer, wide in enumerate((2, 1, 2 + 1, 1 - (2 + 1 + 2 + 1)))}


def edges(kind: str) -> dict[tuple[Node, Node], Edge]:
    """(source, target) -> edge, of every edge that is not 0. BIAS has no heads: its weight is in `direct`."""
    found = {
        (TOKEN[4], LARGE[0]): Edge(direct=4), (BIAS, LARGE[0]): Edge(direct=-2),
        (TOKEN[1], OPPOSITE): Edge(direct=2), (BIAS, OPPOSITE): Edge(direct=-1),
        (LARGE[0], LARGE[1]): Edge(direct=2), (BIAS, LARGE[1]): Edge(direct=-1),
        (LARGE[0], LARGE[2]): Edge({(1, 0): 6}, direct=2), (LARGE[1], LARGE[2]): Edge(direct=2),
        (BIAS, LARGE[2]): Edge(direct=-6),
        (LARGE[2], LARGE[3]): Edge(direct=3), (BIAS, LARGE[3]): Edge(direct=-2),
        (BIAS, SMALL): Edge(direct=-33), (SMALL, LOGIT): Edge(direct=56),
    }  # fmt: skip
    for quote in QUOTES:
        found[TOKEN[quote.position], quote] = Edge(direct=2)
        found[BIAS, quote] = Edge(direct=-1)
    for target, per_out in PER_OUT.items():
        for source, wide in {**WIDE, **errors(kind)}.items():
            found[source, target] = carried(wide, per_out)
        found[OPPOSITE, target] = Edge({(2, 1): 5 * per_out}, remainder=5 * per_out)
        found[TOKEN[4], target] = Edge({(5, 0): 2 * per_out})
    return found


# Total influence on the logit: edge + sum over features f of (edge to f) / (activation of f) * (total of f);
# heads as in `Edge`. small: 56, 7 for each unit of activation. 1 in wide: 7 * 10 and by small 5 * 7: 105.
#   large3: 1 * 105.   large2: 2 * 105 + 3 / 1 * 105 = 525.   large1: 1 * 105 + 2 / 4 * 525 = 367.5
#   large0: 2 * 105 + 2 / 1 * 367.5 + (2 + 6) / 4 * 525 = 1995.   opposite: 70 + 5 * 7 = 105
#   token large: 14 + 1 * 7 + 4 / 2 * 1995 = 4011.   token opposite: 2 / 1 * 105 = 210
#   bias: -33 * 7 - 2 / 2 * 1995 - 1 * 367.5 - 6 / 4 * 525 - 2 * 105 - 1 * 105 = -3696
#   errors: 105 for each unit of wide, 105 in all
# and 4011 + 210 - 3696 + 105 = 630, the logit.
TOTALS = {
    SMALL: Edge(direct=56),
    LARGE[3]: Edge({(4, 0): 73.5, (5, 1): 31.5}),
    LARGE[2]: Edge({(4, 0): 147, (5, 1): 63}, direct=315),
    LARGE[1]: Edge({(4, 0): 73.5, (5, 1): 31.5}, direct=262.5),
    LARGE[0]: Edge({(4, 0): 147, (5, 1): 63, (1, 0): 787.5}, direct=735 + 262.5),
    OPPOSITE: Edge({(2, 1): 52.5}, remainder=52.5),
    TOKEN[4]: Edge({(5, 0): 21}, direct=3990),
    TOKEN[1]: Edge(direct=210),
}
TOTAL_OF_BIAS = -3696
TOTAL_PER_WIDE = 105

NAMED = {
    **{node: f"large{i}" for i, node in enumerate(LARGE)}, OPPOSITE: "opposite", SMALL: "small",
    **{node: f"brackets at {node.position}" for node in QUOTES}, Node("error", 2, 4): "error of layer 2 at 4",
    **{node: f"token {WORDS[node.feature].strip()} at {node.position}" for node in TOKEN}, BIAS: "bias",
    LOGIT: "logit of small",
}  # fmt: skip


def table() -> str:
    """The edges, and the totals on the logit, as the Markdown table of docs/known-answers.md."""
    lines = ["| from | to | edge | by heads | direct | remainder |", "|---|---|---|---|---|---|"]
    for (source, target), edge in edges("per layer").items():
        lines.append(_row(NAMED[source], NAMED[target], edge, source == BIAS))
    for source, edge in TOTALS.items():
        lines.append(_row(NAMED[source], "logit of small, through features", edge, False))
    lines.append(f"| bias | logit of small, through features | {TOTAL_OF_BIAS:g} | - | - | - |")
    return "\n".join(lines)


def _row(source: str, target: str, edge: Edge, without_heads: bool) -> str:
    carried_by = [f"L{layer}H{head} {loading:g}" for (layer, head), loading in edge.heads.items()]
    split = ["-"] * 3 if without_heads else [", ".join(carried_by) or "-", edge.direct, edge.remainder]
    cells = [source, target, edge.weight, *split]
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:g}' for cell in cells)} |"


if __name__ == "__main__":
    print(table())
