"""Exact effects of single attention entries, for pages: what the metric loses when one entry is ablated."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check
from .._core_types import Metric
from .._core_types import Task as PackedTask
from .._display import stage_bars
from ..circuits.asked import effect_options, packed_task
from ..items import shortened
from ..model import tables
from ..model.run import DEFAULT_MAX_BYTES, Run
from ..tasks.metrics import packed
from ..tasks.task import Task
from .attention_data import Effects, open_entries

_SIGNS = 40


def checked_metric(effects: object) -> Task | tuple[Any, Any]:
    """What effects are measured in: a task, or a right and a wrong token."""
    if isinstance(effects, Task):
        return effects
    if not isinstance(effects, tuple | list) or len(effects) != 2:
        raise TypeError(
            "effects must be a Task or a pair (right token, wrong token), such as ('small', 'big'), got "
            f"{_check.shown(effects)}"
        )
    return effects[0], effects[1]


def metric_text(metric: Task | tuple[Any, Any]) -> str:
    """The metric in words."""
    if isinstance(metric, Task):
        prompts = f"mean of {len(metric)} prompts" if len(metric) > 1 else "one prompt"
        return f"{metric.metric} of {shortened(metric.name, _SIGNS)}, {prompts}"
    right, wrong = (shortened(str(token), _SIGNS) for token in metric)
    return f"logit({right}) - logit({wrong}) after the last token"


def exact_effects(
    run: Run, metric: Task | tuple[Any, Any], entries: np.ndarray, progress: bool | None
) -> Effects:
    """The metric of the whole model minus that with one entry at 0, for each of n entries, int32 [n, 4].

    ValueError for a run that is not the model's own, and for a task whose prompts are not as long.
    """
    if run._altered:
        raise ValueError(
            f"exact effects are of the model as it is, and this run was made with {run._altered}; leave out "
            "effects="
        )
    if isinstance(metric, Task):
        lengths = {len(prompt) for prompt in metric.clean}
        if lengths != {run.n_tokens}:
            found = f"{min(lengths)}" if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"
            raise ValueError(
                f"the prompts of task {metric.name!r:.60} have {found} tokens, and this run has "
                f"{run.n_tokens}: entries at its positions are not in them"
            )
    core = run.model._core
    asked = packed_task(run.model, metric, None) if isinstance(metric, Task) else _of_run(run, metric)
    options = effect_options(run.model, "edge", "zero", None, DEFAULT_MAX_BYTES)
    entries = np.ascontiguousarray(entries, np.int32).reshape(-1, 4)
    whole = core.whole(asked, 0)
    with stage_bars(progress) as tell:
        left = core.knock_out(asked, entries, options, 0, tell)
    return Effects(entries, (whole - left).mean(axis=1))


def strongest_entries(run: Run, n: int) -> np.ndarray:
    """The n open entries with the largest contributions, or weights without v; int32 [m, 4]."""
    *places, size = open_entries(run)
    if "v" in run.recorded:
        layer, head, _, key = places
        size = size * run.value_norms()[1][layer, head, key]
    chosen = np.sort(np.argsort(-size, kind="stable")[:n])
    return np.stack(places, axis=1)[chosen].astype(np.int32)


def _of_run(run: Run, pair: tuple[Any, Any]) -> PackedTask:
    """The prompt of a run, with the difference of two logits after its last token."""
    right, wrong = (tables.token_id(run, token) for token in pair)
    if right == wrong:
        raise ValueError(f"effects: the right and the wrong token are the same, {pair[0]!r:.60}")
    tokens = np.ascontiguousarray(run.tokens, np.int32)
    metric = Metric("logit_diff", *packed([[right]]), *packed([[wrong]]))
    return PackedTask(tokens, np.array([0, len(tokens)], np.int64), tokens, metric)
