"""What `Model.run` ablates or patches: heads, heads at positions, attention edges, MLPs, the residual stream.

    model.run(prompt, ablate=["L9H6"])                                       # zero ablation
    model.run(prompt, ablate=Ablation(["a9.h6[4->7]"], "mean", prompts))     # mean over reference prompts
    model.run(prompt, ablate=Ablation(heads, keep_only=True))                # knock out all other heads
    model.run(prompt, ablate=[Ablation("L9H6"), Ablation(others, "mean", prompts)])   # several kinds
    model.run(prompt, patch={HeadPosition(9, 6, 7): values})                 # values from anywhere
    model.run(prompt, patch={Resid(5, -1): Add(direction)})                  # a steering vector

Ablating a head replaces its z; ablating an attention edge replaces its contribution A[query, key] v[key] to z
of the query, while the rest of the row stays as it is (rows are never renormalised); ablating an MLP replaces
its output. Later layers see the change. `circuits.effects` does the same for many items at once, each alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ... import _check
from ..._core_types import Interventions
from ...items import Edge, Head, HeadPosition, Mlp, Resid
from ..batch import Batch
from ..run import DEFAULT_MAX_BYTES
from .source import Source, shown_lengths

if TYPE_CHECKING:
    from ..model import Model

ABLATIONS = ("zero", "mean", "counterfactual")
"""What ablated items are replaced by."""
POINTS = ("pre", "mid", "post")
_MOST_ENTRIES = 50_000_000


Item: TypeAlias = "Head | HeadPosition | Edge | Mlp | Resid"
ItemLike: TypeAlias = "Item | str | tuple[int, int] | tuple[int, int, int, int]"
Items: TypeAlias = "Item | str | Iterable[ItemLike]"
Ablate: TypeAlias = "Items | Ablation | Iterable[ItemLike | Ablation]"
Patch: TypeAlias = "Mapping[Any, Any]"


@dataclass(frozen=True)
class Ablation:
    """Items to ablate in a run, and what takes their place.

    Parameters
    ----------
    items : item or sequence of items
        Head ("L9H6", (9, 6)), HeadPosition, Edge ("a9.h6[5->8]", (9, 6, 8, 5)), Mlp, or Resid (not with
        "zero").
    ablation : {"zero", "mean", "counterfactual"}
        "mean": per position over the `reference` prompts, which all have the length of the prompts that are
        run; "counterfactual": the value in the `reference` prompt of the same number.
    reference : Task or list of prompts, optional
        Needed unless `ablation` is "zero".
    keep_only : bool, default False
        The items stay, and everything else of their kind (all heads, heads at all positions, or all edges)
        is ablated instead. Entries of a gated model that are closed in all prompts of the run are no edges:
        they contribute nothing, whatever the reference.

    Raises
    ------
    ValueError
        For another `ablation`, or a reference that is missing or not used.
    """

    items: Items
    ablation: str = "zero"
    reference: Any = None
    keep_only: bool = False

    def __post_init__(self) -> None:
        _check.choice(self.ablation, "ablation", ABLATIONS)
        _check.flag(self.keep_only, "keep_only")
        if (self.ablation == "zero") != (self.reference is None):
            need = "takes no reference prompts" if self.ablation == "zero" else "needs reference prompts"
            raise ValueError(f"ablation by {self.ablation} {need}")
        if isinstance(self.reference, Iterator):  # it is read for every run
            object.__setattr__(self, "reference", tuple(self.reference))


@dataclass(frozen=True, eq=False)
class Add:
    """Values of `patch=` that are added to an activation instead of taking its place: steering vectors.

    Parameters
    ----------
    values : array
        In the shape that `patch=` takes for the item; for an item at all positions also one vector, which is
        added at each. Not for attention edges.
    """

    values: Any


def compile_interventions(
    model: Model,
    batch: Batch,
    ablate: Ablate | None,
    patch: Patch | None,
    n_new: int = 0,
    n_samples: int = 1,
) -> Interventions | None:
    """What the core takes for `Model.run(ablate=, patch=)`, or None if there is nothing to do.

    n_new, n_samples: of `Model.generate`, the tokens that each prompt will get and the texts of each prompt.
    """
    if ablate is None and patch is None:
        return None
    places = Places(model, batch, n_new, n_samples)
    if ablate is not None:
        for ablation in _ablations(ablate):
            _add_ablation(places, ablation)
    if patch is not None:
        if not isinstance(patch, Mapping):
            raise TypeError(f"patch must be a mapping from items to arrays, got {type(patch).__name__}")
        for item, values in patch.items():
            _add_patch(places, _parse(item), values)
    return places.arrays()


def _ablations(ablate: Ablate) -> list[Ablation]:
    """In their order; items beside Ablations are zeroed."""
    if isinstance(ablate, Ablation):
        return [ablate]
    found: list[Ablation] = []
    for item in _as_list(ablate):
        found.append(item if isinstance(item, Ablation) else Ablation([item]))
    return found


def _as_list(items: Ablate) -> list[Any]:
    if isinstance(items, str | Head | HeadPosition | Edge | Mlp | Resid):
        return [items]
    if isinstance(items, Mapping):
        raise TypeError("ablate takes items; a mapping from items to values goes to patch=")
    if not isinstance(items, Iterable):
        raise TypeError(f"ablate must be items or an Ablation, got {type(items).__name__}")
    return list(items)


def _parse(item: Any) -> Item:
    """An item in any of its forms."""
    if isinstance(item, Head | HeadPosition | Edge | Mlp | Resid):
        return item
    if isinstance(item, str):
        return Edge.parse(item) if "[" in item else _parse_head(item)
    if isinstance(item, tuple | list) and len(item) in (2, 4):
        return Head.parse(item) if len(item) == 2 else Edge.parse(item)
    raise TypeError(
        f"an item must be a Head, HeadPosition, Edge, Mlp or Resid, or text such as 'L9H6', got {item!r:.60}"
    )


def _parse_head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise ValueError(f"{error}; an MLP is asp.Mlp(3), not text") from None


# ------------------------------------------------------------------------------------------- places


class Places:
    """Places and values of one batch, as they are collected."""

    def __init__(self, model: Model, batch: Batch, n_new: int, n_samples: int) -> None:
        config = model.config
        self.model, self.batch, self.n_new, self.n_samples = model, batch, n_new, n_samples
        self.lengths = (batch.lengths + n_new).tolist()
        self.rows: dict[str, list[Any]] = {name: [] for name in ("head", "edge", "mlp", "resid")}
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in self.rows}
        self.added: dict[str, list[np.ndarray]] = {name: [] for name in self.rows}
        self.widths = {
            "head": config.d_head,
            "edge": config.d_head,
            "mlp": config.d_model,
            "resid": config.d_model,
        }
        self.columns = {"head": 4, "edge": 5, "mlp": 3, "resid": 4}
        self.prompt_column = {"head": 1, "edge": 1, "mlp": 1, "resid": 2}

    def add(self, kind: str, rows: Any, values: np.ndarray, added: bool = False) -> None:
        """rows [n, columns]; values [n, width] or [width] for all; added: to what is there."""
        rows = np.asarray(rows, np.int64).reshape(-1, self.columns[kind])
        self.rows[kind].append(rows)
        self.values[kind].append(np.broadcast_to(values, (len(rows), self.widths[kind])))
        self.added[kind].append(np.full(len(rows), added))

    def arrays(self) -> Interventions:
        found: list[np.ndarray] = []
        for kind, columns in self.columns.items():
            rows = np.concatenate([np.zeros((0, columns), np.int64), *self.rows[kind]])
            values = np.concatenate([np.zeros((0, self.widths[kind])), *self.values[kind]]).astype(
                self.model.dtype
            )
            if kind == "edge":  # each once: the last one given counts
                _, first = np.unique(rows[::-1], axis=0, return_index=True)
                keep = np.sort(len(rows) - 1 - first)
                rows, values = rows[keep], values[keep]
            if self.n_samples > 1:
                rows, values = (np.repeat(array, self.n_samples, axis=0) for array in (rows, values))
                at, sample = self.prompt_column[kind], np.arange(len(rows)) % self.n_samples
                rows[:, at] = rows[:, at] * self.n_samples + sample
            found += [np.ascontiguousarray(rows), np.ascontiguousarray(values)]
        added = [np.concatenate([np.zeros(0, bool), *self.added[kind]]) for kind in ("head", "mlp", "resid")]
        return Interventions(*found, *(np.repeat(flags, self.n_samples) for flags in added))

    def head(self, item: Head | HeadPosition | Edge) -> tuple[int, int]:
        config = self.model.config
        layer, head = Head(item.layer, item.head).within(config.n_layer, config.n_head)
        return layer, head

    def layer(self, layer: object) -> int:
        return _check.layer(layer, self.model.config.n_layer)

    def positions(self, prompt: int, position: object) -> list[int]:
        """The one position, or all for None."""
        return list(range(self.lengths[prompt])) if position is None else [self.position(prompt, position)]

    def position(self, prompt: int, position: object) -> int:
        return place_of(self.batch, prompt, position, self.n_new)


def place_of(batch: Batch, prompt: int, position: object, n_new: int) -> int:
    """Negative positions count from the end of the prompt, whatever is generated behind it."""
    n, index = int(batch.lengths[prompt]), _check.integer(position, "position")
    if not -n <= index < n + n_new:
        more = f" and gets {n_new}" if n_new else ""
        raise IndexError(f"position {index} is out of range: prompt {prompt} has {n} tokens{more}")
    return index + n if index < 0 else index


def _point(item: Resid) -> tuple[int, int]:
    """(half, layer) as the core counts: half 0 before layer 0..L, half 1 in the middle of a layer."""
    _check.choice(item.point, "point", POINTS)
    return (1, item.layer) if item.point == "mid" else (0, item.layer + (item.point == "post"))


# ------------------------------------------------------------------------------------------- ablations


def _add_ablation(places: Places, ablation: Ablation) -> None:
    items = [_parse(item) for item in _as_list(ablation.items)]
    if ablation.keep_only:
        items = _complement(places, items)
    source = Source(places, ablation, items)
    for prompt, length in enumerate(places.lengths):
        edges = [item for item in items if isinstance(item, Edge)]
        if edges:
            chosen = np.array([item.within(*_heads(places), length) for item in edges], np.int64)
            values = source.edges(prompt, chosen)
            if ablation.keep_only and ablation.ablation != "zero":
                values = values * ~_closed(places)[tuple(chosen.T)][:, None]
            places.add("edge", np.insert(chosen, 1, prompt, axis=1), values)
        for item in items:
            if isinstance(item, Head):
                layer, head = places.head(item)
                rows: list[tuple[int, ...]] = [(layer, prompt, head, at) for at in range(length)]
                places.add("head", rows, source.z(prompt, layer, head, length))
            elif isinstance(item, HeadPosition):
                (layer, head), position = places.head(item), places.position(prompt, item.position)
                places.add(
                    "head", [(layer, prompt, head, position)], source.z(prompt, layer, head, position + 1)[-1]
                )
            elif isinstance(item, Mlp):
                layer, positions = places.layer(item.layer), places.positions(prompt, item.position)
                rows = [(layer, prompt, at) for at in positions]
                places.add("mlp", rows, source.mlp(prompt, layer, positions[-1] + 1)[positions])
            elif isinstance(item, Resid):
                layer, positions = places.layer(item.layer), places.positions(prompt, item.position)
                rows = [(*_point(item), prompt, at) for at in positions]
                places.add(
                    "resid", rows, source.resid(prompt, item.point, layer, positions[-1] + 1)[positions]
                )


def _heads(places: Places) -> tuple[int, int]:
    return places.model.config.n_layer, places.model.config.n_head


def _closed(places: Places) -> np.ndarray:
    """Entries whose gates are closed in all prompts, bool [L, H, query, key]: they contribute nothing."""
    config, length = places.model.config, places.lengths[0]
    if not config.gated:
        return np.zeros((config.n_layer, config.n_head, length, length), bool)
    if places.n_new:
        raise ValueError(
            "keep_only of edges by means or counterfactuals leaves out edges whose gates are closed, and "
            "which these are is not known before a text is generated; ablate to zero"
        )
    batch = places.batch
    run = places.model._core.run(batch.tokens, batch.offsets, ("gate",), 0, DEFAULT_MAX_BYTES)
    gates = run.array("gate").reshape(len(batch), config.n_layer, config.n_head, length, length)
    closed: np.ndarray = np.logical_not(gates.any(axis=0))
    return closed


def _complement(places: Places, items: list[Item]) -> list[Item]:
    """All heads, heads at positions, or edges that are not listed."""
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds <= {Head, HeadPosition, Edge}:
        raise ValueError("keep_only needs items of one kind: heads, heads at positions, or attention edges")
    kind, (n_layer, n_head) = kinds.pop(), _heads(places)
    every = [Head(layer, head) for layer in range(n_layer) for head in range(n_head)]
    if kind is Head:
        kept = {Head(*places.head(item)) for item in items if isinstance(item, Head)}
        return [head for head in every if head not in kept]
    if len(set(places.lengths)) > 1:
        raise ValueError("keep_only by position needs prompts of one length")
    length = int(places.lengths[0])
    if kind is HeadPosition:
        at: set[tuple[int, ...]] = {
            (*places.head(item), places.position(0, item.position))
            for item in items
            if isinstance(item, HeadPosition)
        }
        return [HeadPosition(*head, p) for head in every for p in range(length) if (*head, p) not in at]
    if len(every) * length * (length + 1) // 2 * len(places.lengths) > _MOST_ENTRIES:
        raise MemoryError(
            f"keep_only of edges would list more than {_MOST_ENTRIES:,} entries; use circuits.keep_only"
        )
    edges = {item.within(n_layer, n_head, length) for item in items if isinstance(item, Edge)}
    return [
        Edge(*head, q, k)
        for head in every
        for q in range(length)
        for k in range(q + 1)
        if Edge(*head, q, k) not in edges
    ]


# ------------------------------------------------------------------------------------------- patches


def _add_patch(places: Places, item: Item, values: Any) -> None:
    """Values for an item, the same for every prompt or one for each."""
    found = [_patched(places, item, prompt) for prompt in range(len(places.lengths))]
    added = isinstance(values, Add)
    if added and isinstance(item, Edge):
        raise TypeError(
            f"nothing can be added to {item.label}; patch what the edge contributes, or add to its head"
        )
    values, shapes = values.values if isinstance(values, Add) else values, [shape for _, _, shape in found]
    if added and np.shape(values) == shapes[0][-1:]:  # one vector for all positions
        values = [np.broadcast_to(values, shape) for shape in shapes]
    arrays = _per_prompt(item, values, shapes, places.model.dtype)
    for (kind, rows, _), array in zip(found, arrays, strict=True):
        places.add(kind, rows, array, added)


def _patched(places: Places, item: Item, prompt: int) -> tuple[str, list[tuple[int, ...]], tuple[int, ...]]:
    """(kind, rows, shape of the values) of an item in one prompt."""
    length = places.lengths[prompt]
    if isinstance(item, Edge):
        edge = item.within(*_heads(places), length)
        return "edge", [(edge.layer, prompt, edge.head, edge.query, edge.key)], (places.widths["edge"],)
    position = None if isinstance(item, Head) else item.position
    positions = places.positions(prompt, position)
    rows: list[tuple[int, ...]]
    if isinstance(item, Head | HeadPosition):
        layer, head = places.head(item)
        kind, rows = "head", [(layer, prompt, head, at) for at in positions]
    elif isinstance(item, Mlp):
        kind, rows = "mlp", [(places.layer(item.layer), prompt, at) for at in positions]
    else:
        places.layer(item.layer)
        kind, rows = "resid", [(*_point(item), prompt, at) for at in positions]
    width = places.widths[kind]
    return kind, rows, (length, width) if position is None else (width,)


def _per_prompt(item: Item, values: Any, shapes: list[tuple[int, ...]], dtype: Any) -> Sequence[np.ndarray]:
    """The values of each prompt: one array for all, or one for each."""
    name, n = f"patch[{item!r:.60}]", len(shapes)
    if isinstance(values, list | tuple) and len(values) == n and [*map(np.shape, values)] == shapes:
        return [_check.reals(value, name, dtype) for value in values]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"patch of {item}: prompts of several lengths need a list of {n} arrays, one for each prompt, of "
            f"shapes {shown_lengths(shapes)}"
        )
    array = _check.reals(values, name, dtype)
    if array.shape == shapes[0]:
        return [array] * n
    if array.shape == (n, *shapes[0]):
        return list(array)
    each = f", or {(n, *shapes[0])} for one value per prompt" if n > 1 else ""
    raise ValueError(f"patch of {item} must have shape {shapes[0]}{each}, got {array.shape}")
