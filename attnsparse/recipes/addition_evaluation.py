"""A model of two-digit addition on all 10,000 sums: how many it adds rightly, and with which edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..model.evaluation import token_losses
from ..tasks import addition
from ..tasks.addition import DENSE_THRESHOLD

if TYPE_CHECKING:
    from ..model.config import Config
    from ..model.model import Model

_BATCH = 500


@dataclass(frozen=True)
class AdditionEvaluation:
    """A model on all 10,000 sums. An edge is an entry of the pattern above the threshold.

    right (10000,): all four predicted tokens are the most likely ones, given the true answer so far; for an
    answer that is right throughout this is the same as writing it out greedily. cross_entropy: nats per
    predicted token. n_edges (10000,). With and without a carry out of the ones column: the fraction of sums
    in which an edge is there, (L, H, T, T) [layer, head, query, key].
    """

    right: NDArray[np.bool_]
    cross_entropy: float
    n_edges: NDArray[np.int64]
    with_carry: NDArray[np.float64]
    without_carry: NDArray[np.float64]

    @property
    def used(self) -> NDArray[np.bool_]:
        """(L, H, T, T): edges that are there in at least one sum."""
        return (self.with_carry > 0) | (self.without_carry > 0)

    @property
    def n_heads_used(self) -> int:
        """Heads with an edge in at least one sum."""
        return int(self.used.any(axis=(2, 3)).sum())


class Facts(TypedDict):
    """What the card of an addition model gives, as plain numbers."""

    model: str
    sums: int
    right: int
    held_out: int
    held_out_right: int
    cross_entropy: float
    edge_is: str
    edges_median: float
    edges_max: int
    edges_possible: int
    heads_used: int
    heads: int
    parameters: int
    digest: str


def edge_threshold(model: Model) -> float:
    """The weight above which an entry counts as an edge: 0, the open gates, for a sparse model."""
    return 0.0 if model.config.gated else DENSE_THRESHOLD


def evaluate(model: Model, threshold: float) -> AdditionEvaluation:
    """Run `model` on every sum; threshold 0 counts the open gates of a sparse model."""
    a, b = addition.all_sums()
    tokens, carry = addition.sequences(a, b), ones_carry(a, b)
    right, losses, n_edges = [], [], []
    edges: list[NDArray[np.int64]] = []  # per batch: [without, with a carry] x (L, H, T, T)
    for begin in range(0, len(tokens), _BATCH):
        batch, carries = tokens[begin : begin + _BATCH], carry[begin : begin + _BATCH]
        run = model.run(list(batch), record=("pattern", "logits"))
        logits, targets = run.logits[:, addition.PREDICTING], batch[:, addition.PREDICTED]
        right.append((logits.argmax(axis=2) == targets).all(axis=1))
        losses.append(token_losses(logits, targets))
        is_edge = run.pattern > threshold
        n_edges.append(np.count_nonzero(is_edge, axis=(1, 2, 3, 4)))
        edges.append(np.stack([is_edge[~carries].sum(axis=0), is_edge[carries].sum(axis=0)]))
    without_carry, with_carry = np.sum(edges, axis=0)
    return AdditionEvaluation(
        right=np.concatenate(right),
        cross_entropy=float(np.concatenate(losses).mean()),
        n_edges=np.concatenate(n_edges),
        with_carry=with_carry / np.count_nonzero(carry),
        without_carry=without_carry / np.count_nonzero(~carry),
    )


def ones_carry(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether the ones of a + b carry into the tens, (N)."""
    return np.asarray(a % 10 + b % 10 > 9)


def possible_edges(config: Config) -> int:
    """Entries of all causal patterns of a sum."""
    return config.n_layer * config.n_head * addition.N_TOKENS * (addition.N_TOKENS + 1) // 2


def facts(model: Model, found: AdditionEvaluation, held_out: NDArray[np.integer]) -> Facts:
    """What the card gives of a finished model. held_out: numbers 100 a + b of the sums not trained on."""
    config = model.config
    return {
        "model": model.name,
        "sums": len(found.right),
        "right": int(found.right.sum()),
        "held_out": len(held_out),
        "held_out_right": int(found.right[held_out].sum()),
        "cross_entropy": float(found.cross_entropy),
        "edge_is": "open gate" if config.gated else f"entry above {DENSE_THRESHOLD:g}",
        "edges_median": float(np.median(found.n_edges)),
        "edges_max": int(found.n_edges.max()),
        "edges_possible": possible_edges(config),
        "heads_used": found.n_heads_used,
        "heads": config.n_layer * config.n_head,
        "parameters": config.n_parameters(),
        "digest": model.digest,
    }


def summary(facts: Facts) -> str:
    """One line about a finished model."""
    return (
        f"{facts['model']}: {facts['right']:,} of {facts['sums']:,} sums right "
        f"({facts['held_out_right']:,} of {facts['held_out']:,} held out), cross-entropy "
        f"{facts['cross_entropy']:.2g}, edges {facts['edges_median']:g} (most {facts['edges_max']}) "
        f"of {facts['edges_possible']:,}"
    )
