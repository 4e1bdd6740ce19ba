"""GPT-2 models into which a circuit was put by hand, so that what must be found in them is known.

`python tests/planted/planted.py` prints, as a Markdown table, which method finds which circuit.

How a model is written. Every token, every position and every thing that a head writes has one coordinate of
the residual stream of its own. One more coordinate, which nothing reads, holds minus the sum of all others:
every vector has mean 0. With ln_eps = 2^80 and LayerNorm weights 2^40, LayerNorm is then the identity, to the
last bit in both precisions, and the model computes what its weights say and nothing else. Weights are small
multiples of powers of two, so sums are exact.

A slot is a group of coordinates, one per token of the vocabulary: "token" (the token here), "position", and
those that heads write: "previous", "out" (the unembedding reads it), "junk" (nobody reads it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import oracle
import oracle_circuits as oc
from oracle import Array

import attnsparse as asp
from attnsparse.circuits.find import find_circuit
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.tasks.task import Task

WORDS = (
    "start", " ant", " bee", " cat", " dog", " eel", " fox", " gnu", " hen", " ibis", " jay", " kiwi",
    " lynx",    " mole", " newt", " owl",
)  # fmt: skip
WIDTH = len(WORDS)  # of a slot, and of a head
LN_EPS, LN_WEIGHT = 2.0**80, 2.0**40
SURE = 1024.0  # a score after which softmax is exactly 0 and 1
GATE_BIAS = -5.0
GAIN = 8.0  # logit of a token written once to "out"
N_PROMPTS = 12
METHODS = ("exact", "attribution", "ig", "greedy")
LOUDEST = "largest output"
Item = tuple[int, ...]


class Writer:
    """The weights of one model, at first all 0 but embeddings, LayerNorms and unembedding."""

    def __init__(
        self, n_layer: int, n_head: int, n_tokens: int, written: Sequence[str], gated: bool, d_mlp: int = 1
    ) -> None:
        self.slots, width = {}, 0
        for name, size in (("token", WIDTH), ("position", n_tokens), *((name, WIDTH) for name in written)):
            self.slots[name] = slice(width, width + size)
            width += size
        self.config = oracle.full_config(
            n_layer=n_layer, n_head=n_head, d_model=width + 1, d_head=WIDTH, d_mlp=d_mlp, n_ctx=n_tokens,
            n_vocab=WIDTH, activation="relu", tied=False, ln_eps=LN_EPS, gated=gated,
            gate_bias=GATE_BIAS if gated else 0.0,
        )  # fmt: skip
        shapes = oracle.parameter_shapes(self.config)
        self.weights = {name: np.zeros(shape) for name, shape in shapes.items()}
        for name in shapes:
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                self.weights[name][:] = LN_WEIGHT
        self.write(self.weights["wte.weight"], "token", np.eye(WIDTH))
        self.write(self.weights["wpe.weight"], "position", np.eye(n_tokens))
        self.weights["lm_head.weight"][:, self.slots["out"]] = GAIN * np.eye(WIDTH)

    def write(self, into: Array, slot: str, values: Array) -> None:
        """Let rows of `into` (n, E) add `values` (n, width of the slot) to the stream; the last coordinate
        keeps the mean at 0."""
        into[:, self.slots[slot]] += values
        into[:, -1] -= values.sum(1)

    def head(
        self, layer: int, head: int, query: tuple[str, Array], key: tuple[str, Array], out: str,
        score: float, gain: float = 1.0, value: Array | None = None,
    ) -> None:  # fmt: skip
        """A head whose score is `score` * (query matrix row . key matrix row), each row chosen by what stands
        in the slot, and which adds gain * value[token at the key] (default: the token) to the slot `out`."""
        block, own = self.weights[f"h.{layer}.attn.c_attn.weight"], slice(head * WIDTH, (head + 1) * WIDTH)
        q, k, v = (block[:, i * self.config["n_head"] * WIDTH :][:, own] for i in range(3))
        for part, (slot, matrix), factor in ((q, query, score * np.sqrt(WIDTH)), (k, key, 1.0)):
            part[self.slots[slot], : matrix.shape[1]] = factor * matrix
        v[self.slots["token"]] = np.eye(WIDTH)
        project = self.weights[f"h.{layer}.attn.c_proj.weight"][own]
        self.write(project, out, gain * (np.eye(WIDTH) if value is None else value))

    def decoy(self, layer: int, head: int, seed: int, slot: str = "token") -> None:
        """A head whose scores are random multiples of `SURE`, one for every pair of tokens and all different
        for one query, and whose values look like anything. Nobody reads what it writes."""
        rng = np.random.default_rng(seed)
        scores = np.array([rng.permutation(WIDTH) - WIDTH / 2 + 0.5 for _ in range(WIDTH)])
        value = rng.integers(-2, 3, (WIDTH, WIDTH)).astype(float)
        self.head(layer, head, (slot, scores), ("token", np.eye(WIDTH)), "junk", SURE, value=value)

    def positional(self, layer: int, head: int, query: int, key: int, out: str, gain: float = 1.0) -> None:
        """A head that copies the token at position `key` to position `query`. At other positions: nothing if
        gated; if dense the average of what it sees."""
        n = self.config["n_ctx"]
        at_query, at_key = np.zeros((n, 1)), np.zeros((n, 1))
        at_query[query], at_key[key] = 1.0, 1.0
        self.head(layer, head, ("position", at_query), ("position", at_key), out, SURE, gain)

    def saturate(self, layer: int, read: str, out: str) -> None:
        """An MLP that adds min(x, 1) = relu(x) - relu(x - 1) of each coordinate x of `read` to `out`."""
        into = self.weights[f"h.{layer}.mlp.c_fc.weight"]
        into[self.slots[read], :WIDTH] = into[self.slots[read], WIDTH:] = np.eye(WIDTH)
        self.weights[f"h.{layer}.mlp.c_fc.bias"][WIDTH:] = -1.0
        self.write(
            self.weights[f"h.{layer}.mlp.c_proj.weight"], out, np.vstack([np.eye(WIDTH), -np.eye(WIDTH)])
        )


@dataclasses.dataclass(frozen=True)
class Planted:
    """A model, its task, and what a circuit must hold: any one of `heads`, any one of `edges`."""

    name: str
    config: Mapping
    weights: Mapping[str, Array]
    task: Task
    heads: tuple[frozenset[Item], ...]
    edges: tuple[frozenset[Item], ...]
    misses: tuple[str, ...] = ()
    """Methods that cannot find it; all others must."""

    def model(self, dtype: str = "float32") -> asp.Model:
        """The package's model."""
        weights = {name: value.astype(dtype) for name, value in self.weights.items()}
        return asp.Model(
            asp.Config.from_dict(dict(self.config)), weights, self.task.tokenizer, self.name, dtype
        )

    def truth(self, unit: str) -> tuple[frozenset[Item], ...]:
        """The sets of items of the unit, each of which is a whole circuit."""
        return self.heads if unit == "head" else self.edges

    def n_true(self, unit: str) -> int:
        """Items in one such set."""
        return len(self.truth(unit)[0])

    def precision_recall(self, unit: str, items: Sequence) -> tuple[float, float]:
        """Of the best match among the true sets."""
        found = {tuple(int(number) for number in item) for item in items}
        hits, true = max((len(found & true), true) for true in self.truth(unit))
        return hits / len(found), hits / len(true)


# --------------------------------------------------------------------------------------------- tasks


def _task(name: str, rows: Sequence[tuple[Sequence[int], Sequence[int], int, int]]) -> Task:
    """A task from (clean, corrupted, answer, wrong); the first half is for ranking."""
    clean, corrupted, answers, wrong = zip(*rows)
    ids = [
        tuple(np.atleast_1d(np.asarray(row, np.int32)) for row in part)
        for part in (clean, corrupted, answers, wrong)
    ]
    first_half = np.arange(len(rows)) < len(rows) // 2
    return Task(name, "logit_diff", Tokenizer.from_words(WORDS), *ids, ("",) * len(rows), first_half)


def _random_words(rng: np.random.Generator, n: int) -> list[int]:
    """n different tokens, none of them the first one."""
    return [int(token) + 1 for token in rng.permutation(WIDTH - 1)[:n]]


def copy_task(name: str, n_tokens: int, key: int) -> Task:
    """Random words; the answer is that at position `key`, which the corrupted prompt has another of."""
    rng, rows = np.random.default_rng(n_tokens), []
    for _ in range(N_PROMPTS):
        *words, other = _random_words(rng, n_tokens)
        clean = [0, *words]
        corrupted = [*clean[:key], other, *clean[key + 1 :]]
        rows.append((clean, corrupted, clean[key], other))
    return _task(name, rows)


def induction_task(name: str) -> Task:
    """start A a B b C c A: a; in turn for each of the three pairs. In the corrupted prompt the asked word and
    the first of the next pair have changed places, and so the answer is another."""
    rng, rows = np.random.default_rng(0), []
    for i in range(N_PROMPTS):
        words = _random_words(rng, 6)
        asked, other = 2 * (i % 3), 2 * ((i + 1) % 3)
        changed = list(words)
        changed[asked], changed[other] = words[other], words[asked]
        last = words[asked]
        rows.append(([0, *words, last], [0, *changed, last], words[asked + 1], words[other + 1]))
    return _task(name, rows)


# --------------------------------------------------------------------------------------------- models


def induction(gated: bool, saturated: bool = False) -> Planted:
    """L0H2 writes the previous token; L1H1 goes to where the previous token is the present one and copies
    what stands there. Its score is 8: its pattern is 0.998 there if dense. Saturated: 64, where rounding
    leaves exactly 1, and a small change of the score changes nothing."""
    w = Writer(2, 4, 8, ("previous", "out", "junk"), gated)
    shift = np.eye(8, WIDTH, -1)  # row p: one-hot of p - 1
    w.head(0, 2, ("position", shift), ("position", np.eye(8, WIDTH)), "previous", SURE)
    w.head(1, 1, ("token", np.eye(WIDTH)), ("previous", np.eye(WIDTH)), "out", 64.0 if saturated else 8.0)
    w.decoy(0, 0, 1)
    w.decoy(0, 1, 2)
    w.decoy(1, 0, 3, "previous")
    w.positional(1, 2, 7, 0, "junk", 4.0)
    w.decoy(1, 3, 4)  # L0H3 writes nothing at all
    name = _name("induction, saturated" if saturated else "induction", gated)
    edges = {edge for k in (1, 3, 5) for edge in ((0, 2, k + 1, k), (1, 1, 7, k + 1))}
    return Planted(
        name, w.config, w.weights, induction_task(name),
        heads=(frozenset({(0, 2), (1, 1)}),), edges=(frozenset(edges),),
        misses=("attribution",) if saturated else (),
    )  # fmt: skip


def copying(gated: bool) -> Planted:
    """L1H1 copies the fifth token to the eighth; no other head writes anything that is read."""
    w = Writer(2, 3, 8, ("out", "junk"), gated)
    w.positional(1, 1, 7, 4, "out")
    for seed, (layer, head) in enumerate(((0, 0), (0, 1), (1, 0), (1, 2))):
        w.decoy(layer, head, seed)
    w.positional(0, 2, 7, 4, "junk")
    name = _name("copy 5 to 8", gated)
    return Planted(
        name, w.config, w.weights, copy_task(name, 8, 4), (frozenset({(1, 1)}),), (frozenset({(1, 1, 7, 4)}),)
    )


def redundant(gated: bool) -> Planted:
    """L0H1 and L1H0 both write 1.5 for the token at position 2; the MLP of layer 1 passes at most 1 on, so
    that either is enough and without both there is nothing. L1H1 adds a 16th of the same, past the MLP."""
    w = Writer(2, 3, 5, ("sum", "out", "junk"), gated, d_mlp=2 * WIDTH)
    w.positional(0, 1, 4, 2, "sum", 1.5)
    w.positional(1, 0, 4, 2, "sum", 1.5)
    w.positional(1, 1, 4, 2, "out", 1 / 16)
    w.saturate(1, "sum", "out")
    for seed, (layer, head) in enumerate(((0, 0), (0, 2), (1, 2))):
        w.decoy(layer, head, seed)
    name = _name("two redundant heads", gated)
    either = ((0, 1), (1, 0))
    return Planted(
        name, w.config, w.weights, copy_task(name, 5, 2),
        heads=tuple(frozenset({head}) for head in either),
        edges=tuple(frozenset({(*head, 4, 2)}) for head in either),
        misses=("exact", "attribution"),
    )  # fmt: skip


def decoy(gated: bool) -> Planted:
    """L0H1 copies the third token to the last. L0H2 does the same 32 times as loudly, but nobody reads it."""
    w = Writer(1, 4, 6, ("out", "junk"), gated)
    w.positional(0, 1, 5, 2, "out")
    w.positional(0, 2, 5, 2, "junk", 32.0)
    w.decoy(0, 0, 0)
    w.decoy(0, 3, 1)
    name = _name("loud decoy", gated)
    return Planted(
        name, w.config, w.weights, copy_task(name, 6, 2),
        heads=(frozenset({(0, 1)}),), edges=(frozenset({(0, 1, 5, 2)}),), misses=(LOUDEST,),
    )  # fmt: skip


def _name(name: str, gated: bool) -> str:
    return f"{name}, {'gated' if gated else 'dense'}"


def all_planted() -> list[Planted]:
    """Every case, dense and gated."""
    made = []
    for gated in (False, True):
        made += [
            induction(gated),
            induction(gated, saturated=True),
            copying(gated),
            redundant(gated),
            decoy(gated),
        ]
    return made


def loudest(case: Planted, unit: str) -> Array:
    """All items by the mean length of what they write at the last token, most first: what one sees in a
    picture of patterns times values. It is no method of the package, only here to be misled."""
    projections = [case.weights[f"h.{layer}.attn.c_proj.weight"] for layer in range(case.config["n_layer"])]
    w_o = np.stack(projections).reshape(case.config["n_layer"], case.config["n_head"], WIDTH, -1)
    lengths = []
    for tokens in case.task.clean:
        entries = oc.forward(case.config, case.weights, tokens)["entry"][:, :, -1]  # L H key D
        parts = entries.sum(2, keepdims=True) if unit == "head" else entries
        lengths.append(np.linalg.norm(np.einsum("lhkd,lhde->lhke", parts, w_o), axis=-1))
    lengths = np.mean(lengths, axis=0)
    layer, head, key = np.unravel_index(np.argsort(-lengths, axis=None, kind="stable"), lengths.shape)
    if unit == "head":
        return np.stack([layer, head], 1)
    return np.stack([layer, head, np.full_like(key, len(case.task.clean[0]) - 1), key], 1)


# ---------------------------------------------------------------------------------------------- the table

HEADING = "| circuit | unit | method | precision | recall | needed | |\n|---|---|---|---|---|---|---|"


@dataclasses.dataclass(frozen=True)
class Row:
    """How one method did: precision and recall of its n best items, n being the number of true ones."""

    case: Planted
    unit: str
    method: str
    precision: float
    recall: float
    n_needed: int | None
    """Items after which 90 % of the effect are and stay explained."""

    @property
    def found(self) -> bool:
        """Whether the n best are a true circuit."""
        return self.precision == self.recall == 1

    @property
    def expected(self) -> bool:
        """Whether this method must find it."""
        return self.method not in self.case.misses

    def to_markdown(self) -> str:
        """One line of the table."""
        verdict = {(1, 1): "found", (0, 0): "missed, as it must", (1, 0): "**found**", (0, 1): "**missed**"}
        cells = (
            self.case.name, self.unit, self.method, f"{self.precision:.2f}", f"{self.recall:.2f}",
            "-" if self.n_needed is None else self.n_needed, verdict[self.found, self.expected],
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def measure(case: Planted, unit: str, method: str, threads: int | None = None) -> Row:
    """Ask `attnsparse.find_circuit`, zero ablation, everything else as it is by default; or `loudest`."""
    if method == LOUDEST:
        items = loudest(case, unit)[: case.n_true(unit)]
        return Row(case, unit, method, *case.precision_recall(unit, items), None)
    found = find_circuit(
        case.model(),
        case.task,
        unit=unit,
        method=method,
        n_random=0,
        n_bootstrap=10,
        threads=threads,
        progress=False,
    )
    precision, recall = case.precision_recall(unit, found.items[: case.n_true(unit)])
    return Row(case, unit, method, precision, recall, found.needed(0.9).stays)


def questions() -> list[tuple[Planted, str, str]]:
    """What `measure` is to be asked for the table: (case, unit, method)."""
    made = all_planted()
    asked = [(case, unit, method) for case in made for unit in ("head", "edge") for method in METHODS]
    return asked + [
        (case, unit, LOUDEST) for case in made if LOUDEST in case.misses for unit in ("head", "edge")
    ]


def main() -> None:
    """Print the table of docs/known-answers.md."""
    print(HEADING)
    for case, unit, method in questions():
        print(measure(case, unit, method).to_markdown())


if __name__ == "__main__":
    main()
