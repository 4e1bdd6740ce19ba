"""The quality of a set of transcoders on new text, measured on its files, and labels of its features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..io.atomic import write_atomic
from ..model.load import load
from ..transcoders import describe_features
from ..transcoders.label_files import LABELS
from ..transcoders.load import load_transcoders
from .demo_text import LENGTH, DemoText

if TYPE_CHECKING:
    from ..model.model import Model
    from ..transcoders.transcoders import Transcoders

DTYPE = "float16"
TEXT_SEED = 2**63  # never a seed of training
TEXT_BATCHES = 16
COLUMNS = ("layer", "n_features", "l0", "explained_variance", "dead")


class SetFacts(TypedDict):
    """What the card of a set gives, as plain numbers; `card.json` has them too."""

    model: str
    model_digest: str
    digest: str
    activation: str
    dtype: str
    text: dict[str, Any]
    """`DemoText.describe` of the text measured on, and how many of its batches."""
    l0: float
    explained_variance: float
    dead: float
    cross_entropy: float
    cross_entropy_replaced: float
    cross_entropy_replaced_before_rounding: float
    layers: list[dict[str, Any]]
    """One row of COLUMNS per layer."""


def prompts(batches: int) -> list[NDArray[np.int32]]:
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


def measure(folder: Path, model: Model, trained: Transcoders) -> SetFacts:
    """The facts of the card: of the set in `folder`, and the loss before it was rounded."""
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
        "layers": [dict(zip(COLUMNS, row)) for row in zip(*(table[name].tolist() for name in COLUMNS))],
    }


def summary(facts: SetFacts) -> str:
    """One line about a finished set."""
    return (
        f"{facts['model']}: {facts['l0']:.1f} active features per layer and token, explained variance "
        f"{facts['explained_variance']:.4f}, dead {facts['dead']:.1%}, cross-entropy "
        f"{facts['cross_entropy']:.4f}, with all MLPs replaced {facts['cross_entropy_replaced']:.4f}"
    )
