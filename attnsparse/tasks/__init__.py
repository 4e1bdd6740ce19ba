"""Tasks: prompts on which a circuit is looked for, clean and corrupted, with right and wrong answers.

`make_task("ioi", model.tokenizer)` draws one of those that come with the package; `read_prompts_json`,
`read_eap_csv` and `from_dataframe` make one from your own prompts. The metrics turn logits into one number
for every prompt.
"""

from __future__ import annotations

from typing import Any

from .. import _check
from ..model.tokenizer import Tokenizer
from . import prompts
from .builder import build
from .files import from_dataframe, read_eap_csv, read_prompts_json, write_prompts_json
from .metrics import (
    METRICS,
    TASK_METRICS,
    kl_divergence,
    last_logits,
    log_probability,
    logit_difference,
    metric,
    metric_gradient,
    probability_difference,
    rank,
    top1,
)
from .task import Task

__all__ = [
    "METRICS",
    "TASKS",
    "TASK_METRICS",
    "Task",
    "from_dataframe",
    "kl_divergence",
    "last_logits",
    "log_probability",
    "logit_difference",
    "make_task",
    "metric",
    "metric_gradient",
    "probability_difference",
    "rank",
    "read_eap_csv",
    "read_prompts_json",
    "top1",
    "write_prompts_json",
]

TASKS = tuple(prompts.BUILDERS)
"""Names of the tasks that `make_task` knows."""


def make_task(
    name: str,
    tokenizer: Tokenizer,
    *,
    n: int = 80,
    seed: int = 0,
    prepend_bos: bool = False,
    **options: Any,
) -> Task:
    """`n` different prompts of a task, half of them to rank on, half to evaluate on.

    name: one of TASKS. The functions of the same names in `tasks_prompts` say what each asks, what its
    corrupted prompts change, and which `options` it has.

    * copy, induction: n_words, held_out_words
    * antonym: counterfactual ("word" or "relation"), held_out_words
    * ioi: order ("ABBA", "BABA", "both"), counterfactual (eight, named as in MIB), held_out_words
    * greater_than: corrupted_year, held_out_words
    * docstring: n_before (for GPT-2's tokenizer)
    * addition: none (for the tokenizer of the addition models)

    held_out_words=True: words that the demo models never saw in such sentences, instead of those they did.
    tokenizer: GPT-2's or one that has the same tokens for the words, such as the demo models'.
    seed: 0..2^64-1; the same seed gives the same prompts for every tokenizer.
    Raises ValueError for unknown names, for more prompts than there are, and for prompts that the tokenizer
    cuts into other tokens; TypeError for options that the task does not have and for other tokenizers.
    """
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    if name not in prompts.BUILDERS:
        raise ValueError(f"there is no task {name!r:.60}; tasks are {', '.join(TASKS)}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r:.60}")
    if name == "addition":
        prompts.needs_addition(tokenizer)
    seed = _check.seed(seed)
    drafts = prompts.drafts(name, n, seed, options)
    return build(
        name,
        prompts.BUILDERS[name].metric,
        drafts,
        tokenizer,
        seed=seed,
        prepend_bos=prepend_bos,
        prepend_space_to_answer=False,
        options={"seed": seed, **options},
    )
