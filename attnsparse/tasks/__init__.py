"""Tasks: clean and corrupted prompts with right and wrong answers, on which circuits are found.

`make_task("ioi", model.tokenizer)` draws one of the built-in tasks; `read_prompts_json`, `read_eap_csv` and
`from_dataframe` make one from your own prompts. The metrics turn logits into one number for each prompt.
"""

from __future__ import annotations

from typing import Any

from .. import _check
from ..model.tokenizer import Tokenizer
from . import prompts
from .builder import build
from .custom import CustomMetric
from .files import from_dataframe, read_eap_csv, read_prompts_json, write_prompts_json
from .metrics import (
    METRICS,
    kl_divergence,
    last_logits,
    log_probability,
    logit_difference,
    metric,
    probability_difference,
    rank,
    top1,
)
from .running_text import TEXT_TASKS, text_task
from .task import Task

__all__ = [
    "METRICS",
    "TASKS",
    "TEXT_TASKS",
    "CustomMetric",
    "Task",
    "from_dataframe",
    "kl_divergence",
    "last_logits",
    "log_probability",
    "logit_difference",
    "make_task",
    "metric",
    "probability_difference",
    "rank",
    "read_eap_csv",
    "read_prompts_json",
    "text_task",
    "top1",
    "write_prompts_json",
]

TASKS = tuple(prompts.BUILDERS)
"""Names of the built-in tasks, see `make_task`."""


def make_task(
    name: str,
    tokenizer: Tokenizer,
    *,
    n: int = 80,
    seed: int = 0,
    prepend_bos: bool = False,
    **options: Any,
) -> Task:
    """Draw different prompts of a built-in task, half of them to rank on, half to evaluate on.

    Parameters
    ----------
    name : str
        One of `TASKS`. `tasks.prompts` has a function for each, which says what the task asks, what its
        corrupted prompts change, and which `options` it takes.
    tokenizer : Tokenizer
        GPT-2's, or one that has the same tokens for the words, such as the demo models'. "docstring" needs
        GPT-2's, "addition" that of the addition models.
    n : int, default 80
        Number of prompts, at least 1.
    seed : int, default 0
        0..2^64-1. The same seed gives the same prompts for every tokenizer.
    prepend_bos : bool, default False
        Put the tokenizer's BOS token in front of every prompt.
    **options
        Options of the task. copy, induction: `n_words`, `held_out_words`. antonym: `counterfactual` ("word"
        or "relation"), `held_out_words`. ioi: `order` ("ABBA", "BABA", "both"), `counterfactual` (eight,
        named as in MIB), `held_out_words`. greater_than: `corrupted_year`, `held_out_words`. docstring:
        `n_before`. addition: none. With `held_out_words=True` the words are those that the demo models never
        saw in such sentences, instead of those that they did.

    Returns
    -------
    Task
        `n` prompts, no two of them the same.

    Raises
    ------
    ValueError
        For an unknown name, for more prompts than there are, and for prompts that the tokenizer cuts into
        other tokens.
    TypeError
        For options that the task does not have, and for other objects as tokenizer.
    """
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    _check.choice(name, "name", TASKS)
    _check.integer(n, "n", 1)
    _check.flag(prepend_bos, "prepend_bos")
    if name == "addition":
        prompts.needs_addition(tokenizer)
    seed = _check.seed(seed)
    drawn = prompts.draw_prompts(name, n, seed, options)
    return build(
        name,
        prompts.BUILDERS[name].metric,
        drawn,
        tokenizer,
        seed=seed,
        prepend_bos=prepend_bos,
        prepend_space_to_answer=False,
        options={"seed": seed, **options},
    )
