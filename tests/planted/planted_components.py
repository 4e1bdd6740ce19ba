"""Circuits of component edges that were written into the weights, so that all of them are known exactly.

Models are made as in planted.py: LayerNorm is the identity, slots are groups of coordinates of the residual
stream, and heads that nobody reads surround the true ones. In a corrupted prompt one token is another, and an
edge is true if patching it (and what must be patched with it) moves the answer. A method that cannot see a
circuit is listed with it.

As a script it prints the table: python tests/planted/planted_components.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import oracle_component_graph as graph
import oracle_components as comp
from oracle import Array
from oracle_component_graph import Mask
from planted import WIDTH, Writer, _name, _random_words, _task, copy_task

from attnsparse.tasks.task import Task

N_PROMPTS = 4
FIRM = 8192.0  # even a fifth of it leaves softmax exactly 0 and 1, also in float64
N_TOKENS, LAST = 7, 6
CLEAR = 1e-6  # of the largest score: a smaller one is 0 but for rounding
QUESTIONS = {
    "eap": {"method": "eap"},
    "eap, denoising": {"method": "eap", "direction": "denoising"},
    "eap-ig-inputs, 5 steps": {"method": "eap-ig-inputs"},
    "eap-ig-inputs, 64 steps": {"method": "eap-ig-inputs", "steps": 64},
    "eap-ig-activations, 5 steps": {"method": "eap-ig-activations"},
    "clean-corrupted": {"method": "clean-corrupted"},
    "exact": {"method": "exact"},
    "exact, denoising": {"method": "exact", "direction": "denoising"},
    "information-flow-routes": {"method": "information-flow-routes"},
}


@dataclasses.dataclass(frozen=True)
class Planted:
    """A model, its task and its edges."""

    name: str
    config: Mapping
    weights: Mapping[str, Array]
    task: Task
    edges: frozenset[str]
    """All that take part."""
    enough: tuple[frozenset[str], ...]
    """Sets of them each of which is enough by itself; one, unless there is a redundancy."""
    misses: frozenset[str] = frozenset()
    """Of `QUESTIONS`, those whose best edges are not `edges`."""

    @property
    def true(self) -> Mask:
        """The edges as a matrix."""
        return graph.mask_of(self.config, self.edges)

    def scores(self, question: str, gate: str = "recomputed") -> Array:
        """By the oracle."""
        return _scores(self.name, question, gate if self.config["gated"] else "recomputed")

    def precision_recall(self, scores: Array) -> tuple[float, float]:
        """Of as many best edges as there are true ones, without those that score nothing."""
        best = graph.top_n(self.config, scores, len(self.edges))
        return graph.precision_recall(best & (np.abs(scores) > CLEAR * np.abs(scores).max()), self.true)


# --------------------------------------------------------------------------------------------- pieces


def read_values(w: Writer, layer: int, head: int, slot: str, matrix: Array | None = None) -> None:
    """Let the values of a head be those of a slot instead of the token here."""
    n_head = w.config["n_head"]
    start = (2 * n_head + head) * WIDTH
    values = w.weights[f"h.{layer}.attn.c_attn.weight"][:, start : start + WIDTH]
    values[:] = 0
    values[w.slots[slot]] = np.eye(WIDTH) if matrix is None else matrix


def level_head(w: Writer, layer: int, head: int, key: int, levels: Array, out: str) -> None:
    """A head that writes a number, chosen by the token at position `key`, to the first coordinate of
    `out`."""
    matrix = np.zeros((WIDTH, WIDTH))
    matrix[:, 0] = levels
    w.positional(layer, head, LAST, key, out)
    read_values(w, layer, head, "token", matrix)


def units(w: Writer, layer: int, read: str, bends: Sequence[tuple[float, float]], out: str, n: int) -> None:
    """An MLP that adds the sum of c relu(x - b) over the bends (b, c), for the first n coordinates x of
    `read`."""
    into = w.weights[f"h.{layer}.mlp.c_fc.weight"]
    for i, (bend, slope) in enumerate(bends):
        own = slice(i * n, (i + 1) * n)
        into[w.slots[read], own] = np.eye(WIDTH, n)
        w.weights[f"h.{layer}.mlp.c_fc.bias"][own] = -bend
        w.write(w.weights[f"h.{layer}.mlp.c_proj.weight"][own], out, slope * np.eye(n, WIDTH))


def pointer_task(name: str) -> Task:
    """start p a b c d start: the word at position p + 1, p being the words 1 to 4; the corrupted prompt has
    another p, and so another answer."""
    rng, rows = np.random.default_rng(1), []
    for i in range(N_PROMPTS):
        words = [token + 4 for token in _random_words(rng, 15) if token + 4 < WIDTH][:4]
        clean, other = 1 + i % 4, 1 + (i + 1 + i // 4) % 4
        prompt = [[0, pointer, *words, 0] for pointer in (clean, other)]
        rows.append((*prompt, words[clean - 1], words[other - 1]))
    return _task(name, rows)


# --------------------------------------------------------------------------------------------- models


def through_q(gated: bool, firm: bool = False) -> Planted:
    """L0H1 writes the pointer to the last position; L1H1 makes its query of it and copies the word there. Its
    score is 8 or, firm, so large that no small change of the query changes anything."""
    w = Writer(2, 3, N_TOKENS, ("pointer", "out", "junk"), gated)
    w.positional(0, 1, LAST, 1, "pointer")
    at = np.zeros((WIDTH, WIDTH))
    for pointer in range(1, 5):
        at[pointer, pointer + 1] = 1.0
    w.head(1, 1, ("pointer", at), ("position", np.eye(N_TOKENS, WIDTH)), "out", FIRM if firm else 8.0)
    _decoys(w, ((0, 0), (0, 2), (1, 0), (1, 2)))
    name = _name("through q, firm" if firm else "through q", gated)
    edges = frozenset({"input->a0.h1<v>", "a0.h1->a1.h1<q>", "a1.h1->logits"})
    blind = ("eap", "eap, denoising", "eap-ig-inputs, 5 steps", "eap-ig-activations, 5 steps",
             "clean-corrupted")  # fmt: skip
    misses = {"information-flow-routes", *(blind if firm else ())}
    return Planted(name, w.config, w.weights, pointer_task(name), edges, (edges,), frozenset(misses))


def through_v(gated: bool) -> Planted:
    """L0H1 copies the third word to the fifth position, L1H0 copies that to the last. L1H1 copies the word
    that always stood at the fifth position."""
    w = Writer(2, 3, N_TOKENS, ("carry", "out", "junk"), gated)
    w.positional(0, 1, 4, 2, "carry")
    w.positional(1, 0, LAST, 4, "out")
    read_values(w, 1, 0, "carry")
    w.positional(1, 1, LAST, 4, "out", 0.25)
    _decoys(w, ((0, 0), (0, 2), (1, 2)))
    name = _name("through v", gated)
    edges = frozenset({"input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"})
    task = copy_task(name, N_TOKENS, 2)
    return Planted(name, w.config, w.weights, task, edges, (edges,), frozenset({"information-flow-routes"}))


def decoy(gated: bool) -> Planted:
    """L0H1 copies the third word. L0H2 does the same 32 times as loudly, to where nobody reads. L0H0 writes
    1/4 or 7/4, by the parity of the third word, which the MLP maps to one number (it rises, is flat from 3/4
    to 5/4, and falls): a slope without an effect."""
    w = Writer(1, 3, N_TOKENS, ("out", "level", "junk"), gated, d_mlp=3)
    w.positional(0, 1, LAST, 2, "out")
    w.positional(0, 2, LAST, 2, "junk", 32.0)
    level_head(w, 0, 0, 2, np.where(np.arange(WIDTH) % 2, 0.25, 1.75), "level")
    name = _name("decoys", gated)
    task = _parity_task(name)
    units(w, 0, "level", ((0.0, 1.0), (0.75, -1.0), (1.25, -1.0)), "out", 1)
    w.weights["lm_head.weight"][1::2, w.slots["out"].start] += 64.0  # of all odd words: of every answer
    edges = frozenset({"input->a0.h1<v>", "a0.h1->logits"})
    misled = {"eap", "eap, denoising", "eap-ig-inputs, 5 steps", "eap-ig-activations, 5 steps",
              "information-flow-routes"}  # fmt: skip
    return Planted(name, w.config, w.weights, task, edges, (edges,), frozenset(misled))


def redundant(gated: bool) -> Planted:
    """L0H1 and L1H0 both write 3/2 for the third word if it is odd, of which the last MLP passes
    min(x, 3/4): one of them is enough, and with both a little less of either changes nothing. The corrupted
    word is even: there they write nothing."""
    w = Writer(2, 3, N_TOKENS, ("sum", "out", "junk"), gated, d_mlp=2 * WIDTH)
    for layer, head in ((0, 1), (1, 0)):
        w.positional(layer, head, LAST, 2, "sum", 1.5)
        read_values(w, layer, head, "token", np.diag(np.arange(WIDTH) % 2.0))
    units(w, 1, "sum", ((-0.25, 1.0), (0.75, -1.0)), "out", WIDTH)
    _decoys(w, ((0, 0), (0, 2), (1, 1), (1, 2)))
    name = _name("redundant pair", gated)
    pairs = [frozenset({f"input->{head}<v>", f"{head}->m1", "m1->logits"}) for head in ("a0.h1", "a1.h0")]
    return Planted(
        name, w.config, w.weights, _parity_task(name), pairs[0] | pairs[1], tuple(pairs),
        frozenset({"eap", "exact", "information-flow-routes"}),
    )  # fmt: skip


def _decoys(w: Writer, heads: Sequence[tuple[int, int]]) -> None:
    for seed, (layer, head) in enumerate(heads):
        w.decoy(layer, head, seed)


def _parity_task(name: str) -> Task:
    """Random words; the answer is the third one, which is odd and even in the corrupted prompt."""
    rng, rows = np.random.default_rng(2), []
    for _ in range(N_PROMPTS):
        words = _random_words(rng, 15)
        odd, even = (next(word for word in words if word % 2 == rest) for rest in (1, 0))
        others = [word for word in words if word not in (odd, even)][: N_TOKENS - 2]
        prompts = [[0, others[0], third, *others[1:]] for third in (odd, even)]
        rows.append((*prompts, odd, even))
    return _task(name, rows)


@cache
def all_planted() -> tuple[Planted, ...]:
    """Every circuit, dense and gated."""
    return tuple(
        case
        for gated in (False, True)
        for case in (
            through_q(gated),
            through_q(gated, firm=True),
            through_v(gated),
            decoy(gated),
            redundant(gated),
        )
    )


@cache
def _scores(name: str, question: str, gate: str) -> Array:
    case = next(case for case in all_planted() if case.name == name)
    return comp.edge_scores(case.config, case.weights, case.task, gate=gate, **QUESTIONS[question])


# ---------------------------------------------------------------------------------------------- the table


def main() -> None:
    """Print precision / recall of every method."""
    print(f"| circuit | {' | '.join(QUESTIONS)} |")
    print("|---" * (1 + len(QUESTIONS)) + "|")
    for case in all_planted():
        cells = []
        for question in QUESTIONS:
            precision, recall = case.precision_recall(case.scores(question))
            cells.append(f"{precision:.2f} / {recall:.2f}" + " *" * (question in case.misses))
        print(f"| {case.name} | {' | '.join(cells)} |")
    print("\n*: cannot see it")


if __name__ == "__main__":
    main()
