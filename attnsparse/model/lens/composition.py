"""Composition scores: how much later heads read of what earlier ones write, by their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..._tables import text_column, text_table
from ...items import Head

if TYPE_CHECKING:
    import pandas as pd

    from ..model import Model


def composition_scores(model: Model) -> pd.DataFrame:
    """Q-, K- and V-composition of all pairs of heads, by weights alone.

    The score of an earlier head with the map OV and a later one is ``|OV R| / (|OV| |R|)`` in the Frobenius
    norm, where R is QK of the later head for its queries, QK transposed for its keys, and OV for its values
    ("A Mathematical Framework for Transformer Circuits", 2021). LayerNorm weights and biases do not take
    part, as in TransformerLens's `all_composition_scores` on unprocessed weights.

    Returns
    -------
    pandas.DataFrame
        One row per pair of heads in different layers. Columns: model, sender and receiver ("L0H1", "L5H5"),
        sender_layer, sender_head, receiver_layer, receiver_head, q, k, v (0 where a norm is 0).

    Raises
    ------
    RuntimeError
        While another thread changes the weights.
    """

    scores = model._core.composition()
    layers, heads = scores.shape[1:3]
    before = np.less.outer(np.arange(layers), np.arange(layers))
    pairs = np.nonzero(np.broadcast_to(before[:, None, :, None], scores.shape[1:]))
    labels = np.array([[Head(layer, head).label for head in range(heads)] for layer in range(layers)], object)
    columns = {
        "model": text_column([model.name] * len(pairs[0])),
        "sender": text_column(labels[pairs[0], pairs[1]]),
        "receiver": text_column(labels[pairs[2], pairs[3]]),
    }
    names = ("sender_layer", "sender_head", "receiver_layer", "receiver_head")
    table: pd.DataFrame = text_table(
        {**columns, **dict(zip(names, pairs)), **{way: scores[i][pairs] for i, way in enumerate("qkv")}}
    )
    table.attrs.update({"model": model.name, "digest": model.digest})
    return table
