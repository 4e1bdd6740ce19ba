"""Tables and figures of running text: counted again here, on small models with gates that are easily told."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from table_columns import hidden

import attnsparse as asp
from attnsparse import figures
from attnsparse.cli import main as cli
from attnsparse.recipes import text_frontier
from attnsparse.recipes.job import gated_twin
from attnsparse.recipes.text_evaluation import measure
from attnsparse.reproduce import edge_kinds, edges_by_position, reproduce, text
from attnsparse.reproduce.pair import FigureFiles
from attnsparse.reproduce.text_tables import KINDS, kinds_of_entries

T = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("etaoinshrdlu"), random.integers(1, 7))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    ends = ["\n" if i % 9 == 0 else ", " if i % 7 == 0 else " " for i in range(12_000)]
    path.write_text("".join(map("".join, zip(random.choice(words, 12_000), ends))))
    return path


@pytest.fixture(scope="module")
def data(corpus):
    return asp.TextData(corpus, T, 4, tokenizer=300)


@pytest.fixture(scope="module")
def dense(data):
    config = asp.Config(2, 2, 16, 8, 32, T, data.tokenizer.n_vocab)
    return asp.Model.initialised(config, 0, std="fan_in", tokenizer=data.tokenizer, name="dense")


@pytest.fixture(scope="module")
def sparse(dense):
    return gated_twin(dense, "sparse")


def test_kinds_of_entries(data):
    tokens = np.array(data.tokenizer.encode("ab, ab, a b"), np.int32)
    of = kinds_of_entries(tokens, data.tokenizer)
    texts, tokens = data.tokenizer.token_strings(tokens.tolist()), tokens.tolist()
    for q, k in np.ndindex(of.shape):
        if k > q:
            wanted = -1
        elif k == q:
            wanted = "self"
        elif q - k <= 4:
            wanted = "previous" if q - k == 1 else "2-4 back"
        elif k and tokens[k - 1] == tokens[q]:
            wanted = "induction"
        elif tokens[k] == tokens[q]:
            wanted = "same token"
        else:
            wanted = "other" if any(sign.isalnum() for sign in texts[k]) else "punctuation"
        assert of[q, k] == (wanted if wanted == -1 else KINDS.index(wanted)), (q, k)


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_counts_and_costs_of_kinds(role, data, request):
    model = request.getfixturevalue(role)
    windows = data.held_out[:19]
    table = edge_kinds(model, windows, progress=False)
    assert table["kind"].tolist() == list(KINDS)
    assert hidden(table) == []
    runs = [model.run(window, record=("gate", "pattern", "token_loss")) for window in windows]
    of = [kinds_of_entries(window, data.tokenizer) for window in windows]
    n_edges = sum(int(run.gate.sum()) for run in runs)
    for number, row in enumerate(table.itertuples()):
        edges = sum(int(run.gate[:, :, kind == number].sum()) for run, kind in zip(runs, of))
        entries = sum(int((kind == number).sum()) * 4 for kind in of)
        assert row.edges_per_token == pytest.approx(edges / windows.size)
        assert row.edge_share == pytest.approx(edges / n_edges)
        assert row.open_share == pytest.approx(edges / entries)
        assert (row.open_share == 1) == (role == "dense")
        # the same by ablation of single entries, of three windows
        for i in (0, 7, 18):
            query, key = np.nonzero(of[i] == number)
            chosen = [
                asp.Edge(*head, int(q), int(k)) for head in np.ndindex(2, 2) for q, k in zip(query, key)
            ]
            without = runs[i] if not chosen else model.run(windows[i], record="token_loss", ablate=chosen)
            cost = without.token_loss.mean(dtype=float) - runs[i].token_loss.mean(dtype=float)
            alone = edge_kinds(model, windows[[i, i]], progress=False).iloc[number]
            assert alone["loss_increase"] == pytest.approx(cost, abs=1e-6)
            assert alone["loss_increase_error"] == 0
    assert table["weight_share"].sum() == pytest.approx(1)


def test_edges_by_position(dense, sparse, data):
    windows = data.held_out[:17]
    every = edges_by_position(dense, windows)
    assert every["edges"].tolist() == [4.0 * (t + 1) for t in range(T)]
    assert (every["edges_error"] == 0).all()
    assert (every["self_edges"] == 4).all()
    found = edges_by_position(sparse, windows)
    counted = np.stack([sparse.run(window, record="gate").gate.sum((0, 1, 3)) for window in windows])
    assert np.allclose(found["edges"], counted.mean(0))
    assert np.allclose(found["edges_error"], counted.std(0, ddof=1) / len(windows) ** 0.5)
    assert hidden(found) == []


def test_what_the_tables_refuse(sparse, data):
    for wrong in (data.held_out[:1], [data.held_out[0], data.held_out[1][:5]]):
        with pytest.raises(ValueError, match="two or more of one length"):
            edge_kinds(sparse, wrong)
        with pytest.raises(ValueError, match="two or more of one length"):
            edges_by_position(sparse, wrong)


def test_rules_of_the_frontier(dense, data):
    points = text_frontier.untrained_points(dense, data.held_out[:6])
    twin = {"sparse_by": "gate", "setting": 0.1, "trained": True, "found": points[3]["found"]}
    table = text_frontier.frontier_table([*points, twin])
    assert hidden(table) == []
    assert table["sparse_by"].iloc[:2].tolist() == ["none", "gate"]
    control = table.iloc[0]
    assert control["above_control"] == 0
    assert control["open_per_cent"] == 100
    for row in table[table["sparse_by"] == "window"].itertuples():
        kept = 4 * np.minimum(np.arange(1, T + 1), row.setting).mean()
        assert row.edges_per_token == pytest.approx(kept)
        config = text_frontier.ruled(dense, "window", row.setting).config
        assert (config.window, config.top_k) == (row.setting, 0)
    whole = table[table["edges_per_token"] == control["edges_per_token"]]
    assert set(whole["sparse_by"]) >= {"window", "top_k"}
    assert np.allclose(whole["above_control"], 0)


def test_ratios_are_interpolated():
    rows = [("none", 0, True, 100.0, 0.0), ("gate", 0.1, True, 2.0, 0.2)]
    rows += [("window", 1, False, 1.0, 0.6), ("window", 2, False, 16.0, 0.1), ("top_k", 1, True, 8.0, 0.5)]
    names = ["sparse_by", "setting", "trained", "edges_per_token", "above_control"]
    found = text._ratios(pd.DataFrame(rows, columns=names)).set_index("rule")
    assert found["ratio"]["window, untrained"] == pytest.approx(16**0.8 / 2)
    assert np.isnan(found["ratio"]["top_k"])


def test_the_frontiers_caption_is_about_the_twin_that_was_given(dense, sparse, data):
    points = text_frontier.untrained_points(dense, data.held_out[:6])
    twin = measure(sparse, data.held_out[:6])
    for found, setting in ((points[3]["found"], 0.1), (twin, 0.2), (points[5]["found"], 0.3)):
        points.append({"sparse_by": "gate", "setting": setting, "trained": True, "found": found})
    table = text_frontier.frontier_table(points)
    caption = text._frontier(table, pd.DataFrame(), twin).caption.replace("\n", " ")
    assert f"The twin has {twin.edges_per_token.value:.1f} edges a token" in caption
    plt.close("all")


def test_reproduce(dense, sparse, corpus, tmp_path, data):
    files = reproduce("text", tmp_path, ("svg",), dense=dense, sparse=sparse, corpus=corpus)
    names = {path.name for path in files}
    assert {f"text-{name}.svg" for name in ("frontier", "kinds", "positions", "edges")} <= names
    reproduce("text", tmp_path / "again", ("svg",), dense=dense, sparse=sparse, corpus=str(corpus))
    for path in files:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    tables = {path.stem: table for path, table in files.items() if table is not None}
    edges = tables["text-edges-edges"]
    run = sparse.run(data.held_out[1][:T])  # the first that steers nothing
    assert (edges["model"] == "sparse").sum() == len(run.open_edges())
    assert (edges["model"] == "dense").sum() == len(dense.run(data.held_out[1]).open_edges(threshold=0.1))
    assert all(hidden(table) == [] for table in tables.values())
    assert tables["text-frontier-texts"]["name"].tolist() == ["words.txt"]
    assert not plt.get_fignums()


def test_a_frontier_beside_the_model_is_shown(dense, sparse, corpus, tmp_path):
    sparse.save(tmp_path / "sparse")
    points = text_frontier.untrained_points(dense, asp.TextData(corpus, T, 1, tokenizer=300).held_out[:4])
    table = text_frontier.frontier_table(
        [*points, {"sparse_by": "gate", "setting": 0.5, "trained": True, "found": points[0]["found"]}]
    )
    table.to_csv(tmp_path / "sparse" / text_frontier.FRONTIER, index=False)
    made = text.make(corpus, dense, tmp_path / "sparse")
    plt.close("all")
    assert made[0].tables["points"]["setting"].tolist() == table["setting"].tolist()


def test_what_reproduce_refuses(corpus, tmp_path, capsys):
    with pytest.raises(ValueError, match="the figure 'text' needs corpus"):
        reproduce("text", tmp_path)
    with pytest.raises(ValueError, match="corpus is for the figure 'text'; 'copy' reads no texts"):
        reproduce("copy", tmp_path, corpus=corpus)
    assert cli.main(["reproduce", "text", "--out", str(tmp_path)]) == 1
    assert "needs corpus" in capsys.readouterr().err


def test_figures_draw_on_given_axes(dense, sparse, data):
    figure, axes = plt.subplots(1, 4)
    kinds = pd.concat(
        [edge_kinds(m, data.held_out[:3], progress=False).assign(model=m.name) for m in (dense, sparse)]
    )
    assert figures.edge_kinds(kinds, axes[0]) is axes[0]
    left, right = axes[0].child_axes
    assert len(left.patches) == len(right.patches) == 2 * len(KINDS)
    assert [patch.get_width() for patch in left.patches[: len(KINDS)]] == kinds["edges_per_token"].tolist()[
        :7
    ]
    tables = {m.name: edges_by_position(m, data.held_out[:3]) for m in (dense, sparse)}
    assert figures.edges_by_position(tables, axes[1]) is axes[1]
    assert len(axes[1].lines) == 4
    run = sparse.run(data.held_out[1])
    assert figures.text_edges(run, axes[2], title="$x$") is axes[2]
    table = run.open_edges()
    apart = table[table["query_position"] != table["key_position"]]
    pairs = apart.drop_duplicates(["query_position", "key_position"])
    assert len(axes[2].collections[0].get_paths()) == len(pairs)
    own = table[table["query_position"] == table["key_position"]]["query_position"].nunique()
    assert len(axes[2].collections[1].get_offsets()) == own
    points = text_frontier.frontier_table(text_frontier.untrained_points(dense, data.held_out[:3]))
    assert figures.frontier(points, axes[3], allowed=0.1) is axes[3]
    assert [text.get_text() for text in axes[3].texts] == ["0.1 nats"]
    assert len(axes[3].containers) == 3
    plt.close(figure)


def test_what_figures_refuse(dense, data):
    kinds = edge_kinds(dense, data.held_out[:2], progress=False)
    with pytest.raises(ValueError, match="table must have a column 'kind'"):
        figures.edge_kinds(kinds.drop(columns="kind"))
    four = pd.concat([kinds.assign(model=str(i)) for i in range(4)])
    with pytest.raises(ValueError, match="one to 3 models, got 4"):
        figures.edge_kinds(four)
    with pytest.raises(ValueError, match="one to 3 models, got 0"):
        figures.edges_by_position({})
    with pytest.raises(ValueError, match="column 'self_edges'"):
        figures.edges_by_position({"a": pd.DataFrame({"position": [0], "edges": [1], "edges_error": [0]})})
    with pytest.raises(ValueError, match="column 'sparse_by'"):
        figures.frontier(pd.DataFrame({"a": [1]}))
    columns = ["sparse_by", "trained", "edges_per_token", "above_control", "above_control_error"]
    with pytest.raises(ValueError, match="no row with sparse_by of gate"):
        figures.frontier(pd.DataFrame([["none", True, 1, 0, 0]], columns=columns))


def test_tasks_that_are_left_out_are_named(dense, sparse, data, monkeypatch):
    """Too few places in the text, or a model that does as well without attention."""
    asked = []

    def drawn(name, *given, **options):
        if name == "title":
            raise ValueError("these windows have 3 prompts")
        return SimpleNamespace(name=name)

    def circuits(self, name, unit, ablation):
        asked.append((name, unit, ablation))
        if name == "capital":
            raise ValueError("the model does not do the task by attention")

    def make(pair, titles, name):
        return [FigureFiles(name, plt.figure(), f"Of {', '.join(titles)}.", {})]

    monkeypatch.setattr(text, "text_task", drawn)
    monkeypatch.setattr(text.ModelPair, "circuits", circuits)
    monkeypatch.setattr(text.curves, "make", make)
    [made] = text._circuits({"dense": dense, "sparse": sparse}, data.held_out)
    plt.close("all")
    assert made.name == "text-circuits"
    assert made.caption.replace("\n", " ").startswith("Of ending, possessive. Left out, because")
    assert made.caption.endswith(f"{text.TASKS['capital']}, {text.TASKS['title']}.")
    assert {name for name, _, _ in asked} == {"ending", "possessive", "capital"}
    monkeypatch.setattr(text, "text_task", lambda *given, **options: drawn("title"))
    assert text._circuits({"dense": dense, "sparse": sparse}, data.held_out) == []
