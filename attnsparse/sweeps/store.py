"""The folder of a sweep: a folder of Parquet files for each table, and what was asked for.

    out/TABLE/model=NAME/task=NAME/KEY-DIGEST.parquet      KEY: the place of the cell; DIGEST: its question
    out/cells/.../KEY-DIGEST.failed.parquet                a cell that failed
    out/plans/DIGEST.json                                  the cells that one call asked for

Each file appears whole or not at all, and that of the table cells is the last one of a cell: with it the cell
is there. A process that is killed leaves at most files of other tables, which the next one writes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FormatError, file_error
from ..io.atomic import write_atomic
from ..io.regular_file import read_small
from ..io.strict_json import parse_object
from .cell import Cell, Failed, Found, cell_key
from .sources import folder_name
from .tables import PARTITIONS, arrow, rows, schema

if TYPE_CHECKING:
    import pandas as pd

_PLANS = "plans"
_ENDING, _FAILED = ".parquet", ".failed.parquet"
_PLAN_VERSION = 1


class Plan(NamedTuple):
    """What one call asks for: names and options, as JSON values."""

    models: list[str]
    tasks: list[str]
    seeds: list[int]
    options: dict[str, Any]

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Model, task and seed of each cell, in order."""
        return ((model, task, seed) for model in self.models for task in self.tasks for seed in self.seeds)

    def keys(self) -> list[str]:
        """The place of each cell."""
        return [cell_key(*cell, self.options) for cell in self.cells()]


class Store:
    """The folder `out`, which need not exist yet."""

    def __init__(self, out: Path) -> None:
        self.out = out

    # --- cells

    def _file(self, table: str, cell: Cell, ending: str = _ENDING) -> Path:
        names = zip(PARTITIONS, (cell.model.name, cell.task_name))
        folders = [f"{part}={folder_name(name)}" for part, name in names]
        return self.out.joinpath(table, *folders, f"{cell.name}{ending}")

    def has(self, cell: Cell) -> bool:
        """Whether the result of a cell is there."""
        return self._file("cells", cell).exists()

    def has_failed(self, cell: Cell) -> bool:
        """Whether it was tried and failed."""
        return self._file("cells", cell, _FAILED).exists()

    def write(self, cell: Cell, result: Found | Failed) -> None:
        """Keep what came of a cell, and forget that the same place failed before."""
        ending = _FAILED if isinstance(result, Failed) else _ENDING
        for table, found in rows(cell, result).items():
            path = self._file(table, cell, ending if table == "cells" else _ENDING)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, [_parquet(found)])
        kept = self._file("cells", cell, ending)
        for other in kept.parent.glob(f"{cell.key}-*{_FAILED}"):
            if other != kept:
                other.unlink(missing_ok=True)

    def places(self, *, failed: bool) -> set[str]:
        """The places of cells that are there, also those that failed if asked for."""
        names = [path.name for path in self.out.glob(f"cells/*/*/*{_ENDING}")]
        return {name.partition("-")[0] for name in names if failed or not name.endswith(_FAILED)}

    def tried(self) -> dict[str, dict[str, Any]]:
        """Place -> state, seconds and error of its cell, for all cells that were tried; a result that is
        there counts, whatever failed at the same place before."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.out.glob(f"cells/*/*/*{_ENDING}")):
            key = path.name.partition("-")[0]
            if found.get(key, {}).get("state") != "done":
                with contextlib.suppress(FileNotFoundError):  # one that failed has been done meanwhile
                    found[key] = _state(path)
        return found

    # --- plans

    def write_plan(self, plan: Plan) -> None:
        """Keep what a call asks for."""
        text = json.dumps({"version": _PLAN_VERSION, **plan._asdict()}, indent=1, ensure_ascii=False).encode()
        folder = self.out / _PLANS
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{hashlib.sha256(text).hexdigest()[:12]}.json", [text])

    def plans(self) -> list[Plan]:
        """All that were kept; FileNotFoundError if there are none, FormatError for another file."""
        files = sorted((self.out / _PLANS).glob("*.json"))
        if not files:
            text = "no sweep in this folder: it has no plans/*.json"
            raise FileNotFoundError(2, text, os.fspath(self.out))
        return [_read_plan(path) for path in files]

    # --- tables

    def read(self, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A whole table, its cells in order of model, task and seed; FileNotFoundError if there is none."""
        folder = self.out / table
        if not folder.is_dir():
            raise FileNotFoundError(2, f"no table {table!r} of a sweep in this folder", os.fspath(self.out))
        pa, data = arrow(), arrow("dataset")
        types = pa.schema([(name, pa.string()) for name in PARTITIONS])
        parts = data.partitioning(types, flavor="hive")
        whole = schema(table, partitions=True)
        files = data.dataset(folder, schema=whole, format="parquet", partitioning=parts)
        names = whole.names if columns is None else [*PARTITIONS, "seed", "cell", *columns]
        found: pd.DataFrame = files.to_table(columns=list(dict.fromkeys(names))).to_pandas(
            types_mapper=_nullable(pa)
        )
        order = [*PARTITIONS, "seed", "cell"]
        ordered: pd.DataFrame = found.sort_values(order, kind="stable", ignore_index=True)
        return ordered


def _state(path: Path) -> dict[str, Any]:
    names = ["state", "seconds", "error"]
    row: dict[str, Any] = arrow("parquet").read_table(path, columns=names, partitioning=None).to_pylist()[0]
    return row


def _nullable(pa: Any) -> Any:
    """Integers stay integers where some are missing."""
    import pandas as pd

    return {pa.int64(): pd.Int64Dtype()}.get


def _parquet(table: Any) -> Any:
    data = arrow().BufferOutputStream()
    arrow("parquet").write_table(table, data, compression="zstd")
    return data.getvalue()


def _read_plan(path: Path) -> Plan:
    data: Mapping[str, Any] = parse_object(read_small(path, "max_index_bytes"), path)
    texts = all(
        isinstance(data.get(name), list) and all(isinstance(one, str) for one in data[name])
        for name in ("models", "tasks")
    )
    whole = isinstance(data.get("seeds"), list) and all(type(one) is int for one in data["seeds"])
    if not (
        texts and whole and isinstance(data.get("options"), dict) and data.get("version") == _PLAN_VERSION
    ):
        text = "not what a sweep asks for; it must hold version 1, models, tasks, seeds and options"
        raise file_error(FormatError, "header_value", path, text)
    return Plan(*(data[name] for name in Plan._fields))
