"""What an embedded set of transcoders reaches, measured on the files, and what is written beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._version import __version__
from ..io.atomic import write_atomic
from ..model.load import load
from ..transcoders.describe import describe_features
from ..transcoders.label_files import LABELS
from ..transcoders.load import load_transcoders
from .demo_text import LENGTH, DemoText

if TYPE_CHECKING:
    from ..model.model import Model
    from ..transcoders.transcoders import Transcoders

DTYPE = "float16"
TEXT_SEED = 2**63  # never a seed of training
TEXT_BATCHES = 16
HISTORY_EVERY = 20
COLUMNS = ("layer", "n_features", "l0", "explained_variance", "dead")


def prompts(batches: int) -> list[np.ndarray]:
    """`batches` x 32 sequences of new text, as token ids."""
    text = DemoText(seed=TEXT_SEED)
    return [row for i in range(batches) for row in text.batch(i)[0].reshape(-1, LENGTH)]


def write_labels(folder: str | Path) -> None:
    """Write labels.csv into a set's folder: the labels that `describe_features` gives on the card's text."""
    transcoders = load_transcoders(folder)
    model = load(transcoders.model_name)
    found = describe_features(model, transcoders, prompts(TEXT_BATCHES), progress=False)
    table = found.to_pandas()[["layer", "feature", "label"]]
    write_atomic(Path(folder) / LABELS[1], [table.to_csv(index=False, lineterminator="\n").encode()])


def evaluate(transcoders: Transcoders, model: Model, batches: int = TEXT_BATCHES) -> pd.DataFrame:
    """`Transcoders.evaluate` on `batches` x 32 sequences of new text, the loss weighted as in training."""
    text = DemoText(seed=TEXT_SEED)
    _, _, targets, weights = (np.concatenate(arrays) for arrays in zip(*map(text.batch, range(batches))))
    return transcoders.evaluate(model, prompts(batches), targets=targets, loss_mask=weights)


def measure(folder: Path, model: Model, trained: Transcoders) -> dict[str, Any]:
    """The facts of the card: of the set as it lies in `folder`, and the loss before it was rounded."""
    stored = load_transcoders(folder, model)
    table, before = evaluate(stored, model), evaluate(trained, model)
    text = DemoText(seed=TEXT_SEED)
    return {
        "model": model.name,
        "model_digest": model.digest,
        "digest": stored.digest,
        "activation": stored.activation,
        "dtype": DTYPE,
        "text": {**text.describe(), "batches": TEXT_BATCHES},
        "l0": float(table["l0"].mean()),
        "explained_variance": float(table["explained_variance"].mean()),
        "dead": float((table["dead"] * table["n_features"]).sum() / table["n_features"].sum()),
        "cross_entropy": float(table["cross_entropy"][0]),
        "cross_entropy_replaced": float(table["cross_entropy_replaced"][0]),
        "cross_entropy_replaced_before_rounding": float(before["cross_entropy_replaced"][0]),
        "layers": table[list(COLUMNS)].to_dict("records"),
    }


def summary(facts: dict[str, Any]) -> str:
    """One line about a finished set."""
    return (
        f"{facts['model']}: {facts['l0']:.1f} active features per layer and token, explained variance "
        f"{facts['explained_variance']:.4f}, dead {facts['dead']:.1%}, cross-entropy "
        f"{facts['cross_entropy']:.4f}, with all MLPs replaced {facts['cross_entropy_replaced']:.4f}"
    )


def write(folder: Path, facts: dict[str, Any], history: pd.DataFrame, settings: Any) -> None:
    """Write README.md, card.json and history.csv (every HISTORY_EVERY-th step) into a set's folder."""
    shown = {
        name: value for name, value in dataclasses.asdict(settings).items() if name != "checkpoint_every"
    }
    content = {**facts, "settings": shown, "attnsparse": __version__}
    write_atomic(folder / "card.json", [(json.dumps(content, indent=2) + "\n").encode()])
    write_atomic(folder / "README.md", [card(folder.name, facts, shown).encode()])
    rows = history[history["step"] % HISTORY_EVERY == 0].groupby("step", as_index=False).mean()
    text = rows.drop(columns="layer").to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomic(folder / "history.csv", [text.encode()])


def card(name: str, facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """The card (Markdown): what the set is, how it was made, what it reaches, what it is not for."""
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"""---
license: mit
tags: [attnsparse, transcoders, interpretability]
---
# {name}

Per-layer transcoders ({facts["activation"]}) of the embedded model {facts["model"]}: each replaces one MLP.
They read `ln2.hook_normalized` and write `hook_mlp_out`. circuit-tracer's layout, {facts["dtype"]}.

Made by attnsparse {__version__} with `attnsparse train demo-transcoder --seed {settings["seed"]}`; the same
command on the same build and kind of CPU gives the same bytes.

```python
import attnsparse as asp

model = asp.load("{facts["model"]}")
transcoders = asp.load_transcoders("{name}", model)
graph = asp.attribution_graph(model, transcoders, 'The opposite of "large" is "', labels="{name}")
```

`labels.csv` has a label of every feature that is active on {facts["text"]["batches"] * 32} sequences of new
text, as `asp.describe_features` makes them. In the folder above this one, the command that writes it again:

```sh
python -c "from attnsparse.transcoder_card import write_labels; write_labels('{name}')"
```

## Training

On text made as that of the model, with another seed: every token of a sequence counts alike, words of free
choice too. TopK: in each layer the {settings["top_k"]} largest features of a token are active. AdamW, a level
learning rate that falls linearly to 2 % at the end. First weights are rows of the text that lie far apart.
Dead features are trained to explain what the others leave (Gao et al. 2024).
`docs/transcoder-tries.md` says what else was tried.
Settings: {listed}.
`history.csv` has every {HISTORY_EVERY}th step, means over layers.

{_measured(facts)}
SHA-256 of the model: `{facts["model_digest"]}`
SHA-256 of this set: `{facts["digest"]}`

## Not for

Any other model, also not for another training of the same recipe. Features were not chosen by hand, and
labels are automatic: what one stands for has to be looked at where it is active.
"""


def _measured(facts: dict[str, Any]) -> str:
    """The numbers of the card."""
    rows = "\n".join(
        f"| {row['layer']} | {row['n_features']} | {row['l0']:.2f} | {row['explained_variance']:.4f} "
        f"| {row['dead']:.3f} |"
        for row in facts["layers"]
    )
    return f"""## Measured

On {facts["text"]["batches"] * 32} sequences of new text, with the weights as they are stored. l0: active
features per token. dead: share of features that are never active there; some wait for words that are rare.

| | |
| --- | --- |
| cross-entropy of the model | {facts["cross_entropy"]:.4f} |
| with all MLPs replaced | {facts["cross_entropy_replaced"]:.4f} |
| the same before rounding to {facts["dtype"]} | {facts["cross_entropy_replaced_before_rounding"]:.4f} |
| explained variance, mean of layers | {facts["explained_variance"]:.4f} |
| active features per layer and token | {facts["l0"]:.2f} |
| dead features | {facts["dead"]:.3f} |

| layer | features | l0 | explained variance | dead |
| --- | --- | --- | --- | --- |
{rows}
"""
