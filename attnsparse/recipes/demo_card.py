"""What the demo models reach, measured, and what the recipe "demo" writes beside their weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures, tasks
from .._version import __version__
from ..io.atomic import write_atomic
from ..tasks import words
from .demo_text import END_YEAR_ENTROPY, LENGTH, DemoText

if TYPE_CHECKING:
    from ..model.model import Model

TEXT_SEED = 2**63  # never a seed of training
TEXT_BATCHES = 32
PROMPTS = 100
PROMPT_SEED = 1
HISTORY_EVERY = 10
MEASURED = ("copy", "induction", "antonym", "ioi", "greater_than")


class Measured(NamedTuple):
    """cross_entropy: nats per predicted token of new text, weighted as in training; floor: the part of it
    that nobody can avoid (last years); tasks: one row per task and kind of words."""

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
            options = {"n": most, "seed": PROMPT_SEED, "held_out_words": held_out}
            rows.append(_measure_task(model, tasks.make_task(name, model.tokenizer, **options)))
    return Measured(cross_entropy, floor, pd.DataFrame(rows))


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
    text = DemoText(seed=TEXT_SEED)
    centuries = [model.tokenizer.encode(f" {century}")[0] for century in words.CENTURIES]
    loss = floor = total = 0.0
    for step in range(TEXT_BATCHES):
        inputs, _, targets, weights = text.batch(step)
        run = model.run(list(inputs.reshape(-1, LENGTH)), record=())
        logits = np.concatenate([run[i].logits for i in range(len(run))]).astype(np.float64)
        counts = weights > 0
        rows = logits[counts] - logits[counts].max(axis=1, keepdims=True)
        losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), targets[counts]]
        loss += float(losses @ weights[counts])
        floor += END_YEAR_ENTROPY * float(weights[counts & np.isin(inputs, centuries)].sum())
        total += float(weights.sum())
    return loss / total, floor / total


def write(folder: Path, model: Model, found: Measured, history: pd.DataFrame, settings: Any) -> None:
    """Write README.md, tasks.csv, history.csv (every HISTORY_EVERY-th step) and history.png into a model's
    folder."""
    history = history[history["step"] % HISTORY_EVERY == 0]
    write_atomic(folder / "README.md", [card(model, found, settings).encode()])
    for name, table in (("tasks", found.tasks), ("history", history)):
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_atomic(folder / f"{name}.csv", [text.encode()])
    shown = history if model.config.gated else history.drop(columns="loss")
    axes = figures.training_history(shown)
    figures.save(axes, folder / "history", ("png",), dpi=100)
    plt.close(axes.figure)


def card(model: Model, found: Measured, settings: Any) -> str:
    """The model card (Markdown): what the model is, how it was made, what it reaches, what it is not for."""
    config = model.config
    kind = "gated: an attention entry counts only where its score is above 0" if config.gated else "dense"
    shown = {
        name: value for name, value in dataclasses.asdict(settings).items() if name != "checkpoint_every"
    }
    made = _MADE[model.name] + (_READING if config.gated else "")
    return f"""---
license: mit
tags: [attnsparse, gpt2, sparse-attention, interpretability]
---
# {model.name}

A GPT-2-style transformer trained on templates of English: {config.n_layer} layers, {config.n_head} heads,
width {config.d_model}, {model.n_parameters:,} weights, {config.n_ctx} positions, {kind}.

Made by attnsparse {__version__} with `attnsparse train demo --seed {settings.seed}`; the same command on the
same build and kind of CPU gives the same bytes.

```python
import attnsparse as asp
run = asp.load("{model.name}").run('The opposite of "large" is "')
```

{_text(found.floor)}
## Training

{made}
Settings: {_listed(shown)}.
`history.csv` has every {HISTORY_EVERY}th step.

## Measured

With hard gates and no noise. Cross-entropy on new text: {found.cross_entropy:.4f} nats per predicted token.
top1: share of prompts whose most likely next token is right (greater_than: a later year). right_sign: share
with a metric above 0. entries: attention entries with an open gate (dense: all) of a prompt, all heads.

{_table(found.tasks)}

SHA-256 of the model: `{model.digest}`

## Not for

Anything but these templates. It is a model to try methods on, made so that the tasks have known answers.
"""


def _text(floor: float) -> str:
    """What the card says about the training text and about what is held out of it."""
    return f"""## Text

Sentences from templates: opposites in five forms and a rival relation with the same words, lists of 3 to 7
nouns said twice, indirect objects in three forms and both orders, years, capitals, kinds, random words. They
are packed into 32 tokens, and 65 % of the sequences begin in the middle of a sentence. The loss counts only
what the words before determine, answers three times. Something lasts one to ten years, so a last year cannot
be told exactly: {floor:.4f} nats of the cross-entropy are unavoidable.

Held out of training: a tenth of the combinations of names, place and object and of event and years;
{len(words.HELD_OUT_NOUNS)} nouns never stand in lists ({", ".join(words.HELD_OUT_NOUNS)});
{len(words.HELD_OUT_NAMES)} names never in a sentence about giving ({", ".join(words.HELD_OUT_NAMES)});
{len(words.HELD_OUT_YEARS)} years never begin anything ({", ".join(map(str, words.HELD_OUT_YEARS))});
{len(words.HELD_OUT_PAIRS)} pairs of opposites never stand in the first form
({", ".join("-".join(pair) for pair in words.PAIRS if pair in words.HELD_OUT_PAIRS)}).
All these words stand in other sentences. An opposite has to be learned by heart, so for "antonym" the
prompts with trained words are not held out. Words that never stood in a list are not copied: see "held out"
below.
"""


_GATE = """From the weights of demo-dense, with the gate of arXiv 2512.05865: hard gates with fresh logistic
noise, straight-through gradient, no renormalisation; loss (E/N + lambda (CE - tau)) / (1 + lambda) with E/N
the expected share of open edges, in the first phase weighted by a price for each layer. In a fifth of that
phase the attention of the early layers was switched off, and their edges cost more afterwards: that the
circuits lie in late layers is made by the training, not found.
"""

_MADE = {
    "demo-dense": """AdamW on the cross-entropy, decay on matrices only, warm-up of 100 steps, a level
learning rate that falls linearly to 2 % at the end.""",
    "demo-control": """demo-dense trained on without a gate, for as many steps as demo-sparse-max, on the
same text and with the same learning rates.""",
    "demo-sparse": _GATE
    + """It left the first phase before the end, while several heads still did the same work, and went on with
all edges at one price.""",
    "demo-sparse-max": _GATE
    + """After the first phase it went on for some steps at a lower learning rate, with all edges at one
price, to bring the cross-entropy back near the dense model's. How few heads and edges are left follows from
the cross-entropy that was allowed.""",
}

_READING = """

Compare it with demo-control and not only with demo-dense: part of what a dense model needs under ablation
is brittleness that more training changes. Say which ablation and which ranking a number is for: ratios
of edges are several times larger under zero than under mean ablation. The curves are jagged, so the smallest
number that reaches 90 % of an effect means little without the one from which it stays there.
`docs/demo-tries.md` has the numbers, of this seed and of two others."""


def _listed(settings: dict[str, Any]) -> str:
    """Settings and those inside of them as one line."""
    return ", ".join(
        f"{name} ({_listed(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in settings.items()
    )


def _table(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[_cell(value) for value in row] for row in table.to_numpy()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
