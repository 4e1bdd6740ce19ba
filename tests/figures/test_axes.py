"""What a figure is drawn on: an Axes of the caller, or what the message says is none."""

from __future__ import annotations

import inspect

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pytest

from attnsparse import figures

ON_AXES = [name for name in figures.__all__ if "ax" in inspect.signature(getattr(figures, name)).parameters]
GIVEN = {"str": "x", "Figure": plt.Figure(), "list": [], "bool": True, "int": 0}


def test_the_figures_that_are_drawn_on_axes():
    whole = {
        "addition_figure",
        "component_and_attention",
        "entry_overview",
        "graph_overview",
        "head_grids",
        "needed_by_task",
        "save",
    }
    assert set(ON_AXES) == set(figures.__all__) - whole


@pytest.mark.parametrize("name", ON_AXES)
@pytest.mark.parametrize("kind", GIVEN)
def test_something_else_is_refused_first(name, kind):
    """Also before wrong values of other arguments, and without a new figure that stays open."""
    draw, open_before = getattr(figures, name), plt.get_fignums()
    needed = [p for p in inspect.signature(draw).parameters.values() if p.default is inspect.Parameter.empty]
    with pytest.raises(TypeError) as caught:
        draw(*[None] * len(needed), ax=GIVEN[kind])
    assert str(caught.value) == f"ax must be an Axes of matplotlib or None, got {kind}"
    assert plt.get_fignums() == open_before
    assert "TypeError" in draw.__doc__


@pytest.mark.parametrize("name", figures.__all__)
@pytest.mark.parametrize("given", [3, None, "x", {}, [4]])
def test_what_cannot_be_drawn_is_refused(name, given):
    """One sentence that says which argument it is, for whatever is given in place of the first one."""
    draw, open_before = getattr(figures, name), plt.get_fignums()
    needed = [p for p in inspect.signature(draw).parameters.values() if p.default is inspect.Parameter.empty]
    with pytest.raises((TypeError, ValueError)) as caught:
        draw(*[given] * len(needed))
    text = str(caught.value)
    assert any(p.name in text or "model" in text for p in needed), text
    assert not any(word in text for word in ("object", "attribute", "subscript", "iterable", "NoneType'"))
    assert plt.get_fignums() == open_before
