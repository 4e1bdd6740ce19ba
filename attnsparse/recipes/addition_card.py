"""What the recipe "addition" writes beside the weights: model card, history and its figure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures
from .._version import __version__
from ..io.atomic import write_atomic
from ..reproduce.addition import DENSE_THRESHOLD, Evaluation
from ..tasks import addition

if TYPE_CHECKING:
    from ..model.model import Model


def facts(model: Model, found: Evaluation, held_out: np.ndarray) -> dict[str, Any]:
    """What is measured on the finished model, as plain numbers."""
    config = model.config
    possible = config.n_layer * config.n_head * addition.N_TOKENS * (addition.N_TOKENS + 1) // 2
    return {
        "model": model.name,
        "sums": len(found.right),
        "right": int(found.right.sum()),
        "held_out": len(held_out),
        "held_out_right": int(found.right[held_out].sum()),
        "cross_entropy": float(found.cross_entropy),
        "edge_is": "open gate" if config.gated else f"entry above {DENSE_THRESHOLD:g}",
        "edges_median": float(np.median(found.n_edges)),
        "edges_max": int(found.n_edges.max()),
        "edges_possible": possible,
        "heads_used": int(found.used.any(axis=(2, 3)).sum()),
        "heads": config.n_layer * config.n_head,
        "parameters": config.n_parameters(),
        "digest": model.digest,
    }


def summary(facts: dict[str, Any]) -> str:
    """One line about a finished model."""
    return (
        f"{facts['model']}: {facts['right']:,} of {facts['sums']:,} sums right "
        f"({facts['held_out_right']:,} of {facts['held_out']:,} held out), cross-entropy "
        f"{facts['cross_entropy']:.2g}, edges {facts['edges_median']:g} (most {facts['edges_max']}) "
        f"of {facts['edges_possible']:,}"
    )


def write(folder: Path, facts: dict[str, Any], history: pd.DataFrame, settings: Any) -> None:
    """Write README.md, history.csv and history.png into a model's folder, each complete or not at all."""
    write_atomic(folder / "README.md", [card(facts, settings).encode()])
    text = history.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomic(folder / "history.csv", [text.encode()])
    if history["tau"].notna().any():
        axes = figures.training_history(history, target=settings.tau)
    else:  # a dense model's loss is its cross-entropy
        axes = figures.training_history(history.drop(columns="loss"))
    figures.save(axes, folder / "history", ("png",), dpi=100)
    plt.close(axes.figure)


def card(facts: dict[str, Any], settings: Any) -> str:
    """The model card (Markdown): what the model is, how it was made, what it reaches, what it is not for."""
    sparse = facts["edge_is"] == "open gate"
    gate = "gated: an attention entry counts only where its score is above 0" if sparse else "dense"
    made = _SPARSE if sparse else _DENSE
    chosen = ", ".join(f"{name} {value:g}" for name, value in _chosen(settings, sparse).items())
    right = _share(facts["right"], facts["sums"])
    held_out_right = _share(facts["held_out_right"], facts["held_out"])
    return f"""---
license: mit
tags: [attnsparse, gpt2, sparse-attention, interpretability]
---
# {facts["model"]}

A GPT-2-style transformer that adds two numbers of two digits: 4 layers, 4 heads, width 64,
{facts["parameters"]:,} weights, {gate}.

Made by attnsparse {__version__} with `attnsparse train addition --seed {settings.seed}`; the same
command on the same build and kind of CPU gives the same bytes.

```python
import attnsparse as asp
run = asp.load("{facts["model"]}").run("53+21=074EE")
run.open_edges()
```

## Text

Eleven tokens out of 14 (`0-9 + = ? E`): `5 3 + 2 1 = 0 7 4 E E`, the answer with three digits and two end
signs. Only columns 5 to 8 are trained and judged; they predict the hundreds, tens, ones and the first end
sign. Of the {facts["sums"]:,} ordered pairs {facts["held_out"]:,} are held out, the same for every seed.

## Training

{made}
Settings: {chosen}.
`history.csv` has every step.

## Measured

A sum is right if all four predicted tokens are the most likely ones, given the true answer so far.

| | |
|---|---|
| right, all {facts["sums"]:,} sums | {right} |
| right, the {facts["held_out"]:,} held-out sums | {held_out_right} |
| cross-entropy, nats per predicted token, all sums | {facts["cross_entropy"]:.3g} |
| edges of a sum ({facts["edge_is"]}), median | {facts["edges_median"]:g} of {facts["edges_possible"]:,} |
| edges of a sum, most | {facts["edges_max"]} |
| heads with an edge in any sum | {facts["heads_used"]} of {facts["heads"]} |
| SHA-256 of the model | `{facts["digest"]}` |

## Not for

Anything but this toy task: other lengths, signs or encodings give nonsense. The seed was chosen out of
several for few edges (docs/addition-tries.md lists them all), so the number of edges is a best case, not an
average.
"""


_DENSE = """AdamW on the cross-entropy, decay on matrices only, warm-up of 100 steps, then a cosine to 5 %
of the learning rate."""

_SPARSE = """From the weights of addition-dense, with the gate of arXiv 2512.05865: hard gates with fresh
logistic noise, straight-through gradient, no renormalisation; loss (E/N + lambda (CE - tau)) / (1 + lambda)
with E/N the expected share of open edges. The gate's bias falls from 5 to 0 over the first quarter; lambda
follows the cross-entropy between its smallest value and 1; in the tail the learning rate falls to 2 % and
lambda has a higher floor. The finished model is judged with hard gates and without noise."""


def _chosen(settings: Any, sparse: bool) -> dict[str, float]:
    """The settings that made this model."""
    own = ("sparse_", "tau", "multiplier_", "tail") if sparse else ("init_", "dense_")
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name == "seed" or name.startswith(own)}


def _share(part: int, whole: int) -> str:
    """A share in per cent; only exactly all is written as 100 %."""
    percent = 100 * part / whole
    return "100 %" if part == whole else f"{min(percent, 99.99):.2f} % ({part:,} of {whole:,})"
