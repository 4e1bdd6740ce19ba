"""The sketch shows what was found: these heads, this entry, these tokens and numbers."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_entry_effects import ANSWER, fake_entry_effects
from fake_run import PROMPT, FakeModel
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from attnsparse import figures
from attnsparse.circuits.entry_effects import entry_effects
from attnsparse.figures.entry_overview import draw_sketch, n_drawn
from attnsparse.figures.panels import entry_text
from attnsparse.figures.style import RED

WRONG = ("large", " is", "The")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def marks(ax) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def test_both_panels_show_the_best_heads():
    dense, sparse = fake_entry_effects(40, gated=False, name="D"), fake_entry_effects(5, name="S")
    figure = draw_sketch(dense, sparse, fraction=0.8)
    left, right = figure.axes[:2]
    assert len(left.collections) == n_drawn(dense, 0.8, 36) == 32
    assert len(right.collections) == n_drawn(sparse, 0.8, 36) == 4
    assert [text for text in texts(left) if text.startswith("L")] == [head.label for head in dense.heads[:32]]
    assert [text for text in texts(right) if text.startswith("L")] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert "D: 32 of 48 heads" in texts(left)
    assert "S: 4 of 48 heads" in texts(right)
    assert "80 % of the effects through 4 → 7; alone they keep 88 %" in texts(left)
    assert "80 % through\nthese 4 heads" in texts(right)


def test_never_more_than_asked_for():
    figure = draw_sketch(fake_entry_effects(48), fake_entry_effects(2), fraction=1.0, most=36)
    assert len(figure.axes[0].collections) == 36
    assert "75 % of the effects through 4 → 7; alone they keep 82 %" in texts(figure.axes[0])


def test_the_entry_has_a_red_frame_in_every_map():
    """The frame hides no weight."""
    dense, sparse = fake_entry_effects(9, gated=False), fake_entry_effects(3)
    for ax, found in zip(draw_sketch(dense, sparse, fraction=1.0).axes, (dense, sparse)):
        assert len(marks(ax)) == len(found.heads)
        for mark in marks(ax):
            assert to_rgb(mark.get_edgecolor()) == to_rgb(RED)
            assert not mark.get_fill()


def test_the_mark_covers_its_square():
    found = fake_entry_effects(3)
    ax = figures.head_grid(found.run, found.heads, mark=(7, 4))
    for i, mark in enumerate(marks(ax)):
        corner = np.array([0.14 + 1.16 * i, 0.14])
        np.testing.assert_allclose(mark.get_xy(), corner + np.array([4, 7]) / 8)
        assert (mark.get_width(), mark.get_height()) == (1 / 8, 1 / 8)


@pytest.mark.parametrize("mark", [(4, 7), (8, 0), (3, -1)])
def test_a_mark_outside_the_map(mark):
    with pytest.raises(IndexError, match=r"mark must be \(query, key\) with key <= query in 0..7"):
        figures.head_grid(fake_entry_effects(1).run, mark=mark)


@pytest.mark.parametrize("base", [0, 1])
def test_the_sentence_has_its_tokens_and_positions(base):
    right = draw_sketch(fake_entry_effects(2), fake_entry_effects(2), base=base).axes[1]
    written = texts(right)
    start = written.index("The")
    assert written[start : start + 16 : 2] == ["The", "opposite", "of", '"', "large", '"', "is", '"']
    assert written[start + 1 : start + 16 : 2] == [str(i + base) for i in range(8)]
    assert "small" in written
    large = next(text for text in right.texts if text.get_text() == "large")
    assert to_rgb(large.get_color()) == to_rgb(RED)
    assert [text.get_text() for text in right.texts if to_rgb(text.get_color()) == to_rgb(RED)].count(
        str(4 + base)
    ) == 3  # at two maps and below the token


def test_what_all_heads_do_is_said_only_if_it_is_so():
    found = fake_entry_effects(3)
    pattern = np.zeros((4, 12, 8, 8), np.float32)
    pattern[0, :3, 7, 4] = 0.5
    heads, entry = found.heads, (found.query, found.key)
    assert entry_text(pattern, heads[:3], entry, 1) == "All heads map key pos 5 to query pos 8"
    assert entry_text(pattern, heads[:1], entry, 0) == "The head maps key pos 4 to query pos 7"
    pattern[0, 1, 7, 2] = 0.6
    assert entry_text(pattern, heads[:3], entry, 1) == "2 of 3 heads map key pos 5 to query pos 8 most"
    assert entry_text(pattern, heads[:1], entry, 1) == "The head maps key pos 5 to query pos 8"


@pytest.mark.parametrize("n", [1, 2, 5, 6, 13])
def test_maps_of_the_right_panel_stay_inside_and_apart(n):
    figure = draw_sketch(fake_entry_effects(1), fake_entry_effects(n), fraction=1.0)
    right = figure.axes[1]
    (left, width), (height, top) = right.get_xlim(), right.get_ylim()
    corners = np.array([np.reshape(mark.get_xy(), 2) for mark in marks(right)])
    assert ((corners > [left, top]) & (corners < [width, height])).all()
    labels = [text for text in right.texts if text.get_text().startswith("L")]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


@pytest.mark.parametrize("length", [3, 14, 30])
def test_prompts_of_other_lengths(length, tmp_path):
    tokens = np.arange(length, dtype=np.int32) % 13
    dense, sparse = fake_entry_effects(7, gated=False, tokens=tokens), fake_entry_effects(2, tokens=tokens)
    figure = draw_sketch(dense, sparse, fraction=1.0)
    figure.canvas.draw()
    positions = [text for text in figure.axes[1].texts if text.get_text().isdigit()]
    assert len(positions) == length + 4
    figures.save(figure, tmp_path / "sketch", ["png"])


def test_own_prompt_key_and_query():
    dense, sparse = FakeModel(10, gated=False).real(), FakeModel(10).real()
    figure = figures.entry_overview(dense, sparse, PROMPT, "large", 7, ANSWER, WRONG, fraction=1.0, columns=2)
    found = entry_effects(sparse, PROMPT, "large", 7, ANSWER, WRONG)
    n = found.needed(1.0)
    assert len(figure.axes[1].collections) == n
    labels = [text for text in texts(figure.axes[1]) if text.startswith("L")]
    assert labels == [head.label for head in found.heads[:n]]


def test_own_prompts_need_wrong_answers():
    model = FakeModel(10).real()
    with pytest.raises(ValueError, match=r"needs wrong=\.\.\., the tokens that answer is measured against"):
        figures.entry_overview(model, model, "The opposite of large is", "large", -1, ANSWER)


def test_same_bytes_again(tmp_path):
    for name in ("first", "second"):
        figures.save(draw_sketch(fake_entry_effects(5), fake_entry_effects(3)), tmp_path / name)
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()
