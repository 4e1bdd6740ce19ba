"""TransformerLens's main demo and its exploratory analysis of IOI, step by step in both tools.

Each step is a function of the same name in two modules, `*_theirs` and `*_ours`: what a user types, and at
the end the numbers that are compared. Both tools have the same random weights.
"""

from __future__ import annotations

import ast
import importlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from ..judge import Options
from ..peers import torch_with_threads
from ..timing import print_table, progress
from .given import given

MAIN = {
    "loss": "loss of a text",
    "cache": "all activations, one pattern, the tokens",
    "one_layer": "one layer's pattern and nothing after it",
    "look": "look at the patterns of a layer",
    "ablation": "a head set to zero",
    "patching": "residual stream patched, layer x position",
    "repeated": "loss at each position of repeated tokens",
    "induction": "induction scores by a function on all patterns",
    "parameters": "names and shapes of parameters",
    "hooks": "names and shapes of activations",
    "unembedding_bias": "tokens that the unembedding's bias favours",
    "tokens": "tokens: ids, texts, positions, a probability",
    "factored": "a factored matrix",
    "copying": "copying scores of all heads",
    "full_copying": "copying scores from token to token",
    "generation": "50 new tokens (greedy)",
}
IOI = {
    "test_prompt": "rank and probability of the answer",
    "prompts": "prompts and answers",
    "difference": "activations and the logit difference",
    "direction": "the same from the residual stream",
    "logit_lens": "logit lens",
    "layers": "attribution to layers",
    "heads": "attribution to heads",
    "look": "look at the patterns of the top heads",
    "corrupted": "the corrupted prompts",
    "resid": "residual stream patched, layer x position",
    "attn_out": "attention patched, layer x position",
    "mlp_out": "MLPs patched, layer x position",
    "z": "heads patched, layer x head",
    "v": "values patched, layer x head",
    "pattern": "patterns patched, layer x head",
    "kinds": "previous-token, duplicate and induction scores",
    "name_mover": "the top head set to zero at the end",
    "backup": "attribution to heads after that",
    "scale": "scale of the final LayerNorm after that",
}
DEMOS = {"main": MAIN, "ioi": IOI}
ROWS = tuple(DEMOS)
COLUMNS = {
    "row": "step",
    "lines_theirs": "lines theirs",
    "lines_ours": "lines ours",
    "seconds_theirs": "s theirs",
    "seconds_ours": "s ours",
    "difference": "difference",
}
CANNOT = (
    "hooks in a network of one's own (HookPoint, HookedRootModule): hooks exist in GPT-2-class models only",
    "models of other families, and the checkpoints of their training, by name; a folder, file or hub "
    "repository (revision=) of a GPT-2-class model loads",
    "start_at_layer: a run begins with tokens",
    "to_tokens of texts of different lengths: nothing is padded",
    "weights with the LayerNorms folded in: ln1_w, ln_final_b and the others are factors of their own",
    "gradients through functions at hooks, and hooks that stay in the model (add_hook)",
)


def run(options: Options) -> list[dict[str, Any]]:
    """Do every step once in each tool, and print the table."""
    lens, note = _lens(options)
    rows: list[dict[str, Any]] = []
    for demo, steps in DEMOS.items():
        if options.wants(demo):
            rows += _demo(demo, steps, lens, options)
    size = "2 layers" if options.small else "GPT-2 small"
    title = f"TransformerLens's demos, {size}, random weights, {options.threads} threads"
    print_table(title, COLUMNS, [_shown(row) for row in rows])
    print(note)
    print("\nNot here:\n" + "\n".join(f"* {text}" for text in CANNOT))
    return rows


def _lens(options: Options) -> tuple[ModuleType | None, str]:
    """The module that makes their models, or why there is none."""
    if not options.peers:
        return None, "TransformerLens is left out"
    try:
        torch = torch_with_threads(options.threads)
        lens = importlib.import_module(f"{__name__}.lens")
    except ImportError as error:
        return None, f"TransformerLens is left out: {error}"
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    return lens, lens.note()


def _demo(
    demo: str, steps: dict[str, str], lens: ModuleType | None, options: Options
) -> list[dict[str, Any]]:
    """The rows of one demo; their state and ours begin with the same texts and weights."""
    import attnsparse

    attnsparse.set_num_threads(options.threads)
    model, inputs = given(demo, options.small)
    model.run(inputs["repeated"][0])  # the first pass of each tool is slower, and is not measured
    ours = importlib.import_module(f"{__name__}.{demo}_ours")
    our_state = SimpleNamespace(model=model, **inputs)
    theirs, their_state = None, SimpleNamespace()
    if lens is not None:
        theirs = importlib.import_module(f"{__name__}.{demo}_theirs")
        their_state = lens.state(demo, model, inputs)
    lines = {side: count_lines(Path(__file__).with_name(f"{demo}_{side}.py")) for side in ("theirs", "ours")}
    rows = []
    for name, title in steps.items():
        progress(f"{demo}: {title}")
        row = {"row": f"{demo}: {title}", "name": name}
        row |= {f"lines_{side}": found[name] for side, found in lines.items()}
        values, row["seconds_ours"] = _timed(getattr(ours, name), our_state)
        if theirs is not None:
            others, row["seconds_theirs"] = _timed(getattr(theirs, name), their_state)
            row["difference"] = difference(others, values)
        rows.append(row)
    rows.append({"row": f"{demo}: all steps", **_sums(rows)})
    return rows


def _timed(step: Callable[[SimpleNamespace], Any], state: SimpleNamespace) -> tuple[Any, float | None]:
    """What a step returns and its seconds; None where it needs a package that is missing."""
    begin = time.perf_counter()
    try:
        values = step(state)
    except ImportError:
        return None, None
    return values, time.perf_counter() - begin


def difference(theirs: Any, ours: Any) -> str | None:
    """The largest difference, as a share of the largest value; None where nothing is compared."""
    if theirs is None or ours is None:
        return None
    if isinstance(theirs, dict):
        common = sorted(theirs.keys() & ours.keys())
        unequal = sum(tuple(theirs[key]) != tuple(ours[key]) for key in common)
        return f"{unequal} of {len(common)}"
    if not isinstance(theirs, tuple):
        theirs, ours = (theirs,), (ours,)
    worst = 0.0
    for left, right in zip(theirs, ours, strict=True):
        one, other = (np.asarray(values, np.float64) for values in (left, right))
        if one.shape != other.shape:
            raise RuntimeError(f"the two tools' results have shapes {one.shape} and {other.shape}")
        largest = np.abs(one).max()
        worst = max(worst, float(np.abs(one - other).max() / (largest or 1.0)))
    return f"{worst:.0e}"


def count_lines(path: Path) -> dict[str, int]:
    """Step -> lines of code in its function without docstring, comments, imports and the final return."""
    text = path.read_text(encoding="utf-8")
    source, counts = text.splitlines(), {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        *body, last = node.body
        if not isinstance(last, ast.Return):
            raise RuntimeError(f"{path.name}: {node.name} must end with a return")
        lines: set[int] = set()
        for statement in body:
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not is_text and not isinstance(statement, ast.Import | ast.ImportFrom):
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
        codes = [source[line - 1].strip() for line in lines]
        counts[node.name] = sum(bool(code) and not code.startswith("#") for code in codes)
    return counts


def _sums(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines of all steps; seconds of those that both tools did."""
    sums: dict[str, Any] = {key: sum(row[key] for row in rows) for key in ("lines_theirs", "lines_ours")}
    both = [row for row in rows if row.get("seconds_theirs") is not None] or rows
    for key in ("seconds_theirs", "seconds_ours"):
        if all(row.get(key) is not None for row in both):
            sums[key] = sum(row[key] for row in both)
    return sums


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row with seconds to a tenth of a millisecond."""
    return {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
