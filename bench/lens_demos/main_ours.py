"""The steps of the main demo in attnsparse."""
# ruff: noqa: F841, RET504, RUF059, RUF100

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import attnsparse as asp
from attnsparse.model import FactoredMatrix


def loss(s: SimpleNamespace) -> Any:
    loss = s.model.run(s.text, "loss", logits="none").loss
    return loss


def cache(s: SimpleNamespace) -> Any:
    logits, s.cache = s.model.run_with_cache(s.text, remove_batch_dim=True)
    str_tokens = s.model.to_str_tokens(s.text)
    pattern = s.cache["pattern", 0, "attn"]
    return logits, pattern


def one_layer(s: SimpleNamespace) -> Any:
    name = "blocks.0.attn.hook_pattern"
    _, cache = s.model.run_with_cache(s.text, name, stop_at_layer=1, remove_batch_dim=True)
    pattern = cache[name]
    return pattern


def look(s: SimpleNamespace) -> Any:
    page = s.model.run(s.text).to_html()
    return None


def ablation(s: SimpleNamespace) -> Any:
    original = s.model.run(s.text, "loss", logits="none").loss
    ablated = s.model.run(s.text, "loss", logits="none", ablate="L0H1").loss
    return original, ablated


def patching(s: SimpleNamespace) -> Any:
    pair = {"clean": [s.clean], "corrupted": [s.corrupted], "answer": [" Tom"], "wrong": [" Emma"]}
    task = asp.tasks.from_dataframe(pd.DataFrame(pair), s.model.tokenizer)
    result = asp.circuits.patching_sweep(s.model, task, "resid").recovered
    return result


def repeated(s: SimpleNamespace) -> Any:
    runs = s.model.run(list(s.repeated), "loss", logits="none")
    by_position = np.mean([run.token_loss for run in runs], axis=0)
    return by_position


def induction(s: SimpleNamespace) -> Any:
    scores = np.zeros((s.model.cfg.n_layers, s.model.cfg.n_heads))

    def induction_score_hook(pattern, hook):
        stripe = pattern.diagonal(1 - s.half, -2, -1)
        scores[hook.layer()] = stripe.mean((0, -1))

    s.model.run_with_hooks(
        list(s.repeated),
        [(lambda name: name.endswith("pattern"), induction_score_hook)],
        "none",
        logits="none",
    )
    return scores


def parameters(s: SimpleNamespace) -> Any:
    block, others = {}, {}
    for name, parameter in s.model.parameters().items():
        (block if name.startswith("h.0.") else others)[name] = parameter.shape
    return None


def hooks(s: SimpleNamespace) -> Any:
    _, cache = s.model.run_with_cache(s.text, lambda name: not name.startswith("blocks") or ".0." in name)
    shapes = {name: activation.shape for name, activation in cache.items()}
    return shapes


def unembedding_bias(s: SimpleNamespace) -> Any:
    bias = s.model.ln_final_b @ s.model.W_U
    order = bias.argsort()[::-1]
    most = [(bias[i], s.model.to_string(i)) for i in order[:20]]
    least = [(bias[i], s.model.to_string(i)) for i in order[-20:]]
    ratio = np.exp(bias[s.model.to_single_token(" Tom")] - bias[s.model.to_single_token(" Emma")])
    return ratio, most[0][0] - least[-1][0]


def tokens(s: SimpleNamespace) -> Any:
    str_tokens = s.model.to_str_tokens(s.text)
    tokens = s.model.to_tokens(s.text)
    probability = s.model.run(s.text).top(tokens=" cat", position=-1).probability[0]
    text = s.model.to_string(tokens)
    first = s.model.get_token_position(" cat", s.cats)
    last = s.model.get_token_position(" cat", s.cats, mode="last")
    return tokens, probability, first, last, len(str_tokens), len(text)


def factored(s: SimpleNamespace) -> Any:
    A, B, C = (s.repeated[:5, :n] / 1000 for n in (2, 5, 30))
    AB = FactoredMatrix(A, B[:2])
    norm, eigenvalues, singular = AB.norm(), AB.eigenvalues, AB.S
    sizes = *AB.shape, AB.A.shape[-1]
    ABC = AB @ C
    product = AB.AB
    return norm, sorted(abs(eigenvalues)), singular, sizes, ABC.norm(), product


def copying(s: SimpleNamespace) -> Any:
    eigenvalues = s.model.OV().eigenvalues
    score = eigenvalues.sum(-1).real / abs(eigenvalues).sum(-1)
    return score


def full_copying(s: SimpleNamespace) -> Any:
    full = s.model.W_E @ s.model.OV() @ s.model.W_U
    eigenvalues = full.eigenvalues
    score = eigenvalues.sum(-1).real / abs(eigenvalues).sum(-1)
    return score


def generation(s: SimpleNamespace) -> Any:
    tokens = s.model.generate(s.clean, 50).tokens
    return tokens
