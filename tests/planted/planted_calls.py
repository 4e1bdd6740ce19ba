"""What the package finds on the graph that was made by hand."""

from __future__ import annotations

import graph_engine as ge
import planted_graph as pg

import attnsparse as asp
from attnsparse.graphs.word_effect import WordEffect, word_effect
from attnsparse.model.tokenizer import Tokenizer

# Everything large's group sends: 1 in wide comes to 105 in the logit, 0.7 and 0.3 of it by two heads; the
# embedding's 2 in out come to 14 + 7 by a third.
WIDE_TO_LOGIT = pg.TOTAL_PER_WIDE * sum(pg.WIDE.values())
LARGE_TO_LOGIT = WIDE_TO_LOGIT + 21

WRONG = ("The", " of")


def by_package(kind, gated, dtype="float32", prompt=pg.PROMPT, target="small", **options):
    config, weights = pg.model(gated)
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    tokenizer = Tokenizer.from_words(pg.WORDS)
    model = asp.Model(asp.Config.from_dict(config), weights, tokenizer, "planted", dtype)
    coders = ge.transcoders(pg.transcoders(kind), dtype)
    return asp.attribution_graph(model, coders, prompt, target, threads=1, progress=False, **options)


def planted_model(gated: bool = True) -> tuple[asp.Model, asp.Transcoders]:
    config, weights = pg.model(gated)
    tokenizer = Tokenizer.from_words(pg.WORDS)
    model = asp.Model(asp.Config.from_dict(config), weights, tokenizer, "planted", "float64")
    return model, ge.transcoders(pg.transcoders("per layer"), "float64")


def find(**options) -> WordEffect:
    return word_effect(*planted_model(), answer="small", **{"wrong": WRONG} | options)
