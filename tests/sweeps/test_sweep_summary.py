"""Tables over sweeps against their definitions, written a second time here."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from fake_circuit import fake_circuit
from fake_sweep import N_ITEMS, ranked, rising, write_sweep
from table_columns import hidden

from attnsparse import sweeps
from attnsparse.circuits.circuit import Circuit

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
STEPS = (0, 100, 1000)
TASKS = ("copy", "ioi")
SEEDS = range(5)


def size_of(model: str, task: str, seed: int) -> int:
    return 4 + seed % 3 + 2 * (model == "step-0") + 3 * (task == "ioi")


def circuit_of(model: str, task: str, seed: int) -> Circuit:
    return ranked(size_of(model, task, seed), seed + 7 * (task == "ioi"), task=task)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    models = {step: f"somewhere/{step}" for step in STEPS}
    return write_sweep(tmp_path_factory.mktemp("out"), models, TASKS, SEEDS, circuit_of)


def test_needed_is_the_mean_over_seeds(out):
    table = sweeps.needed(out)
    assert [*zip(table["task"], table["training_step"])] == [*itertools.product(TASKS, STEPS)]
    assert hidden(table) == []
    for row in table.itertuples():
        sizes = np.array([size_of(row.model, row.task, seed) for seed in SEEDS])
        assert (row.n_seeds, row.n_reached, row.interval, row.n_items) == (5, 5, "seeds", N_ITEMS)
        assert row.needed == sizes.mean()
        # another generator draws other resamples of the same distribution
        drawn = np.random.default_rng(0).integers(0, 5, (20_000, 5))
        low, high = np.quantile(sizes[drawn].mean(1), [0.025, 0.975])
        assert abs(row.low - low) <= 0.2
        assert abs(row.high - high) <= 0.2
        assert row.low < row.needed < row.high
    pd.testing.assert_frame_equal(sweeps.needed(out), table)
    assert not sweeps.needed(out, seed=1, n_bootstrap=50)["low"].equals(table["low"])
    assert sweeps.needed(out, n_bootstrap=0)["low"].isna().all()


def test_needed_of_one_seed_has_the_interval_over_prompts(out):
    for by in ("first", "stays"):
        table = sweeps.needed(out, by=by, where={"seed": 2, "task": ["copy"]})
        assert len(table) == 3
        for row in table.itertuples():
            found = circuit_of(row.model, row.task, 2).needed(0.9)
            expected = [getattr(found, f"{by}{end}") for end in ("", "_low", "_high")]
            assert [row.needed, row.low, row.high] == [
                pytest.approx(np.nan if n is None else n, nan_ok=True) for n in expected
            ]
            assert (row.n_seeds, row.interval) == (1, "prompts")


def test_circuits_that_do_not_get_there(tmp_path):
    def make(model, task, seed):
        return fake_circuit(np.linspace(0, 0.7 if seed or model == "b" else 1.0, N_ITEMS + 1))

    write_sweep(tmp_path, ["a", "b"], ["copy"], [0, 1], make)
    a, b = sweeps.needed(tmp_path).itertuples()
    assert (a.n_seeds, a.n_reached, a.needed) == (2, 1, make("a", "copy", 0).needed(0.9).first)
    assert (b.n_reached, np.isnan([b.needed, b.low, b.high]).all()) == (0, True)
    with pytest.raises(ValueError, match="no two circuits of this sweep differ in their seed alone"):
        sweeps.agreement(tmp_path)
    assert len(sweeps.agreement(tmp_path, top=3)) == 2


# ------------------------------------------------------------------------------------------ agreement


def judged(rankings: list[list[str]], sizes: list[int]) -> dict[str, np.ndarray]:
    """The three measures of all pairs, from indicator vectors and rank vectors."""
    labels = sorted({label for ranking in rankings for label in ranking})
    inside = np.array(
        [[label in ranking[:n] for label in labels] for ranking, n in zip(rankings, sizes)], float
    )
    ranks = np.array([[ranking.index(label) for label in labels] for ranking in rankings], float)
    common = inside @ inside.T
    total = inside.sum(1)
    expected = np.outer(total, total) / len(labels)
    return {
        "jaccard": common / (total[:, None] + total - common),
        "jaccard_chance": expected / (total[:, None] + total - expected),
        "correlation": np.corrcoef(ranks),
    }


def pairs_of(tables, between, of, top=None):
    """Rankings and sizes of the circuits of one group."""
    items, needed = tables
    items = items.merge(needed[needed["fraction"] == 0.9][["cell", "n_first"]], on="cell")
    for name, value in of.items():
        items = items[items[name] == value]
    parts = [part.sort_values("item_rank") for _, part in items.groupby("cell")]
    assert len({tuple(part[between].unique()) for part in parts}) == len(parts)
    return [part["label"].tolist() for part in parts], [
        int(part["n_first"].iloc[0]) if top is None else top for part in parts
    ]


@pytest.mark.parametrize("between", sweeps.BETWEEN)
@pytest.mark.parametrize("top", [None, 6])
def test_agreement(out, between, top):
    table = sweeps.agreement(out, between, top=top, n_bootstrap=20_000)
    same = [name for name in ("task", "model", "seed") if name != between]
    n = {"seed": len(SEEDS), "model": len(STEPS), "task": len(TASKS)}
    assert len(table) == np.prod([n[name] for name in same])
    assert (table["n_circuits"] == n[between]).all()
    assert ("training_step" in table) == (between != "model")
    assert hidden(table) == []
    upper = np.triu_indices(n[between], 1)
    tables = sweeps.table(out, "items"), sweeps.table(out, "needed")
    for row in table.to_dict("records"):
        measures = judged(*pairs_of(tables, between, {name: row[name] for name in same}, top))
        for name, values in measures.items():
            assert row[name] == pytest.approx(values[upper].mean(), abs=1e-12)
        for name in ("jaccard", "correlation"):
            ends = np.array([row[f"{name}_low"], row[f"{name}_high"]])
            if n[between] < 3:
                assert np.isnan(ends).all()
                continue
            assert ends[0] - 1e-12 <= row[name] <= ends[1] + 1e-12
            least, most = resampled(measures[name])
            assert ((least - 1e-9 <= ends) & (ends <= most + 1e-9)).all()


def resampled(values: np.ndarray) -> np.ndarray:
    """Between what the ends of the interval are: percentiles of resamples of another generator, pair by pair.

    Few circuits have few different resamples, so that neighbouring percentiles can be far apart.
    """
    n = len(values)
    drawn = np.random.default_rng(1).integers(0, n, (20_000, n))
    total, count = np.zeros(len(drawn)), np.zeros(len(drawn))
    for i, j in itertools.combinations(range(n), 2):
        differ = drawn[:, i] != drawn[:, j]
        total += differ * values[drawn[:, i], drawn[:, j]]
        count += differ
    return np.quantile((total / np.maximum(count, 1))[count > 0], [[0.02, 0.97], [0.03, 0.98]])


def test_equal_circuits_agree_and_random_ones_as_by_chance(tmp_path):
    write_sweep(tmp_path / "a", ["m"], ["t"], range(4), lambda *_: ranked(5, 0))
    [row] = sweeps.agreement(tmp_path / "a").to_dict("records")
    assert [row[f"{name}{end}"] for name in ("jaccard", "correlation") for end in ("", "_low", "_high")] == [
        1.0
    ] * 6
    write_sweep(tmp_path / "b", ["m"], ["t"], range(25), lambda m, t, seed: ranked(8, seed))
    [row] = sweeps.agreement(tmp_path / "b").to_dict("records")
    assert row["jaccard"] == pytest.approx(row["jaccard_chance"], abs=0.03)
    assert row["jaccard_chance"] == pytest.approx(8 * 8 / 24 / (16 - 8 * 8 / 24))
    assert abs(row["correlation"]) < 0.05


def test_rankings_of_different_items():
    correlation = sweeps.summary.rank_correlation
    assert correlation(list("abcd"), list("xaybzc")) == 1
    assert correlation(list("abc"), list("cxb")) == -1
    assert np.isnan(correlation(list("ab"), list("ax")))


# ------------------------------------------------------------------------------------- which cells count


def test_cells_of_several_options_must_be_chosen(tmp_path):
    for n_random in (0, 3):
        write_sweep(tmp_path, ["m"], ["t"], [0, 1], lambda *_: ranked(5), n_random=n_random)
    for function in (sweeps.needed, sweeps.agreement):
        with pytest.raises(
            ValueError, match=r"cells differ in n_random: 0, 3; choose with where={'n_random': \.\.\.}"
        ):
            function(tmp_path)
        assert len(function(tmp_path, where={"n_random": 3})) == 1
        with pytest.raises(ValueError, match="where leaves no cell"):
            function(tmp_path, where={"n_random": 4})
        with pytest.raises(ValueError, match="where: no column 'n_rand'; there are model, task, seed"):
            function(tmp_path, where={"n_rand": 3})


def test_a_name_that_means_two_models_is_refused(tmp_path):
    for model in ("first", "second"):
        store = write_sweep(tmp_path / model, {"m": model}, ["t"], [0], lambda *_: ranked(5))
        for path in store.rglob("*.parquet"):
            target = tmp_path / "both" / path.relative_to(store).parent / f"{model}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            table = pd.read_parquet(path, partitioning=None)
            table["model_digest"], table["cell"] = model, model
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(
                pa.Table.from_pandas(table, schema=pq.read_schema(path), preserve_index=False), target
            )
    for function in (sweeps.needed, sweeps.agreement):
        with pytest.raises(
            ValueError, match="model m, task t, seed 0 is there with several values of model_digest"
        ):
            function(tmp_path / "both")
    assert len(sweeps.needed(tmp_path / "both", where={"model_digest": "first"})) == 1


def test_wrong_arguments(out, tmp_path):
    for call, kind, text in (
        (lambda: sweeps.needed(out, 0.7), ValueError, "fraction must be one of 0.5, 0.8, 0.9, 0.95, got 0.7"),
        (lambda: sweeps.needed(out, by="last"), ValueError, "by must be one of"),
        (lambda: sweeps.needed(out, n_bootstrap=-1), ValueError, "n_bootstrap must be"),
        (lambda: sweeps.needed(out, confidence=1), ValueError, "confidence must be"),
        (lambda: sweeps.agreement(out, "layer"), ValueError, "between must be one of"),
        (lambda: sweeps.agreement(out, top=0), ValueError, "top must be"),
        (lambda: sweeps.agreement(out, fraction=0.7), ValueError, "fraction must be one of"),
        (lambda: sweeps.table(out, "circuits"), ValueError, "of must be one of"),
        (lambda: sweeps.table(tmp_path), FileNotFoundError, "no table 'cells' of a sweep in this folder"),
    ):
        with pytest.raises(kind, match=text):
            call()


def test_curves_of_the_toy_need_what_they_say():
    for n in (1, 5, 24):
        assert fake_circuit(rising(n)).needed(0.9).first == n
