"""The folder of a sweep is read by pandas, polars and DuckDB in one line each, whatever models are called."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from circuit_cases import case

import attnsparse as asp
from attnsparse.sweeps import TABLES
from attnsparse.sweeps.store import Store
from attnsparse.sweeps.tables import columns

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
CASE = case("gated", (6, 6, 6, 6))
NAMES = [
    "plain",
    "owner/name",
    "a b",
    "c=d&e%20f",
    "été·模型",
    "'quoted\"",
    "x" * 110,
    "..b",
    "~a",
    "nan",
    "step-1",
]

TASKS = ["random", "a/b=c d"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("out of") / "a sweep"
    model = CASE.model("float32")
    asp.sweep(
        dict.fromkeys(NAMES, model), dict.fromkeys(TASKS, CASE.task), out=path, n_bootstrap=5, n_random=1,
        threads=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="1 of 1 cells failed"):
        asp.sweep({"plain": model}, {"bad": lambda *_: None}, out=path)
    for table in TABLES:
        (next((path / table).glob("*/*")) / ".1f-2-0.attnsparse-tmp").write_bytes(b"a part")
    return path


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same rows, in whatever order and kind of column."""
    assert set(found.columns) == set(expected.columns)

    def rows(table: pd.DataFrame) -> list[tuple]:
        plain = table[sorted(table.columns)].astype(object)
        values = plain.where(plain.notna(), None).itertuples(index=False, name=None)
        return sorted(
            (tuple(float(v) if isinstance(v, (int, float)) else v for v in row) for row in values), key=repr
        )

    assert rows(found) == rows(expected)


@pytest.mark.parametrize("table", TABLES)
def test_pandas(out, table):
    found = pd.read_parquet(out / table)
    same(found, Store(out).read(table))
    assert list(found.columns) == [*columns(table), "model", "task"]
    assert set(found["model"]) == set(NAMES)
    assert set(found["task"]) == {*TASKS, "bad"} if table == "cells" else set(TASKS)
    assert len(found[found.model == "owner/name"]) == len(found[found.model == "plain"]) - (table == "cells")


@pytest.mark.parametrize("table", TABLES)
def test_polars(out, table):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    found = polars.read_parquet(out / table / "**/*.parquet", hive_partitioning=True)
    same(pd.DataFrame(found.to_dicts()), Store(out).read(table))


@pytest.mark.parametrize("table", TABLES)
def test_duckdb(out, table):
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    found = duckdb.sql(f"from read_parquet('{out}/{table}/**/*.parquet')").df()
    same(found, Store(out).read(table))


def test_types_do_not_depend_on_what_is_missing(out):
    import pyarrow.parquet as pq

    kinds = {}
    for table in TABLES:
        for path in (out / table).rglob("*.parquet"):
            kinds.setdefault(table, set()).add(str(pq.read_schema(path)))
    assert {table: len(found) for table, found in kinds.items()} == dict.fromkeys(TABLES, 1)


def test_other_units_have_their_own_columns(tmp_path):
    for unit in ("edge", "head_position"):
        asp.sweep({"a": CASE.model("float32")}, CASE.task, unit=unit, out=tmp_path, n_bootstrap=0, n_random=1)
    items = Store(tmp_path).read("items")
    edges = items[items.unit == "edge"]
    circuit = asp.find_circuit(CASE.model("float32"), CASE.task, unit="edge", n_bootstrap=0, n_random=1)
    for name, column in (("query_position", 2), ("key_position", 3)):
        assert edges[name].tolist() == circuit.items[:, column].tolist()
    assert edges["position"].isna().all()
    assert items[items.unit == "head_position"]["position"].notna().all()
    curves = pd.read_parquet(tmp_path / "curves")
    assert math.isnan(curves["low"].iloc[0])


def test_an_effect_that_is_no_share_needs_nothing(tmp_path):
    asp.sweep(
        {"a": CASE.model("float32")}, CASE.task, normalize="none", out=tmp_path, n_bootstrap=0, n_random=1
    )
    assert len(Store(tmp_path).read("needed")) == 0
    assert len(Store(tmp_path).read("cells")) == 1
