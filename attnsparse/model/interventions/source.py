"""What replaces ablated items: zero, means over reference prompts, or the values of paired ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...items import Edge, Mlp, Resid
from ..batch import as_batch
from ..run import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from .compile import Ablation, Item, Places


class Source:
    """What replaces ablated items."""

    def __init__(self, places: Places, ablation: Ablation, items: Sequence[Item]) -> None:
        self.places, self.kind = places, ablation.ablation
        if self.kind == "zero":
            if any(isinstance(item, Resid) for item in items):
                raise ValueError(
                    "the residual stream has no zero ablation: it would delete the model; patch it"
                )
            return
        model = places.model
        self.batch = as_batch(model, _prompts(ablation.reference), places.batch.prepend_bos)
        self._check_lengths()
        names = {"z"} | {"mlp_out" for item in items if isinstance(item, Mlp)}
        names |= {"qkv", "pattern"} if any(isinstance(item, Edge) for item in items) else set()
        names |= {_resid_name(item.point) for item in items if isinstance(item, Resid)}
        self.run = model._core.run(self.batch.tokens, self.batch.offsets, tuple(names), 0, DEFAULT_MAX_BYTES)
        self.entries = self.run.mean_entries() if "pattern" in names and self.kind == "mean" else None

    def _check_lengths(self) -> None:
        """Texts that are still to be generated have no length: see `_reach`."""
        places, lengths = self.places, self.batch.lengths.tolist()
        shown = shown_lengths(places.batch.lengths.tolist())
        of_prompts = places.lengths if places.n_new == 0 else lengths
        if self.kind == "counterfactual" and (
            len(lengths) != len(places.lengths) or (not places.n_new and lengths != places.lengths)
        ):
            raise ValueError(
                f"counterfactual ablation needs one reference prompt of the same length for each prompt: "
                f"prompts have {shown} tokens, the reference {shown_lengths(lengths)}"
            )
        if self.kind == "mean" and {*lengths, *of_prompts} != {lengths[0]}:
            raise ValueError(
                f"means are taken per position, so all prompts must have one length: prompts have "
                f"{shown} tokens, the reference {shown_lengths(lengths)}"
            )

    def _reach(self, prompt: int, n: int) -> int:
        """n, if the reference has so many positions; ValueError else."""
        found = int(self.batch.lengths[prompt if self.kind == "counterfactual" else 0])
        if found < n:
            raise ValueError(
                f"{self.kind} ablation at position {n - 1} of prompt {prompt} with its new tokens needs "
                f"reference prompts of at least {n} tokens, got {found}"
            )
        return n

    def _rows(self, array: np.ndarray, prompt: int, n: int) -> np.ndarray:
        """[N, ...] -> [n, ...]: the first positions of the paired prompt, or the mean over prompts."""
        self._reach(prompt, n)
        if self.kind == "counterfactual":
            return array[self.batch.offsets[prompt] : self.batch.offsets[prompt] + n]
        means: np.ndarray = array.reshape(len(self.batch), -1, *array.shape[1:])[:, :n].mean(
            axis=0, dtype=np.float64
        )
        return means

    def z(self, prompt: int, layer: int, head: int, n: int) -> np.ndarray:
        """[n, D]"""
        if self.kind == "zero":
            return np.zeros((n, self.places.widths["head"]))
        return self._rows(self.run.array("z")[layer, :, head], prompt, n)

    def mlp(self, prompt: int, layer: int, n: int) -> np.ndarray:
        """[n, E]"""
        if self.kind == "zero":
            return np.zeros((n, self.places.widths["mlp"]))
        return self._rows(self.run.array("mlp_out")[layer], prompt, n)

    def resid(self, prompt: int, point: str, layer: int, n: int) -> np.ndarray:
        """[n, E]"""
        return self._rows(self.run.array(_resid_name(point))[layer + (point == "post")], prompt, n)

    def edges(self, prompt: int, chosen: np.ndarray) -> np.ndarray:
        """Contributions [n, D] of edges [n, 4]."""
        if self.kind == "zero":
            return np.zeros(self.places.widths["edge"])
        layer, head, query, key = chosen.T
        self._reach(prompt, int(query.max()) + 1)
        if self.entries is not None:
            means: np.ndarray = self.entries[layer, head, query, key]
            return means
        config, length = self.places.model.config, int(self.batch.lengths[prompt])
        squares = config.n_layer * config.n_head * self.batch.squares[prompt]
        size = config.n_layer * config.n_head * length * length
        pattern = self.run.array("pattern")[squares : squares + size]
        pattern = pattern.reshape(config.n_layer, config.n_head, length, length)
        values = self.run.array("qkv")[:, self.batch.offsets[prompt] :, 2]
        found: np.ndarray = pattern[layer, head, query, key][:, None] * values[layer, key, head]
        return found


def _prompts(reference: Any) -> Any:
    """The prompts of a Task, or what was given."""
    prompts = getattr(reference, "clean", reference)
    if not isinstance(prompts, Iterable):
        raise TypeError(f"reference must be a Task or a list of prompts, got {type(reference).__name__}")
    return prompts


def _resid_name(point: str) -> str:
    return "resid_mid" if point == "mid" else "resid"


def shown_lengths(lengths: Sequence[object]) -> str:
    return ", ".join(map(str, lengths[:6])) + (", ..." if len(lengths) > 6 else "")
