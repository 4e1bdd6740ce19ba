"""The page of attention: one HTML file to look at runs and circuits in, without a server or the network.

The numbers are in the page; the scripts in assets/ draw them. The widget of a notebook has the same scripts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import _check
from .._display import escaped
from .._page import HEIGHT, asset, escaped_json, filled, joined, show_page, write_page
from .._version import __version__
from ..circuits.circuit import Circuit
from ..items import shortened
from ..model.run import Run
from .attention_data import Effects, circuit_alone, circuit_data, model_data, prompt_data
from .effects import checked_metric, exact_effects, metric_text, strongest_entries

MAX_BYTES = 50_000_000
"""The largest page that is made."""
_MAX_ITEMS = 5000  # of a circuit, the best ones
_ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "texts.js", "entries.js", "colours.js", "model.js", "state.js", "tip.js", "grid.js", "map.js",
    "sentence.js", "list.js", "card.js", "bar.js", "keys.js", "app.js",
)  # fmt: skip
"""What the page and the widget share, in this order; the last script differs."""
_ADVICE = "raise threshold, choose fewer prompts, or run with record='edges'"


def attention_page(
    runs: Run | Sequence[Run],
    path: str | os.PathLike[str] | None = None,
    *,
    circuit: Circuit | Sequence[Circuit] | None = None,
    effects: Any = None,
    n_effects: int = 1000,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    progress: bool | None = None,
) -> str | Path:
    """Make one page to look at the attention of runs in a browser; it needs no other file and no network.

    The page has a grid of all heads, the map of one head, the tokens as sentences with lines between them,
    and a list of entries. Several runs are shown beside each other. The part of the address after ``#``
    leads to a view, a head and an entry.

    Parameters
    ----------
    runs : Run or sequence of Run
        Runs of the same prompts by one model or several, with `pattern` or ``record="edges"``. With q, k
        and v (as in ``record="attention"``), entries have their contributions, and gates their expected
        values.
    path : str or os.PathLike, optional
        The file. Default: return the page as text.
    circuit : Circuit or sequence of Circuit, optional
        Attention edges or heads, best first, of the models of these runs; the page has a slider for how many
        are marked.
    effects : Task or pair of str or int, optional
        Also compute exact effects of single entries: of ablating an entry on the metric of a task whose
        prompts have as many tokens, mean over its prompts, or on logit(right) - logit(wrong) after the last
        token for a pair (right, wrong) of single tokens.
    n_effects : int, default 1000
        Entries of each prompt whose effect is computed: those with the largest contributions.
    threshold : float, default 0
        Entries of this weight and below are left out. The page says how many.
    title : str, optional
        Shown in place of the prompt.
    base : int, default 0
        Number of the first position, 0 or 1.
    progress : bool, optional
        Show a bar on stderr while effects are computed. Default: in terminals and notebooks only.

    Returns
    -------
    str or pathlib.Path
        The page, or the file if a path is given.

    Raises
    ------
    ValueError
        For runs of different prompts, runs without patterns and edges, a circuit of another model or of other
        positions, a page above 50 MB, and numbers out of range.
    TypeError
        For other objects.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        For a file above 20 MB.
    """
    data = attention_data(runs, circuit, effects, n_effects, threshold, title, base, progress)
    page = page_of(data)
    return page.decode("ascii") if path is None else write_page(path, page, _ADVICE)


def show_attention(
    runs: Run | Sequence[Run],
    *,
    circuit: Circuit | Sequence[Circuit] | None = None,
    effects: Any = None,
    n_effects: int = 1000,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    progress: bool | None = None,
    height: int = HEIGHT,
    open_browser: bool = False,
) -> None:
    """Show the page of `attention_page`: in a notebook below the cell, elsewhere as a temporary file.

    Parameters
    ----------
    runs, circuit, effects, n_effects, threshold, title, base, progress
        As in `attention_page`.
    height : int, default 640
        Pixels in a notebook, at least 100.
    open_browser : bool, default False
        Open the temporary file in a browser. Without this, only its path is printed.

    Raises
    ------
    ValueError
        As `attention_page`; in a notebook also for a page above 20 MB.
    """
    height, open_browser = _check.integer(height, "height", 100), _check.flag(open_browser, "open_browser")
    data = attention_data(runs, circuit, effects, n_effects, threshold, title, base, progress)
    show_page(page_of(data), "attention", height, open_browser, _ADVICE)


def circuit_page(
    circuit: Circuit, path: str | os.PathLike[str] | None, title: str | None, base: int
) -> str | Path:
    """See `Circuit.to_html`."""
    page = page_of(_circuit_alone(circuit, title, base))
    return page.decode("ascii") if path is None else write_page(path, page, _ADVICE)


def show_circuit(circuit: Circuit, title: str | None, base: int, height: int, open_browser: bool) -> None:
    """See `Circuit.show`."""
    height, open_browser = _check.integer(height, "height", 100), _check.flag(open_browser, "open_browser")
    show_page(page_of(_circuit_alone(circuit, title, base)), "circuit", height, open_browser, _ADVICE)


def _circuit_alone(circuit: Circuit, title: str | None, base: int) -> dict[str, Any]:
    prompt, model = circuit_alone(circuit, _MAX_ITEMS)
    shown = title if title is not None else f"Circuit of {circuit.task_name} in {circuit.model_name}"
    return _data([prompt], [model], "", shown, base)


def attention_data(
    runs: Run | Sequence[Run],
    circuit: Circuit | Sequence[Circuit] | None,
    effects: Any,
    n_effects: int,
    threshold: float,
    title: str | None,
    base: int,
    progress: bool | None,
) -> dict[str, Any]:
    """What the scripts read; see `attention_page`."""
    every, n_effects = checked_runs(runs), _check.integer(n_effects, "n_effects", 0)
    threshold = _check.number(threshold, "threshold", 0.0, 1.0)
    metric = None if effects is None else checked_metric(effects)
    found = [_effects(run, metric, n_effects, progress) for run in every]
    models = [model_data(run, threshold, of_run) for run, of_run in zip(every, found)]
    for index, one in _placed(circuit, every):
        models[index]["circuit"] = circuit_data(one, _MAX_ITEMS)
    prompts = [prompt_data(every[0][i]) for i in range(len(every[0]))]
    shown = (
        title
        if title is not None
        else prompts[0]["text"] or shortened(" ".join(prompts[0]["tokens"][:20]), 70)
    )
    return _data(prompts, models, "" if metric is None else metric_text(metric), shown, base)


def _data(
    prompts: list[dict[str, Any]], models: list[dict[str, Any]], effect: str, title: str, base: int
) -> dict[str, Any]:
    if not isinstance(title, str):
        raise TypeError(f"title must be a string, got {type(title).__name__}")
    return {
        "version": 1,
        "title": shortened(title, 160),
        "base": _check.base(base),
        "effect": effect,
        "prompts": prompts,
        "models": models,
    }


def page_of(data: dict[str, Any]) -> bytes:
    """The page as bytes, all of them ASCII."""
    text = escaped_json(data)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"this page would have {len(text) / 1e6:.0f} MB, and at most {MAX_BYTES // 10**6} MB are made; "
            f"{_ADVICE}"
        )
    script = joined(asset(_ASSETS, name) for name in (*SCRIPTS, "page.js"))
    parts = {"title": escaped(data["title"]), "data": text, "made": f"attnsparse {__version__}"}
    return filled(asset(_ASSETS, "attention.html"), parts, script, style_text())


def style_text() -> str:
    """The style that page and widget share."""
    return asset(_ASSETS, "attention.css")


def checked_runs(runs: Run | Sequence[Run]) -> list[Run]:
    """Runs of the same prompts, with what a page needs."""
    every: list[Any] = list(runs) if isinstance(runs, list | tuple) else [runs]
    if not every:
        raise ValueError("runs must hold at least one run, got an empty list")
    for run in every:
        _check.instance(run, Run, "runs")
        if not {"pattern", "edges"} & set(run.recorded):
            raise ValueError(
                "a page needs the pattern or the open edges of a run: run with record='attention' or 'edges'"
            )
        if len(run) != len(every[0]):
            raise ValueError(f"runs must have the same prompts, got {len(every[0])} and {len(run)} of them")
        for i in range(len(run)):
            if run[i].token_strings != every[0][i].token_strings:
                raise ValueError(
                    f"runs must have the same prompts: the tokens of prompt {i} differ between "
                    f"{every[0].model.name!r:.60} and {run.model.name!r:.60}"
                )
    return every


def _effects(run: Run, metric: Any, n_effects: int, progress: bool | None) -> list[Effects | None]:
    if metric is None or n_effects == 0:
        return [None] * len(run)
    return [
        exact_effects(run[i], metric, strongest_entries(run[i], n_effects), progress) for i in range(len(run))
    ]


def _placed(circuit: Circuit | Sequence[Circuit] | None, runs: list[Run]) -> list[tuple[int, Circuit]]:
    """(number of the run, circuit of its model) for each circuit."""
    found = []
    given: list[Any] = list(circuit) if isinstance(circuit, list | tuple) else [circuit]
    for one in given if circuit is not None else ():
        _check.instance(one, Circuit, "circuit")
        own = [i for i, run in enumerate(runs) if run.model.digest == one.model_digest]
        if not own:
            names = ", ".join(repr(run.model.name)[:60] for run in runs)
            raise ValueError(f"circuit is of the model {one.model_name!r:.60}, and the runs are of {names}")
        last = int(one.items[:, 2:].max(initial=0))
        if one.items.shape[1] > 2 and last >= min(run[i].n_tokens for run in runs for i in range(len(run))):
            raise ValueError(
                f"circuit has items at position {last}, and a prompt of these runs is shorter; use prompts "
                "as long as those of its task"
            )
        found += [(i, one) for i in own]
    return found
