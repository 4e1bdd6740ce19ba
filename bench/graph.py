"""The attribution graph at GPT-2-small size, its transcoders read from disk: time, growth and peak memory."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import attnsparse
from attnsparse.io.safetensors_file import write_safetensors

from .child import run_child
from .judge import Options
from .timing import print_table, progress, time_calls
from .work import GPT2_SMALL, random_model, random_tokens

ROWS = ("graph",)
N_FEATURES = 24576  #: of a layer
BIAS = -2.9  #: of every feature, so that about 46 of a layer are active at each token
LENGTH = 8
KEPT = (500, 1000)  #: features kept
MOST_SECONDS = 10.0  #: of the larger one
ALLOWANCE = 2**30  #: bytes besides the weights and one layer of the set


def run(options: Options) -> list[dict[str, Any]]:
    """Graphs of two sizes from a temporary folder; memory in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        progress("writing a model of GPT-2-small size and its transcoders")
        random_model(GPT2_SMALL).save(Path(folder) / "model")
        write_transcoders(Path(folder) / "set")
        rows = [_row(folder, kept, options) for kept in KEPT]
    columns = {
        "row": "row", "active": "active features", "edges": "edges", "best_ms": "best ms",
        "median_ms": "median ms", "holds": f"<= {MOST_SECONDS:g} s", "closes": "closure (of sum |edges|)",
        "peak_bytes": "peak, bytes", "allowed_bytes": "allowed, bytes", "memory_holds": "holds",
    }  # fmt: skip
    title = f"Attribution graph, GPT-2 small, {options.threads} threads (peak: above what the imports take)"
    print_table(title, columns, rows)
    return rows


def _row(folder: str, kept: int, options: Options) -> dict[str, Any]:
    progress(f"graph of {kept} features")
    model, transcoders = open_both(folder)
    call = functools.partial(make_graph, model, transcoders, kept, options.threads)
    graph = call()
    times = time_calls(call, min(options.repeats, 3))
    memory = run_child("graph", folder, str(kept), str(options.threads))
    allowed = 4 * model.n_parameters + memory["layer"] + ALLOWANCE
    return {
        "name": "graph",
        "row": f"{kept} features kept, T={LENGTH}",
        "active": graph.options["n_active"],
        "edges": len(graph.source),
        "best_ms": 1e3 * times.best,
        "median_ms": 1e3 * times.median,
        "holds": times.best <= MOST_SECONDS,
        "closure": graph.closure,
        "closure_absolute": graph.closure_absolute,
        "closes": f"{graph.closure:.1e} ({graph.closure_absolute:.1e})",
        "peak_bytes": memory["peak"],
        "allowed_bytes": allowed,
        "memory_holds": memory["peak"] <= allowed,
    }


def write_transcoders(folder: Path) -> None:
    """A random set in circuit-tracer's layout, one file for each layer."""
    folder.mkdir()
    hooks = "feature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text(
        f"model_name: random\nmodel_kind: transcoder_set\n{hooks}scan: random\n"
    )
    rng = np.random.default_rng(0)
    width = GPT2_SMALL.d_model
    for layer in range(GPT2_SMALL.n_layer):
        rows = [rng.standard_normal((N_FEATURES, width), dtype=np.float32) for _ in range(2)]
        tensors = {
            "W_enc": rows[0] * np.float32(width**-0.5),
            "W_dec": rows[1] * np.float32(0.05),
            "b_enc": np.full(N_FEATURES, BIAS, np.float32),
            "b_dec": np.zeros(width, np.float32),
        }
        write_safetensors(folder / f"layer_{layer}.safetensors", tensors)


def open_both(folder: str) -> tuple[Any, Any]:
    """The model and the transcoders that `run` wrote."""
    model = attnsparse.load(Path(folder) / "model")
    return model, attnsparse.load_transcoders(Path(folder) / "set", model)


def make_graph(model: Any, transcoders: Any, kept: int, threads: int) -> Any:
    """One graph, of features and the most likely next tokens."""
    prompt = random_tokens(GPT2_SMALL, 1, LENGTH)[0]
    return attnsparse.attribution_graph(
        model, transcoders, prompt, max_feature_nodes=kept, threads=threads, progress=False
    )
