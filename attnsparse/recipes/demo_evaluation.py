"""The quality of a demo model: its cross-entropy on new text, and every task on held-out prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from .. import tasks
from .._tables import text_table
from ..model.evaluation import token_losses
from ..tasks import words
from .demo_text import END_YEAR_ENTROPY, LENGTH, DemoText

if TYPE_CHECKING:
    from ..model.model import Model

TEXT_SEED = 2**63  # never a seed of training
TEXT_BATCHES = 32
PROMPTS = 100
PROMPT_SEED = 1
MEASURED = ("copy", "induction", "antonym", "ioi", "greater_than")


class Measured(NamedTuple):
    """cross_entropy: nats per predicted token of new text, weighted as in training; floor: its
    unavoidable part (last years); tasks: one row per task and kind of words."""

    cross_entropy: float
    floor: float
    tasks: pd.DataFrame


def measure(model: Model) -> Measured:
    """Cross-entropy on new text and the tasks on held-out prompts, with hard gates and no noise."""
    cross_entropy, floor = cross_entropies(model)
    rows = []
    for name in MEASURED:
        for held_out in (False, True):
            most = 2 * len(words.HELD_OUT_PAIRS) if (name, held_out) == ("antonym", True) else PROMPTS
            task = tasks.make_task(
                name, model._need_tokenizer(), n=most, seed=PROMPT_SEED, held_out_words=held_out
            )
            rows.append(_measure_task(model, task))
    return Measured(cross_entropy, floor, text_table(rows))


def _measure_task(model: Model, task: tasks.Task) -> dict[str, Any]:
    run = model.run(list(task.clean), record="gate", logits="last")
    logits = np.stack([run[i].logits for i in range(len(task))])
    entries = [int(np.count_nonzero(run[i].gate)) for i in range(len(task))]
    n, config = len(task.clean[0]), model.config
    values = tasks.metric(logits, task)
    return {
        "task": task.name,
        "words": "held out" if task.options["held_out_words"] else "trained",
        "prompts": len(task),
        "top1": float(tasks.top1(logits, task).mean()),
        "right_sign": float((values > 0).mean()),
        "metric": task.metric,
        "metric_mean": float(values.mean()),
        "entries_mean": float(np.mean(entries)),
        "entries_most": max(entries),
        "entries_possible": config.n_layer * config.n_head * n * (n + 1) // 2,
    }


def cross_entropies(model: Model) -> tuple[float, float]:
    """Cross-entropy (nats per predicted token, weighted) on new text, and its floor."""
    text, tokenizer = DemoText(seed=TEXT_SEED), model._need_tokenizer()
    centuries = [tokenizer.encode(f" {century}")[0] for century in words.CENTURIES]
    loss = floor = total = 0.0
    for step in range(TEXT_BATCHES):
        inputs, _, targets, weights = text.batch(step)
        run = model.run(list(inputs.reshape(-1, LENGTH)), record=())
        logits = np.concatenate([run[i].logits for i in range(len(run))])
        counts = weights > 0
        loss += float((token_losses(logits[counts], targets[counts]) * weights[counts]).sum())
        floor += END_YEAR_ENTROPY * float(weights[counts & np.isin(inputs, centuries)].sum())
        total += float(weights.sum())
    return loss / total, floor / total
