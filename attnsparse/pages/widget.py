"""The page of attention as a widget in a cell: it computes exact effects, and says what is chosen."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check
from .._page import HEIGHT, asset
from ..circuits.circuit import Circuit
from ..items import Edge
from ..model.run import Run
from .attention import SCRIPTS, attention_data, checked_runs, style_text
from .effects import checked_metric, exact_effects, metric_text

_ASSETS = Path(__file__).parent / "assets"


def attention_widget(
    runs: Run | Sequence[Run],
    *,
    circuit: Circuit | Sequence[Circuit] | None = None,
    effects: Any = None,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    height: int = HEIGHT,
) -> Any:
    """Make a widget with what `attention_page` shows. It needs the extra ``attnsparse[notebook]``.

    Parameters
    ----------
    runs, circuit
        As in `attention_page`.
    effects : Task or pair of str or int, optional
        The metric, as in `attention_page`. The exact effect of an entry is computed when it is asked for.
    threshold, title, base
        As in `attention_page`.
    height : int, default 640
        Pixels, at least 100.

    Returns
    -------
    anywidget.AnyWidget
        To be shown as the last value of a cell. Its attribute `chosen` is what is looked at: a dict with
        prompt, model, layer, head, and query and key, which are None where no entry is chosen; everything
        counts from 0. ``widget.observe(function, "chosen")`` calls a function when it changes.

    Raises
    ------
    ImportError
        Without anywidget.
    ValueError
        As `attention_page`.
    """
    height = _check.integer(height, "height", 100)
    data = attention_data(runs, circuit, None, 0, threshold, title, base, False)
    metric = None if effects is None else checked_metric(effects)
    data["effect"] = "" if metric is None else metric_text(metric)
    data["live"] = metric is not None
    widget = _new_widget(json.dumps(data, allow_nan=False), height)
    if metric is not None:
        widget.on_msg(_answers(checked_runs(runs), metric))
    return widget


def widget_script() -> str:
    """The module that the front end of a notebook loads."""
    return "\n".join(asset(_ASSETS, name) for name in (*SCRIPTS, "widget.js"))


def _new_widget(data: str, height: int) -> Any:
    try:
        anywidget = importlib.import_module("anywidget")
        traitlets = importlib.import_module("traitlets")
    except ImportError as error:
        raise ImportError(
            "a widget needs anywidget: pip install 'attnsparse[notebook]'; show() shows the page without it"
        ) from error
    kind = type(
        "AttentionWidget",
        (anywidget.AnyWidget,),
        {
            "__module__": __name__,
            "__repr__": lambda _: "attention of attnsparse: run the cell to see it; show() stays in the file",
            "_esm": widget_script(),
            "_css": style_text(),
            "data": traitlets.Unicode().tag(sync=True),
            "height": traitlets.Int().tag(sync=True),
            "chosen": traitlets.Dict().tag(sync=True),
        },
    )
    return kind(data=data, height=height)


def _answers(runs: list[Run], metric: Any) -> Callable[[Any, Any, Any], None]:
    """Answers questions for the effect of an entry; what is wrong is said in the widget."""

    def answer(widget: Any, asked: Any, _: Any) -> None:
        if asked == "here?":
            widget.send({"here": True})
            return
        try:
            run = runs[asked["model"]][asked["prompt"]]
            config = run.model.config
            edge = Edge.parse(list(asked["entry"])).within(config.n_layer, config.n_head, run.n_tokens)
            value = float(exact_effects(run, metric, np.array([edge]), False).values[0])
            widget.send({"asked": asked, "value": value})
        except Exception as error:
            widget.send({"asked": asked, "error": str(error)})

    return answer
