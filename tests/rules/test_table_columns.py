"""No table has a column that pandas hides behind a method of its own, see `table_columns.hidden`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from public_calls import CALLS, Everything
from table_columns import hidden

import attnsparse

# Methods whose tables other tests give to `hidden`, because they need a model that reads text.
ELSEWHERE = {
    "NodeCurve.to_pandas": "test_component_circuit.py",
    "EntryEffects.to_pandas": "test_entry_effects.py",
    "FeatureLabels.contexts": "test_feature_labels.py",
    "FeatureLabels.promoted": "test_feature_labels.py",
    "FeatureLabels.suppressed": "test_feature_labels.py",
    "FeatureLabels.to_pandas": "test_feature_labels.py",
    "Store.read": "test_sweep.py",
    "Task.to_pandas": "test_task_tables.py",
    "TranscoderTrainer.history": "test_coder_train.py",
    "WordEffect.arrows": "test_graph_edge.py",
    "WordEffect.groups": "test_graph_edge.py",
    "WordEffect.heads": "test_graph_edge.py",
}


def methods(kind: type) -> list[str]:
    """The public methods of a class that give a table."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return [name for name, f in found if f.__annotations__.get("return") == "pd.DataFrame" and name[0] != "_"]


def classes() -> Iterator[type]:
    for module in pkgutil.walk_packages(attnsparse.__path__, "attnsparse."):
        if not module.name.endswith("__main__"):
            for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if kind.__module__ == module.name:
                    yield kind


def tables_of(made: Any) -> dict[str, list[pd.DataFrame]]:
    """The tables that methods without arguments give, by class and method."""
    found = {}
    for name in methods(type(made)):
        if f"{type(made).__name__}.{name}" in ELSEWHERE:
            continue
        parameters = list(inspect.signature(getattr(made, name)).parameters.values())
        if all(each.default is not each.empty for each in parameters):
            try:
                found[f"{type(made).__name__}.{name}"] = [getattr(made, name)()]
            except (ValueError, TypeError):  # of a batch, say, or without what it needs
                continue
    return found


@pytest.fixture(scope="module")
def tables():
    """Every table that a public call returns, or that what it returns can give, by the call's name."""
    found: dict[str, list[pd.DataFrame]] = {}
    with Everything() as everything:
        for name, uses in CALLS.items():
            for call in uses.right:
                result = call(everything)
                if isinstance(result, pd.DataFrame):
                    found.setdefault(name, []).append(result)
                for other, parts in tables_of(result).items():
                    found.setdefault(other, []).extend(parts)
        for made in vars(everything).values():
            for other, parts in tables_of(made).items():
                found.setdefault(other, []).extend(parts)
    return found


def test_every_method_that_gives_a_table_is_tested(tables):
    used = [kind for kind in classes() if not kind.__subclasses__()]  # heirs have the methods of bases
    every = {f"{kind.__name__}.{name}" for kind in used for name in methods(kind)}
    assert every - set(tables) - set(ELSEWHERE) == set()
    assert set(ELSEWHERE) - every == set()


def test_no_column_is_named_like_a_method_of_a_table(tables):
    bad = {
        name: names
        for name, parts in tables.items()
        if (names := [name for part in parts for name in hidden(part)])
    }
    assert bad == {}


def test_the_rule_can_fail():
    bad = pd.DataFrame({"head": [1], "first": [1], "a b": [1], "head_index": [1]})
    assert hidden(bad) == ["head", "first", "a b"]
