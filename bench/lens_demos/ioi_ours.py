"""The steps of the exploratory analysis demo in attnsparse."""
# ruff: noqa: F841, RET504, RUF059, RUF100

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import attnsparse as asp
from attnsparse.circuits import patching_sweep


def test_prompt(s: SimpleNamespace) -> Any:
    run = s.model.run(s.prompt)
    answer, top = run.top(tokens=" Tom", position=-1), run.top(10, position=-1)
    return None


def prompts(s: SimpleNamespace) -> Any:
    rows = []
    for text, names in zip(s.formats, s.names):
        for right, wrong in (names, names[::-1]):
            rows.append((text.format(wrong), text.format(right), right, wrong))
    table = pd.DataFrame(rows, columns=["clean", "corrupted", "answer", "wrong"])
    s.task = asp.tasks.from_dataframe(table, s.model.tokenizer)
    return np.hstack([s.task.answers, s.task.wrong])


def difference(s: SimpleNamespace) -> Any:
    s.logits, s.cache = s.model.run_with_cache(list(s.task.clean))
    per_prompt = asp.tasks.metric(s.logits[:, -1], s.task)
    s.average = per_prompt.mean()
    return per_prompt, s.average


def direction(s: SimpleNamespace) -> Any:
    s.answers = np.concatenate(s.task.answers), np.concatenate(s.task.wrong)
    final = s.cache["resid_post", -1][None, :, -1]
    average = s.cache.logit_attrs(final, *s.answers, pos_slice=-1).mean()
    return average


def logit_lens(s: SimpleNamespace) -> Any:
    stack, labels = s.cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    lens = s.cache.logit_attrs(stack, *s.answers, pos_slice=-1).mean(-1)
    return lens


def layers(s: SimpleNamespace) -> Any:
    stack, labels = s.cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    per_layer = s.cache.logit_attrs(stack, *s.answers, pos_slice=-1).mean(-1)
    return per_layer


def heads(s: SimpleNamespace) -> Any:
    stack, labels = s.cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    s.per_head = s.cache.logit_attrs(stack, *s.answers, pos_slice=-1).mean(-1)
    s.per_head = s.per_head.reshape(s.model.cfg.n_layers, s.model.cfg.n_heads)
    return s.per_head


def look(s: SimpleNamespace) -> Any:
    page = s.model.run(list(s.task.clean)).to_html()
    return None


def corrupted(s: SimpleNamespace) -> Any:
    logits = asp.tasks.last_logits(s.model, s.task, corrupted=True)
    average = asp.tasks.metric(logits, s.task).mean()
    return average


def resid(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "resid").recovered
    return patched


def attn_out(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "attn_out").recovered
    return patched


def mlp_out(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "mlp_out").recovered
    return patched


def z(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "z").recovered
    return patched


def v(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "v").recovered
    return patched


def pattern(s: SimpleNamespace) -> Any:
    patched = patching_sweep(s.model, s.task, "pattern").recovered
    return patched


def kinds(s: SimpleNamespace) -> Any:
    runs = s.model.run(list(s.repeated), ["pattern", "loss"], logits="none")
    patterns = np.stack([run.pattern for run in runs])
    previous, duplicate, induction = (
        patterns.diagonal(-n, -2, -1).mean((0, -1)) for n in (1, s.half, s.half - 1)
    )
    return previous, duplicate, induction


def name_mover(s: SimpleNamespace) -> Any:
    layer, head = divmod(int(s.per_head.argmax()), s.model.cfg.n_heads)
    top_head = asp.HeadPosition(layer, head, -1)
    logits, s.ablated = s.model.run_with_cache(list(s.task.clean), ablate=top_head)
    after = asp.tasks.metric(logits[:, -1], s.task).mean()
    expected = s.average - s.per_head[layer, head]
    return after, expected


def backup(s: SimpleNamespace) -> Any:
    stack, labels = s.ablated.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    per_head = s.ablated.logit_attrs(stack, *s.answers, pos_slice=-1).mean(-1)
    per_head = per_head.reshape(s.model.cfg.n_layers, s.model.cfg.n_heads)
    return per_head


def scale(s: SimpleNamespace) -> Any:
    ratio = s.cache["ln_final.hook_scale"][:, -1] / s.ablated["ln_final.hook_scale"][:, -1]
    average = ratio.mean()
    return average
