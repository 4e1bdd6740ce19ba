"""Pictures show their data: squares are the pattern, lines the edges; the same data gives the same bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
from places import IMPORTED

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_run import PROMPT, PROMPT_TOKENS, FakeModel
from matplotlib.axes import Axes
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure

from attnsparse import figures
from attnsparse.figures.edges import _floors
from attnsparse.figures.style import WHITE_TO_BLUE, styled
from attnsparse.model import tables
from attnsparse.tasks import addition

WHITE = 1 / 512


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    return FakeModel(3)


@pytest.fixture(scope="module")
def run(model):
    return model.run(PROMPT)


@pytest.fixture(scope="module")
def adder():
    return FakeModel(0, words=addition.VOCABULARY, n_ctx=11, n_layer=4)


@pytest.fixture(scope="module")
def dense_adder():
    return FakeModel(1, words=addition.VOCABULARY, n_ctx=11, n_layer=4, gated=False)


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def shown_pattern(squares, n_tokens: int, corner: tuple[float, float], cell: float) -> np.ndarray:
    """The matrix [query, key] that a map shows, read off its squares and their colours' values."""
    matrix = np.zeros((n_tokens, n_tokens))
    for path, value in zip(squares.get_paths(), squares.get_array(), strict=True):
        key, query = np.rint((path.vertices[:4].min(axis=0) - corner) / cell).astype(int)
        np.testing.assert_allclose(np.ptp(path.vertices[:4], axis=0), cell)
        matrix[query, key] = value
    return matrix


# -------------------------------------------------------------------------------------- head grid


def test_head_grid_shows_the_patterns_in_the_order_asked_for(run):
    heads = ["L2H1", (0, 3), "1.1", "a2.h3"]
    ax = figures.head_grid(run, heads, columns=3, title="Sparse $GPT2$")
    assert texts(ax) == ["L2H1", "L0H3", "L1H1", "L2H3"]
    assert ax.get_title(loc="left") == "Sparse $GPT2$"
    assert len(ax.collections) == 4
    for i, (layer, head) in enumerate([(2, 1), (0, 3), (1, 1), (2, 3)]):
        row, column = divmod(i, 3)
        corner = (0.14 + 1.16 * column, 0.14 + 1.16 * row)
        expected = np.where(run.pattern[layer, head] > WHITE, run.pattern[layer, head], 0)
        np.testing.assert_array_equal(shown_pattern(ax.collections[i], 8, corner, 1 / 8), expected)


def test_head_grid_shows_all_heads_of_an_array(run):
    ax = figures.head_grid(run.pattern)
    assert texts(ax) == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]


def test_all_heads_have_a_row_for_each_layer():
    ax = figures.head_grid(np.zeros((2, 12, 3, 3)))
    assert ax.get_xlim()[1] == pytest.approx(11 * 1.16 + 1.28 + 0.02)
    assert len(ax.collections) == 24
    wide = figures.head_grids(
        [("a", np.zeros((2, 12, 3, 3)), None), ("b", np.zeros((2, 12, 3, 3)), ["L0H1"])]
    )
    assert wide.axes[0].get_xlim() == ax.get_xlim()


def test_a_mean_pattern_names_what_the_prompts_share():
    model = FakeModel(3)
    runs = model.run([PROMPT_TOKENS, np.where(np.arange(8) == 4, 7, PROMPT_TOKENS)])
    ax = figures.attention_map(runs, 1, 2)
    assert ax.get_title() == "L1H2, mean of 2 prompts"
    expected = (runs[0].pattern[1, 2] + runs[1].pattern[1, 2]) / 2
    drawn = ax.collections[0].get_array()
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected[np.tril(expected) > WHITE]))
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert sum(label.startswith("(2 tokens)") for label in labels) == 1
    named = figures.attention_map(runs, 1, 2, labels=[f"place {i}" for i in range(runs[0].n_tokens)])
    assert named.get_xticklabels()[1].get_text() == "place 1  1"
    with pytest.raises(ValueError, match="one text for each"):
        figures.attention_map(runs, 1, 2, labels=["a"])


def test_layers_without_edges_are_low():
    run = FakeModel(0, n_layer=4).run(PROMPT)
    heights = np.diff(_floors(pd.DataFrame({"layer": [1, 1, 3]}), 4))
    np.testing.assert_allclose(heights, [0.45, 1, 0.45, 1])
    ax = figures.edge_lines(run)
    lines = np.array(ax.collections[0].get_segments())
    ticks = ax.get_yticks()
    layers = tables.edges(run, 0.0)["layer"].to_numpy()
    np.testing.assert_allclose(lines[:, :, 1].mean(axis=1), ticks[layers])


def test_bars_are_the_strongest_rows():
    table = pd.DataFrame(
        {"label": ["a", "b", "c", "d", "$x"], "effect": [1.0, -3.0, 2.0, np.nan, 0.5],
         "low": [0.5, -4, 1, 0, 0], "high": [1.5, -2, 3, 0, 1]}
    )  # fmt: skip
    ax = figures.bars(table, "effect", 4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c", "a", "$x"]
    assert [bar.get_width() for bar in ax.patches] == [-3.0, 2.0, 1.0, 0.5]
    assert ax.patches[0].get_facecolor()[:3] != ax.patches[1].get_facecolor()[:3]
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_array_equal(segments[:, :, 0], [[-4, -2], [1, 3], [0.5, 1.5], [0, 1]])
    assert ax.get_xlabel() == "effect"
    assert not figures.bars(table.drop(columns=["low", "high"]), "effect").collections
    with pytest.raises(KeyError, match="no column 'score'; it has label, effect"):
        figures.bars(table, "score")
    with pytest.raises(ValueError, match="no row with a value"):
        figures.bars(table[3:4], "effect")
    with pytest.raises(TypeError, match="must hold numbers"):
        figures.bars(table, "label")


def test_labels_stand_in_the_empty_corner_of_their_map(run):
    ax = figures.head_grid(run, columns=4)
    ax.figure.canvas.draw()
    for i, label in enumerate(ax.texts):
        row, column = divmod(i, 4)
        box = label.get_window_extent().transformed(ax.transData.inverted())
        left, top = 0.14 + 1.16 * column, 0.14 + 1.16 * row
        assert left + 0.3 < box.x0 < box.x1 <= left + 1.001
        assert top <= min(box.y0, box.y1) < max(box.y0, box.y1) < top + 0.3


def test_colours_go_from_white_to_dark_blue(run):
    squares = figures.head_grid(run).collections[0]
    assert squares.get_clim() == (0, 1)
    assert squares.cmap is WHITE_TO_BLUE
    assert WHITE_TO_BLUE(0.0)[:3] == (1, 1, 1)
    assert WHITE_TO_BLUE(WHITE) == WHITE_TO_BLUE(0.0)
    colours = WHITE_TO_BLUE(np.linspace(0, 1, 64))[:, :3]
    luminance = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) < 0).all()
    assert luminance[-1] < 0.2
    hue = rgb_to_hsv(colours[8:])[:, 0]
    assert (abs(hue - 0.59) < 0.06).all()


def test_grid_draws_on_the_axes_given(run):
    _, axes = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert figures.head_grid(run, ax=axes[1]) is axes[1]
    assert figures.edge_lines(run, ax=axes[0]) is axes[0]
    assert plt.get_fignums() == before


def test_grids_have_maps_of_one_size_and_aligned_panels(run):
    figure = figures.head_grids([("GPT2", run, ["0.0"] * 11), ("Sparse GPT2", run, ["0.1"] * 3)], columns=5)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    upper, lower = figure.axes[:2]
    widths = [np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0] for ax in (upper, lower)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=1e-6)
    assert abs(widths[0][0]) == pytest.approx(abs(widths[0][1]), rel=1e-6)
    assert upper.get_window_extent().x0 == pytest.approx(lower.get_window_extent().x0)
    assert [len(ax.collections) for ax in (upper, lower)] == [11, 3]


@pytest.mark.parametrize(
    ("heads", "columns", "error"),
    [
        ([], 9, ValueError),
        (["0.0"], 0, ValueError),
        (["0.4"], 9, IndexError),
        (["x"], 9, ValueError),
        ([5], 9, TypeError),
    ],
)
def test_bad_heads(run, heads, columns, error):
    with pytest.raises(error):
        figures.head_grid(run, heads, columns)


def test_bad_patterns(model):
    with pytest.raises(ValueError, match=r"\(layers, heads, T, T\), got \(3, 3\)"):
        figures.head_grid(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="has 2 prompts"):
        figures.head_grid(model.run([PROMPT, PROMPT]))
    with pytest.raises(ValueError, match="panels is empty"):
        figures.head_grids([])
    with pytest.raises(TypeError, match=r"panels must be \(title, run, heads\).*panel 0 is \('a', "):
        figures.head_grids([("a", np.zeros((1, 1, 3, 3)))])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        figures.head_grids([("a", np.zeros((1, 1, 3, 3)), None)], columns=0)


def test_long_prompts_are_stored_as_pixels(tmp_path):
    pattern = np.tril(np.full((1, 1, 200, 200), 0.5))
    ax = figures.head_grid(pattern)
    assert not ax.collections
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(0), pattern[0, 0])
    assert not shown.mask[np.tril_indices(200)].any()
    figures.save(ax, tmp_path / "long", ["svg"])
    assert (tmp_path / "long.svg").stat().st_size < 500_000
    assert not figures.head_grid(pattern[:, :, :20, :20]).images


# ---------------------------------------------------------------------------------- attention map


@pytest.mark.parametrize("base", [0, 1])
def test_attention_map_shows_pattern_tokens_and_positions(run, base):
    ax = figures.attention_map(run, 1, 2, base=base)
    expected = np.where(run.pattern[1, 2] > WHITE, run.pattern[1, 2], 0)
    np.testing.assert_array_equal(shown_pattern(ax.collections[0], 8, (-0.5, -0.5), 1.0), expected)
    words = ["The", "opposite", "of", '"', "large", '"', "is", '"']
    labels = [f"{word}  {i + base}" for i, word in enumerate(words)]
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == labels
    assert f"positions from {base}" in ax.get_xlabel()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # query downwards
    assert ax.get_xlim()[0] < ax.get_xlim()[1]


def test_attention_map_writes_the_values_of_few_tokens(run):
    ax = figures.attention_map(run, 0, 1)
    written = {(text.get_position()[1], text.get_position()[0]): float(text.get_text()) for text in ax.texts}
    assert len(written) == np.count_nonzero(run.pattern[0, 1] >= 0.005)
    for (query, key), value in written.items():
        assert value == pytest.approx(run.pattern[0, 1, query, key], abs=0.0051)


def test_attention_map_of_many_tokens_has_a_scale_instead(model):
    ax = figures.attention_map(model.run(np.zeros(20, np.int32)), 0, 0)
    assert not ax.texts
    assert len(ax.child_axes) == 1


def test_attention_map_of_a_missing_head(run):
    with pytest.raises(IndexError, match="L3H0 is out of range"):
        figures.attention_map(run, 3, 0)
    with pytest.raises(ValueError, match="must be at least 0"):
        figures.attention_map(run, -1, 0)
    with pytest.raises(ValueError, match="base must be 0 or 1"):
        figures.attention_map(run, 0, 0, base=2)


def test_one_token(model, tmp_path):
    run = model.run(np.array([4], np.int32))
    n_open = np.count_nonzero(run.oracle["gate"])
    assert len(figures.head_grid(run, tables.heads(run, 0, 0)["label"]).collections) == 12
    assert len(figures.edge_lines(run).collections[0].get_segments()) == n_open
    figures.save(figures.attention_map(run, 0, 0), tmp_path / "one")


def test_real_runs_look_like_oracle_runs(model, tmp_path):
    for run in (model.run(PROMPT), model.real().run([PROMPT, "The"])[0]):
        figures.save(figures.attention_map(run, 0, 1), tmp_path / f"{type(run).__name__}-map", ["png"])
        figures.save(figures.edge_lines(run), tmp_path / f"{type(run).__name__}-lines", ["png"])
    for name in ("map", "lines"):
        fake, real = (plt.imread(tmp_path / f"{kind}-{name}.png") for kind in ("FakeRun", "Run"))
        np.testing.assert_allclose(fake, real, atol=0.02)


@pytest.mark.parametrize("token", [8, 9, 10, 11])
def test_strange_tokens_are_drawn_as_they_are(model, token, tmp_path):
    run = model.run(np.array([token, 0, token], np.int32))
    ax = figures.attention_map(run, 0, 0)
    assert ax.get_xticklabels()[0].get_text() == {8: "␣  0", 9: "\\n  0", 10: "$  0", 11: "<b>  0"}[token]
    figures.save(ax, tmp_path / "map", ["png", "svg", "pdf"])
    figures.save(figures.edge_lines(run), tmp_path / "lines", ["svg"])


# ------------------------------------------------------------------------------------- edge lines


def test_one_line_per_edge_from_key_to_query(run):
    ax = figures.edge_lines(run)
    table = tables.edges(run)
    lines = np.array(ax.collections[0].get_segments())
    assert len(lines) == len(table) > 20
    (start_x, start_y), (end_x, end_y) = lines[:, 0].T, lines[:, 1].T
    np.testing.assert_array_equal(start_y, table["layer"])
    np.testing.assert_array_equal(end_y, table["layer"] + 1)
    shift = start_x - table["key_position"]
    assert (abs(shift) < 0.25).all()
    np.testing.assert_allclose(end_x - table["query_position"], shift)
    assert len(np.unique(lines.reshape(len(lines), 4), axis=0)) == len(lines)
    alone = ~table.duplicated(["layer", "query_position", "key_position"], keep=False)
    assert alone.any()
    assert (shift[alone] == 0).all()


def test_stronger_edges_are_wider_and_darker(run):
    lines = figures.edge_lines(run).collections[0]
    order = np.argsort(tables.edges(run)["weight"].to_numpy(), kind="stable")
    assert (np.diff(np.array(lines.get_linewidth())[order]) >= 0).all()
    assert (np.diff(lines.get_colors()[order, 3]) >= 0).all()
    assert (rgb_to_hsv(lines.get_colors()[:, :3])[:, 0] == rgb_to_hsv(to_rgb("#0b4f9e"))[0]).all()


def test_number_of_edges_is_written(run):
    ax = figures.edge_lines(run)
    assert ax.get_title(loc="right") == f"{len(tables.edges(run))} of 432 edges open"
    dense = FakeModel(3, gated=False).run(PROMPT)
    ax = figures.edge_lines(dense, threshold=0.25)
    assert ax.get_title(loc="right") == f"{len(tables.edges(dense, 0.25))} of 432 entries > 0.25"
    assert len(ax.collections[0].get_segments()) == len(tables.edges(dense, 0.25))


def test_no_edges_is_an_empty_picture(run, tmp_path):
    ax = figures.edge_lines(run, threshold=1.0)
    assert len(ax.collections[0].get_segments()) == 0
    assert ax.get_title(loc="right").startswith("0 of 432")
    figures.save(ax, tmp_path / "none")


def test_columns_carry_tokens_labels_and_predictions(run):
    ax = figures.edge_lines(run)
    words = ["The", "opposite", "of", '"', "large", '"', "is", '"']
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{w}\n{i}" for i, w in enumerate(words)]
    assert ax.get_xlabel() == "token and position (from 0)"
    ax = figures.edge_lines(run, base=1)
    assert ax.get_xticklabels()[4].get_text() == "large\n5"
    assert ax.get_xlabel() == "token and position (from 1)"
    with pytest.raises(ValueError, match="base must be 0 or 1"):
        figures.edge_lines(run, base=2)
    ax = figures.edge_lines(run, labels=list("abcdefgh"), predictions={7: "$small$"}, title="one")
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcdefgh")
    assert ax.get_xlabel() == ""
    assert texts(ax) == ["$small$"]
    assert ax.texts[0].xy == (7, 3)
    with pytest.raises(ValueError, match="labels must have one text for each of the 8 tokens, got 2"):
        figures.edge_lines(run, labels=["a", "b"])


@pytest.mark.parametrize(("n", "size"), [(1, None), (3, None), (1, (2.2, 2.0)), (3, (5.5, 2.0))])
def test_names_of_columns_do_not_touch(n, size):
    """Short prompts, long ones whose names stand upright, and Axes of somebody else."""
    run = FakeModel(3).run(PROMPT * n)
    ax = None if size is None else plt.subplots(figsize=size, layout="constrained")[1]
    ax = figures.edge_lines(run, ax)
    ax.figure.draw_without_rendering()
    places = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(places) == run.n_tokens
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(places))


def test_addition_figure_has_dense_above_sparse(dense_adder, adder):
    figure = figures.addition_figure(dense_adder, adder, caption="L1H2 costs $5 or $6")
    assert len(figure.axes) == 6
    for row, (model, threshold, name) in enumerate([(dense_adder, 0.01, "Dense"), (adder, 0.0, "Sparse")]):
        for column, (a, b) in enumerate([(53, 21), (36, 28), (43, 59)]):
            ax = figure.axes[3 * row + column]
            run = model.run(addition.sequence(a, b), record=("pattern", "logits"))
            assert len(ax.collections[0].get_segments()) == len(tables.edges(run, threshold))
            labels = [label.get_text() for label in ax.get_xticklabels()]
            assert "".join(labels) == f"{a}+{b}=?????"
            assert ax.get_title(loc="left") == name
            predicted = run.logits[5:9].argmax(axis=1)
            assert texts(ax)[:4] == [addition.VOCABULARY[token] for token in predicted]
    headers = [texts(ax)[-1] for ax in figure.axes[:3]]
    assert headers == ["53+21, no carry", "36+28, one carry", "43+59, two carries"]
    assert [text.get_text() for text in figure.texts] == ["L1H2 costs $5 or $6"]


@pytest.mark.parametrize("sums", [[], ["5+3"], ["53-21"], ["153+21"], ["53+21 "]])
def test_bad_sums(dense_adder, adder, sums):
    with pytest.raises(ValueError, match=r"sums is empty|written like '53\+21'"):
        figures.addition_figure(dense_adder, adder, sums)


def test_models_of_other_sequences(adder, model):
    with pytest.raises(ValueError, match=r"sparse: 'fake' is not a model of additions, which have 14 tokens"):
        figures.addition_figure(adder, model)


# ----------------------------------------------------------------------------------------- saving

DRAW = """
import sys
sys.path[:0] = sys.argv[2:]
import matplotlib
matplotlib.use("Agg")
from fake_run import PROMPT, FakeModel
from attnsparse import figures
run = FakeModel(3).run(PROMPT)
figures.save(figures.head_grid(run, title="all"), sys.argv[1] + "/grid")
figures.save(figures.edge_lines(run), sys.argv[1] + "/lines")
figures.save(figures.attention_map(run, 0, 1), sys.argv[1] + "/map")
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_bytes_in_every_process(tmp_path):
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", DRAW, str(folder), *IMPORTED]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"})
        found.append(digests(folder))
    assert found[0] == found[1]
    assert len(found[0]) == 9


def test_same_bytes_in_one_process_and_under_other_settings(run, tmp_path):
    figures.save(figures.edge_lines(run), tmp_path / "first")
    with mpl.rc_context({"font.size": 20, "axes.titlesize": 30, "svg.hashsalt": "other", "pdf.fonttype": 3}):
        figures.save(figures.edge_lines(run), tmp_path / "second")
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()


def test_settings_of_the_user_are_left_alone(run, tmp_path):
    before = dict(mpl.rcParams)
    figures.save(figures.head_grid(run), tmp_path / "grid")
    figures.edge_lines(run)
    assert dict(mpl.rcParams) == before


def test_settings_changed_inside_stay():
    """A notebook switches `interactive` on while the first figure is made; later figures depend on it."""
    with styled():
        plt.ion()
    assert mpl.is_interactive()
    plt.ioff()


def test_files_are_what_their_names_say(run, tmp_path):
    paths = figures.save(figures.head_grid(run, ["0.0"]), tmp_path / "a.b")
    assert [path.name for path in paths] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    png, svg, pdf = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert pdf.startswith(b"%PDF")
    assert b"<image" in svg  # the scale above the panel; the maps themselves are squares
    assert svg.count(b"<image") == 1
    for data in (svg, pdf):
        assert b"Date>" not in data
        assert b"CreationDate" not in data


def test_save_takes_axes_and_figures(run, tmp_path):
    ax = figures.edge_lines(run)
    [one], [other] = (
        figures.save(ax, tmp_path / "ax", ["png"]),
        figures.save(ax.figure, tmp_path / "fig", ["png"]),
    )
    assert one.read_bytes() == other.read_bytes()


def test_unknown_format_writes_nothing(run, tmp_path):
    with pytest.raises(ValueError, match="formats: unknown format 'gif'; choose from png, svg, pdf"):
        figures.save(figures.edge_lines(run), tmp_path / "x", ["png", "gif"])
    assert list(tmp_path.iterdir()) == []


def test_the_ending_of_a_path_is_its_format(run, tmp_path):
    ax = figures.edge_lines(run)
    assert figures.save(ax, tmp_path / "a.png", dpi=50) == [tmp_path / "a.png"]
    assert figures.save(ax, tmp_path / "a.svg", "svg") == [tmp_path / "a.svg"]
    assert figures.save(ax, tmp_path / "b", "pdf") == [tmp_path / "b.pdf"]
    assert figures.save(ax, tmp_path / "v1.5", "svg") == [tmp_path / "v1.5.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.pdf", "v1.5.svg"]


@pytest.mark.parametrize(
    ("path", "options", "kind", "text"),
    [
        ("a.png", {"formats": "svg"}, ValueError, r"path ends in \.png, formats are \['svg'\]"),
        ("a.png", {"formats": ("png", "svg")}, ValueError, "omit one of them"),
        ("a", {"formats": 3}, TypeError, "formats must be a name or a sequence of names"),
        ("a", {"dpi": "a"}, TypeError, "dpi must be a number, got str"),
        ("a", {"dpi": 0}, ValueError, "dpi must be above 0"),
        ("a", {"figure": "a"}, TypeError, "figure must be a Figure or Axes of matplotlib, got str"),
    ],
)
def test_what_cannot_be_saved(run, tmp_path, path, options, kind, text):
    with pytest.raises(kind, match=text):
        figures.save(**{"figure": figures.edge_lines(run), "path": tmp_path / path} | options)
    assert list(tmp_path.iterdir()) == []


def test_failed_save_leaves_the_old_file(run, tmp_path, monkeypatch):
    ax = figures.edge_lines(run)
    [path] = figures.save(ax, tmp_path / "x", ["svg"])
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x\.svg"):
        figures.save(figures.head_grid(run), tmp_path / "x", ["svg"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
