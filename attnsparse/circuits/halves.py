"""The two halves of a task: prompts to rank on, and prompts to evaluate on."""

from __future__ import annotations

import numpy as np

from ..tasks.custom import CustomMetric
from ..tasks.task import Task


def check_halves(task: Task) -> None:
    """ValueError for a task without prompts in one of its halves."""
    n_ranking = int(task.is_ranking.sum())
    if n_ranking in (0, len(task)):
        missing, other = ("ranking", "evaluation") if n_ranking == 0 else ("evaluation", "ranking")
        raise ValueError(
            f"task {task.name!r} has no prompts for {missing}: all {len(task)} are for {other}; a circuit "
            "needs prompts in both halves"
        )


def halves(task: Task, metric: str | CustomMetric) -> list[tuple[Task, str | CustomMetric]]:
    """The prompts to rank on and those to evaluate on, each with the metric of them."""
    parts = ((task.ranking, task.is_ranking), (task.evaluation, ~task.is_ranking))
    if not isinstance(metric, CustomMetric):
        return [(half, metric) for half, _ in parts]
    return [(half, metric.for_prompts(np.flatnonzero(of_half))) for half, of_half in parts]
