"""The recipe "text-frontier": the recipe "text", and what cross-entropy costs in edges for each token.

Beside the three models it trains further twins of the same steps, whose multiplier is another one in the last
stage: it says how much loss is accepted for one edge less. They are compared with attention that is sparse by
a rule: a window of the last positions, the largest scores of each head and query, the largest weights. Every
rule is tried on the finished control as it is, and some are trained from text-dense for as many steps as
control and twin. Rules choose before the softmax, so the weights of what they keep add up to 1; the gate
closes entries after it.

All points are measured on the held-out windows that steer nothing, with hard gates, and written into
`text-sparse/frontier.csv`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._tables import text_table
from ..model.config import KEPT_ENTRIES
from ..model.model import Model
from .job import write_csv
from .text import SPARSE, STAGES, TextJob, course, job_of, train_pair, twin_options
from .text_evaluation import Measured, mean, measure
from .together import Leader

if TYPE_CHECKING:
    from collections.abc import Iterable

FRONTIER = "frontier.csv"
MULTIPLIERS = (0.1, 0.6, 0.2, 0.05)  # of the last stage of the further twins, in the order of their training
TRAINED = (("window", 16), ("top_k", 4), ("min_weight", 0.1), ("top_k", 2), ("min_weight", 0.02))
RULES: dict[str, tuple[float, ...]] = {
    "window": (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 384, 448),
    "top_k": (1, 2, 4, 8, 16, 32, 64, 128, 192, 256),
    "min_weight": (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001),
}
GATE, NONE = "gate", "none"  # of the column `sparse_by`, beside the names of RULES


def train(
    out: Path,
    *,
    seed: int | None = None,
    resume: bool = False,
    threads: int | None = None,
    quiet: bool = False,
    leader: Leader | None = None,
    corpus: Any = None,
    tiny: bool = False,
    **settings: Any,
) -> list[Path]:
    """As `text.train`, and `frontier.csv` in the folder of the sparse model; see `recipes.Recipe.train`."""
    job = job_of(out, seed, resume, threads, quiet, leader, corpus, tiny, settings)
    pair, last = train_pair(job), getattr(job.settings, STAGES[-1])
    control = pair.control[-1].model
    points = [
        *untrained_points(control, job.judged),
        _of_gate(job, pair.twin[-1].model, last.multiplier_max),
    ]
    _write(job, points)
    for multiplier in MULTIPLIERS:
        stage = dataclasses.replace(last, multiplier=multiplier, multiplier_max=multiplier)
        options = twin_options(job.settings, stage, course(pair.control[-1]))
        twin = job.run(f"twin-{multiplier:g}-{STAGES[-1]}", options, pair.twin[-2].model.copy())
        points.append(_of_gate(job, twin.model, multiplier))
        _write(job, points)
    for rule, value in TRAINED:
        start = ruled(pair.dense[-1].model, rule, value)
        found = measure(job.ungated(f"{rule}-{value:g}", start)[-1].model, job.judged)
        points.append({"sparse_by": rule, "setting": value, "trained": True, "found": found})
        _write(job, points)
    return job.folders


def ruled(model: Model, rule: str, value: float) -> Model:
    """A copy of a dense model whose attention is sparse by a rule, a field of `Config`."""
    chosen: dict[str, Any] = dict.fromkeys(KEPT_ENTRIES, 0)
    chosen[rule] = value if rule == "min_weight" else int(value)
    config = dataclasses.replace(model.config, **chosen)
    return Model(config, model.parameters(), tokenizer=model.tokenizer, name=f"{model.name} {rule}={value:g}")


def untrained_points(control: Model, windows: np.ndarray) -> list[dict[str, Any]]:
    """The control as it is, and with every rule, on windows of equal length (int [n, T])."""
    points = [{"sparse_by": NONE, "setting": 0.0, "trained": True, "found": measure(control, windows)}]
    for rule, values in RULES.items():
        for value in values:
            found = measure(ruled(control, rule, value), windows)
            points.append({"sparse_by": rule, "setting": value, "trained": False, "found": found})
    return points


def _of_gate(job: TextJob, twin: Model, multiplier: float) -> dict[str, Any]:
    return {"sparse_by": GATE, "setting": multiplier, "trained": True, "found": measure(twin, job.judged)}


def frontier_table(points: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per point, those of a kind by their number of edges.

    sparse_by, setting (largest multiplier of a gate's last stage, value of a rule), trained (or applied to
    the control as it is), edges_per_token, edges_error, cross_entropy, cross_entropy_error, above_control,
    above_control_error (of the same windows; errors are standard errors over windows) and open_per_cent. The
    control is among the points, with sparse_by "none".
    """
    points = list(points)
    control: Measured = next(point["found"] for point in points if point["sparse_by"] == NONE)
    rows: list[dict[str, Any]] = []
    for point in points:
        found: Measured = point["found"]
        above = mean(found.losses - control.losses)
        rows.append(
            {
                **{name: point[name] for name in ("sparse_by", "setting", "trained")},
                "edges_per_token": found.edges_per_token.value,
                "edges_error": found.edges_per_token.error,
                "cross_entropy": found.cross_entropy.value,
                "cross_entropy_error": found.cross_entropy.error,
                "above_control": above.value,
                "above_control_error": above.error,
                "open_per_cent": 100 * found.open_share.value,
            }
        )
    kinds = [NONE, GATE, *RULES]
    rows.sort(key=lambda row: (kinds.index(row["sparse_by"]), not row["trained"], row["edges_per_token"]))
    table: pd.DataFrame = text_table(rows)
    return table


def _write(job: TextJob, points: list[dict[str, Any]]) -> None:
    table = frontier_table(points)
    write_csv(job.out / SPARSE / FRONTIER, table)
    if not job.quiet:
        last = points[-1]
        print(f"frontier: {last['sparse_by']} {last['setting']:g}, {len(table)} points")
