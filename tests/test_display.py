"""Tables for notebooks: escaped, cut, and HTML only where it is marked as such; bars that move."""

from __future__ import annotations

import contextlib
import time
from importlib import import_module
from typing import ClassVar

import numpy as np
import pytest
import reliability

from attnsparse import find_circuit
from attnsparse._display import PULSE_SECONDS, Html, html_rows, progress_bar
from attnsparse.circuits import (
    attribution,
    candidates,
    component_scores,
    component_values,
    find_component_circuit,
    keep_only,
    knock_out,
    leave_one_out,
    patching_sweep,
)
from attnsparse.tasks import CustomMetric
from attnsparse.tasks.task import Task

scores_module = import_module("attnsparse.circuits.components.scores")
effects_module = import_module("attnsparse.circuits.effects")
values_module = import_module("attnsparse.circuits.components.values")
patching_module = import_module("attnsparse.circuits.components.patching")


def test_cells_are_escaped_unless_they_are_html() -> None:
    found = html_rows(("a", "b"), [("<i>", Html("<b>x</b>")), ("\u202e", "")], 2)
    assert found == (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
        "<tr><td>&lt;i&gt;</td><td><b>x</b></td></tr><tr><td>\\u202e</td><td></td></tr></tbody></table>"
    )


def test_what_is_left_out_is_counted() -> None:
    assert html_rows(("a",), [("x",)], 1_235).endswith("</table><p>and 1,234 more</p>")
    assert "more" not in html_rows(("a",), [], 0)


# ------------------------------------------------------------------------------------------------ bars


class FakeBar:
    """What tqdm would draw, and when."""

    made: ClassVar[list[FakeBar]] = []

    def __init__(self, **options) -> None:
        self.total, self.n, self.delay = options["total"], options["initial"], options["delay"]
        self.text, self.unit, self.last_print_n = options["desc"], options["unit"], 0
        self.drawn: list[float] = []
        self.stages, self.closed = [self.text], False
        FakeBar.made.append(self)

    def refresh(self) -> None:
        self.drawn.append(time.monotonic())

    def update(self, n: int = 1) -> None:
        self.n += n

    def reset(self, total: int) -> None:
        self.total, self.n = total, 0

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        self.stages.append(text)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch) -> list[FakeBar]:
    monkeypatch.setattr("tqdm.auto.tqdm", FakeBar)
    FakeBar.made = []
    return FakeBar.made


def moves_all_the_time(bar: FakeBar, begin: float, end: float) -> bool:
    """Whether it was drawn at least twice in every second."""
    return bool((np.diff([begin, *bar.drawn, end]) < 0.5).all())


SLEEP = 1.6


def sleepy(logits, prompts):
    """A metric that takes long, without a word to the core."""
    time.sleep(SLEEP / 2)
    return logits[:, 0]


def heads_of(model):
    return [(0, head) for head in range(model.config.n_head)]


def task_of(model, n=2):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, model.config.n_vocab, 5).astype(np.int32) for _ in range(2 * n)]
    right, wrong = (tuple(np.array([i], np.int32) for _ in range(n)) for i in (1, 2))
    halves = np.arange(n) % 2 == 0
    parts = (tuple(rows[:n]), tuple(rows[n:]), right, wrong, ("",) * n, halves)
    return Task("small", "logit_diff", None, *parts)


def test_a_bar_moves_while_one_call_of_the_core_is_silent(bars):
    model = reliability.model()
    metric = CustomMetric(sleepy)
    begin = time.monotonic()
    knock_out(model, task_of(model), heads_of(model), metric=metric, progress=True)
    end = time.monotonic()
    [bar] = bars
    assert end - begin >= SLEEP / 2
    assert moves_all_the_time(bar, begin, end)
    assert bar.closed
    assert bar.n == bar.total


def test_a_bar_of_python_moves_between_its_updates(bars):
    begin = time.monotonic()
    with progress_bar(True, 1, "slow", "step") as bar:
        time.sleep(SLEEP)
    assert moves_all_the_time(bar, begin, time.monotonic())
    assert bar.closed
    n = len(bar.drawn)
    time.sleep(2 * PULSE_SECONDS)
    assert len(bar.drawn) == n  # and nobody draws a closed one


def test_a_quick_call_shows_nothing_where_nobody_asked(bars, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar(None, 1, "quick", "step") as bar:
        time.sleep(2 * PULSE_SECONDS)
    assert bar.drawn == []
    with progress_bar(None, 1, "slow", "step") as bar:
        time.sleep(1 + 3 * PULSE_SECONDS)
    assert bar.drawn
    assert bar.delay == 0


def test_one_bar_for_all_stages_of_a_job(bars):
    model = reliability.model()
    task = task_of(model, 4)
    find_circuit(model, task, method="greedy", n_random=2, n_bootstrap=10, progress=True)
    assert len(bars) == 1
    assert {"backward elimination", "random orders"} <= set(bars[0].stages)
    find_component_circuit(model, task, n_random=1, shares=[0.1, 1.0], progress=True)
    assert len(bars) == 2
    assert bars[1].stages == ["component scores", "circuits"]
    assert bars[1].n == bars[1].total


def test_an_evaluation_of_a_model_tells_what_is_done(bars):
    model = reliability.model()
    model.evaluate([[1, 2, 3]] * 5, batch=2, progress=True)
    [bar] = bars
    assert (bar.n, bar.total, bar.closed) == (5, 5, True)


def test_a_bar_is_closed_by_an_error(bars):
    model = reliability.model()

    def fails(logits, prompts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        knock_out(model, task_of(model), heads_of(model), metric=CustomMetric(fails), progress=True)
    assert bars[0].closed
    n = len(bars[0].drawn)
    time.sleep(2 * PULSE_SECONDS)
    assert len(bars[0].drawn) == n


def told_by(monkeypatch, module, call) -> dict[str, list[tuple[int, int]]]:
    """(done, total) that the core tells of each stage."""
    told: dict[str, list[tuple[int, int]]] = {}

    @contextlib.contextmanager
    def recorder(progress):
        yield lambda stage, done, total: told.setdefault(stage, []).append((done, total))

    monkeypatch.setattr(module, "stage_bars", recorder)
    call()
    return told


N_LAYER = 8
CALLS = {
    "knock-out": (effects_module, lambda m, t: knock_out(m, t, candidates(m, t, "head"))),
    "keep only": (effects_module, lambda m, t: keep_only(m, t, candidates(m, t, "head"), range(9))),
    "leave one out": (effects_module, lambda m, t: leave_one_out(m, t, candidates(m, t, "head"))),
    "attribution": (effects_module, lambda m, t: attribution(m, t, "edge", steps=10)),
    "component scores": (scores_module, lambda m, t: component_scores(m, t, method="eap-ig-inputs")),
    "patching": (patching_module, lambda m, t: patching_sweep(m, t, "resid")),
    "circuits": (values_module, lambda m, t: component_values(m, t, np.ones((9, *SHAPE), bool))),
}
SHAPE = (1 + N_LAYER * 5, N_LAYER * 13 + 1)


@pytest.mark.parametrize("stage", CALLS)
def test_one_block_of_one_call_tells_what_is_done_of_it(stage, monkeypatch):
    """Not only that nothing and then that everything is done."""
    model = reliability.model(n_layer=N_LAYER)
    module, call = CALLS[stage]
    told = told_by(monkeypatch, module, lambda: call(model, task_of(model, 4)))
    [(name, reports)] = told.items()
    done = [n for n, _ in reports]
    assert name == stage
    assert len({total for _, total in reports}) == 1
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, reports[0][1])
    assert len(set(done)) >= min(N_LAYER, reports[0][1] + 1)
