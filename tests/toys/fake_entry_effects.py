"""Entry effects with given numbers, on the run of a fake model."""

from __future__ import annotations

import numpy as np
from fake_run import PROMPT, FakeModel

from attnsparse.circuits.entry_effects import EntryEffects
from attnsparse.items import Head

ANSWER = " small"


def fake_entry_effects(
    n: int, *, gated: bool = True, name: str = "model", n_layer: int = 4, tokens=None
) -> EntryEffects:
    """n heads whose entries have and keep 1/n each, on the run of a fake model."""
    model = FakeModel(10, gated=gated, n_layer=n_layer, n_head=12, d_model=24, d_head=2, name=name, n_ctx=40)
    run = model.run(PROMPT if tokens is None else tokens)
    heads = tuple(Head(*divmod(i, 12)) for i in range(n))
    key, query = (4, 7) if tokens is None else (2, len(tokens) - 1)
    weight = np.array([run.pattern[(*head, query, key)] for head in heads], np.float64)
    return EntryEffects(
        run=run, key=key, query=query, answer=ANSWER, ablation="zero", heads=heads, weight=weight,
        effect=np.full(n, 0.5), kept=np.linspace(0, 1.1, n + 1), full=9.0, without=-1.0, answer_is_top=True,
    )  # fmt: skip
