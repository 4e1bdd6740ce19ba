"""Tables whose texts may be of any kind: tokens, labels, names, paths.

pandas keeps text by Arrow where it is installed, and Arrow refuses halves of surrogate pairs, which tokens
and names of files may have. The text columns made here are kept by Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def text_column(values: Iterable[str]) -> pd.Series:
    """A text column whose type does not depend on whether it is empty."""
    import pandas as pd

    column: pd.Series = pd.Series(list(values), dtype=_text_type())
    return column


def text_table(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> pd.DataFrame:
    """The DataFrame that pandas makes of columns, or of rows; names: of all columns of rows, in order."""
    import pandas as pd

    if not isinstance(data, Mapping):
        given = dict.fromkeys(name for row in data for name in row) if names is None else names
        data = {name: [row.get(name, np.nan) for row in data] for name in given}
    n = next((len(v) for v in data.values() if hasattr(v, "__len__") and not isinstance(v, str)), 1)
    table: pd.DataFrame = pd.DataFrame({name: _kept(repeated(value, n)) for name, value in data.items()})
    return table


def repeated(value: Any, n: int) -> Any:
    """A value for all of n rows of a table: a text as a column of it."""
    return text_column([value] * n).array if isinstance(value, str) else value


def _kept(values: Any) -> Any:
    """A text column of values that pandas would take for one, else the values."""
    import pandas as pd

    dtype = _text_type()
    if not isinstance(dtype, pd.StringDtype) or isinstance(values, pd.Series):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        return values
    if not isinstance(values, (list, tuple, np.ndarray)):
        return values
    found = list(values)
    texts = sum(isinstance(value, str) for value in found)
    if not texts or texts + sum(_is_missing(value) for value in found) < len(found):
        return values
    return pd.Series(found, dtype=dtype).array


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _text_type() -> Any:
    """What pandas makes of `str`, but kept by Python."""
    import pandas as pd

    dtype: Any = pd.Series([], dtype=str).dtype
    return pd.StringDtype("python", na_value=np.nan) if isinstance(dtype, pd.StringDtype) else dtype
