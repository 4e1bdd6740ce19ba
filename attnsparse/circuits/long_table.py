"""Several circuits as one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .. import _check
from .circuit import Circuit
from .circuit_tables import origin

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("summary", "items", "curve")
_DIFFERING = ("task", "unit", "method", "ablation", "normalize", "metric")
_POSITIONS = ("position", "query_position", "key_position")


def table(
    circuits: Circuit | Iterable[Circuit] | Mapping[str, Circuit],
    of: str = "summary",
    *,
    fraction: float = 0.9,
) -> pd.DataFrame:
    """One long table of several circuits.

    Parameters
    ----------
    circuits : Circuit, iterable of Circuit, or mapping of str to Circuit
        The names of a mapping become the column circuit.
    of : {"summary", "items", "curve"}, default "summary"
        One row for each circuit, for each of its items, or for each size of its curve.
    fraction : float, default 0.9
        For "summary": as in `Circuit.needed`.

    Returns
    -------
    pandas.DataFrame
        Columns circuit (of a mapping), model, and of task, unit, method, ablation, normalize and metric those
        in which the circuits differ; then those of `Circuit.summary`, `Circuit.to_pandas` or `Circuit.curve`.
        A position that an item does not have is missing (<NA>).

    Raises
    ------
    TypeError
        If something is not a circuit.
    ValueError
        For no circuit, another `of` or fraction.
    """
    import pandas as pd

    of, fraction = _check.choice(of, "of", TABLES), _check.fraction(fraction)
    names, found = _listed(circuits)
    origins = [origin(circuit) for circuit in found]
    shown = ["model", *(name for name in _DIFFERING if len({each[name] for each in origins}) > 1)]
    parts = []
    for i, circuit in enumerate(found):
        if of == "summary":
            part = circuit.summary(fraction)
        else:
            part = circuit.to_pandas() if of == "items" else circuit.curve()
            part = part.astype({name: "Int64" for name in _POSITIONS if name in part})
            for at, name in enumerate(shown):
                part.insert(at, name, origins[i][name])
        if names is not None:
            part.insert(0, "circuit", names[i])
        part.attrs = {}
        parts.append(part)
    joined: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return joined


def _listed(
    circuits: Circuit | Iterable[Circuit] | Mapping[str, Circuit],
) -> tuple[list[str] | None, list[Circuit]]:
    """Names, if there are any, and circuits."""
    names = [str(name) for name in circuits] if isinstance(circuits, Mapping) else None
    if isinstance(circuits, Circuit):
        return None, [circuits]
    if not isinstance(circuits, Iterable):
        raise TypeError(f"circuits must be a Circuit or several, got {type(circuits).__name__}")
    found = list(circuits.values() if isinstance(circuits, Mapping) else circuits)
    if not found:
        raise ValueError("circuits must be a Circuit or several, got none")
    return names, [_check.instance(circuit, Circuit, "circuits") for circuit in found]
