"""Several circuits, or what was measured of component edges, as one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _check
from .._tables import repeated
from .circuit import Circuit
from .circuit_tables import origin
from .components.acdc import AcdcSweep
from .components.circuit import ComponentCircuit
from .components.curve import ComponentCurve
from .components.nodes import NodeCircuit, NodeCurve
from .components.patching import PatchingSweep
from .components.paths import PathPatch
from .components.scores import ComponentScores

if TYPE_CHECKING:
    import pandas as pd

OfComponents: TypeAlias = (
    "ComponentCircuit | NodeCircuit | ComponentScores | ComponentCurve | NodeCurve | AcdcSweep | "
    "PatchingSweep | PathPatch"
)
One: TypeAlias = "Circuit | OfComponents"

TABLES = ("summary", "items", "curve")
_OF_COMPONENTS = (
    ComponentCircuit,
    NodeCircuit,
    ComponentScores,
    ComponentCurve,
    NodeCurve,
    AcdcSweep,
    PatchingSweep,
    PathPatch,
)
_DIFFERING: tuple[str, ...] = ("task", "unit", "method", "ablation", "normalize", "metric")
_OF_COMPONENTS_DIFFERING = (
    "task",
    "level",
    "method",
    "select",
    "rank_by",
    "ablation",
    "direction",
    "gate",
    "metric",
)
_POSITIONS = ("position", "query_position", "key_position")


def table(
    circuits: One | Iterable[One] | Mapping[str, One],
    of: str | None = None,
    *,
    fraction: float = 0.9,
) -> pd.DataFrame:
    """One long table of several circuits, or of several results about components, all of one class.

    Parameters
    ----------
    circuits : Circuit, iterable of Circuit, or mapping of str to Circuit
        The names of a mapping become the column circuit. Instead of Circuit: ComponentCircuit, NodeCircuit,
        ComponentScores, ComponentCurve, NodeCurve, AcdcSweep, PatchingSweep or PathPatch.
    of : {"summary", "items", "curve"}, optional
        For Circuit: one row for each circuit (the default), for each of its items, or for each size of its
        curve. The others have one table each.
    fraction : float, default 0.9
        For "summary": as in `Circuit.needed`.

    Returns
    -------
    pandas.DataFrame
        Columns circuit (of a mapping), model, and of task, unit, method, ablation, normalize and metric those
        in which the circuits differ; then those of `Circuit.summary`, `Circuit.to_pandas` or `Circuit.curve`.
        A position that an item does not have is missing (<NA>). For the others, which may also differ in
        level, select, rank_by, direction and gate, then those of their `to_pandas`.

    Raises
    ------
    TypeError
        If something is none of these, or if they are of several classes.
    ValueError
        For no circuit, another `of` or fraction, and for `of` with the others.
    """
    import pandas as pd

    fraction = _check.fraction(fraction)
    names, found = _listed(circuits)
    if isinstance(found[0], Circuit):
        of = _check.choice("summary" if of is None else of, "of", TABLES)
        own = [_of_circuit(one, of, fraction) for one in found]
        origins, possible = [origin(one) for one in found], _DIFFERING
    else:
        if of is not None:
            raise ValueError(
                f"of is for Circuit alone; {type(found[0]).__name__} has one table, got of={of!r:.60}"
            )
        own = [one.to_pandas() for one in found]
        origins, possible = [_origin_of_components(one) for one in found], _OF_COMPONENTS_DIFFERING
    differing = [name for name in possible if len({each.get(name) for each in origins}) > 1]
    shown = ["model", *(name for name in differing if name not in own[0])]
    parts = []
    for i, part in enumerate(own):
        if of != "summary":
            for at, name in enumerate(shown):
                if name not in part:
                    part.insert(at, name, repeated(origins[i].get(name), len(part)))
        if names is not None:
            part.insert(0, "circuit", repeated(names[i], len(part)))
        part.attrs = {}
        parts.append(part)
    joined: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return joined


def _of_circuit(circuit: Circuit, of: str, fraction: float) -> pd.DataFrame:
    if of == "summary":
        return circuit.summary(fraction)
    part = circuit.to_pandas() if of == "items" else circuit.curve()
    table: pd.DataFrame = part.astype({name: "Int64" for name in _POSITIONS if name in part})
    return table


def _origin_of_components(one: OfComponents) -> dict[Any, Any]:
    return {name: getattr(one, name, None) for name in ("model", *_OF_COMPONENTS_DIFFERING)}


def _listed(circuits: One | Iterable[One] | Mapping[str, One]) -> tuple[list[str] | None, list[Any]]:
    """Names, if there are any, and circuits of one class."""
    names = [str(name) for name in circuits] if isinstance(circuits, Mapping) else None
    if isinstance(circuits, (Circuit, *_OF_COMPONENTS)):
        return None, [circuits]
    if not isinstance(circuits, Iterable):
        raise TypeError(f"circuits must be a Circuit or several, got {type(circuits).__name__}")
    found = list(circuits.values() if isinstance(circuits, Mapping) else circuits)
    if not found:
        raise ValueError("circuits must be a Circuit or several, got none")
    kind = next((kind for kind in _OF_COMPONENTS if isinstance(found[0], kind)), Circuit)
    return names, [_check.instance(circuit, kind, "circuits") for circuit in found]
