"""Tiny transcoders in every layout that is read, written by hand, with what NumPy says they are.

A writer returns the files of a folder (bytes, text, or JSON for dicts) and what loading them must give.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch_by_hand
from safetensors_by_hand import from_arrays

L, E = 3, 6
COUNTS = (10, 7, 12)
Files = dict[str, Any]
HOOKS = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
PT_CLASS = ("sae_training.config", "LanguageModelSAERunnerConfig")


@dataclasses.dataclass
class Weights:
    """Per layer: w_enc [F, E], b_enc [F], w_dec [F, W, E], output [E], threshold [F], skip [E, E]."""

    w_enc: list[np.ndarray]
    b_enc: list[np.ndarray]
    w_dec: list[np.ndarray]
    output: list[np.ndarray]
    threshold: list[np.ndarray] | None = None
    skip: list[np.ndarray] | None = None
    rounding: float = 0.0  # relative, where float32 arithmetic was done
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of Transcoders


def weights(
    *, cross: bool = False, threshold: bool = False, skip: bool = False, seed: int = 0, counts=COUNTS, width=E
) -> Weights:
    """Random float32 weights of a set."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    n = len(counts)
    result = Weights(
        [draw(f, width) for f in counts],
        [draw(f) for f in counts],
        [draw(f, n - i if cross else 1, width) for i, f in enumerate(counts)],
        [draw(width) for _ in counts],
        [np.abs(draw(f)) for f in counts] if threshold else None,
        [draw(width, width) for _ in counts] if skip else None,
    )
    result.fields = {
        "kind": "cross_layer_transcoder" if cross else "transcoder_set",
        "activation": "jump_relu" if threshold else "relu",
        "input_hook": "ln2.hook_normalized",
    }
    return result


def bf16(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper halves of float32 numbers (uint16), and the numbers that these are."""
    half = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)
    return half, (half.astype(np.uint32) << 16).view(np.float32)


def yaml(**values: Any) -> str:
    """YAML is a superset of JSON."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())


def config(kind: str = "transcoder_set", **more: Any) -> str:
    known = {"model_name": "tiny", "model_kind": kind, **HOOKS, "scan": "a/scan"}
    return yaml(**(known | more))


# ---------------------------------------------------------------------------------- circuit-tracer


def plain_layer(w: Weights, i: int) -> dict[str, np.ndarray]:
    """The tensors of one layer of circuit-tracer's per-layer layout."""
    arrays = {"W_enc": w.w_enc[i], "W_dec": w.w_dec[i][:, 0], "b_enc": w.b_enc[i], "b_dec": w.output[i]}
    if w.threshold is not None:
        arrays["activation_function.threshold"] = w.threshold[i]
    if w.skip is not None:
        arrays["W_skip"] = w.skip[i]
    return arrays


def circuit_tracer(**options: Any) -> tuple[Files, Weights]:
    w = weights(**options)
    w.fields |= {"scan": "a/scan", "model_name": "tiny"}
    layers = {f"layer_{i}.safetensors": from_arrays(plain_layer(w, i)) for i in range(L)}
    return layers | {"config.yaml": config()}, w


def circuit_tracer_float16() -> tuple[Files, Weights]:
    _, w = circuit_tracer()
    for arrays in (w.w_enc, w.b_enc, w.w_dec, w.output):
        arrays[:] = [a.astype(np.float16).astype(np.float32) for a in arrays]
    halves = [{name: a.astype(np.float16) for name, a in plain_layer(w, i).items()} for i in range(L)]
    layers = {f"layer_{i}.safetensors": from_arrays(arrays) for i, arrays in enumerate(halves)}
    return layers | {"config.yaml": config()}, w


def circuit_tracer_float64() -> tuple[Files, Weights]:
    _, w = circuit_tracer(threshold=True)
    doubles = [{name: a.astype(np.float64) for name, a in plain_layer(w, i).items()} for i in range(L)]
    layers = {f"layer_{i}.safetensors": from_arrays(arrays) for i, arrays in enumerate(doubles)}
    return layers | {"config.yaml": config()}, w


def circuit_tracer_top_k() -> tuple[Files, Weights]:
    files, w = circuit_tracer()
    w.fields |= {"activation": "topk", "top_k": 4}
    for i in range(L):
        arrays = plain_layer(w, i) | {"k": np.array(4, np.int64)}
        files[f"layer_{i}.safetensors"] = from_arrays(arrays)
    files["config.yaml"] = config(activation="topk", k=4)
    return files, w


def circuit_tracer_v01() -> tuple[Files, Weights]:
    """A YAML file with a list in any order; W_dec is transposed."""
    w = weights(skip=True)
    w.fields |= {"scan": "", "model_name": "tiny"}
    files: Files = {}
    for i in range(L):
        arrays = plain_layer(w, i)
        files[f"files/l{i}.safetensors"] = from_arrays(arrays | {"W_dec": arrays["W_dec"].T})
    paths = [
        "files/l0.safetensors",
        "hf://owner/repo/files/l1.safetensors?revision=main",
        "files/l2.safetensors",
    ]
    entries = [{"id": f"t{i}", "layer": i, "filepath": paths[i]} for i in (2, 0, 1)]
    files["set.yaml"] = yaml(model_name="tiny", transcoders=entries, **HOOKS)
    return files, w


def gemma_scope() -> tuple[Files, Weights]:
    """A list of .npz files; one in Fortran's order, one threshold below 0."""
    w = weights(threshold=True)
    w.fields |= {"scan": "a/scan", "model_name": "tiny"}
    files: Files = {}
    for i in range(L):
        threshold = w.threshold[i].copy()
        threshold[0] = -1
        w.threshold[i][0] = 0
        order = np.asfortranarray if i == 1 else np.ascontiguousarray
        files[f"layer_{i}/width_10/params.npz"] = npz(
            W_enc=order(w.w_enc[i].T), W_dec=w.w_dec[i][:, 0], b_enc=w.b_enc[i], b_dec=w.output[i],
            threshold=threshold,
        )  # fmt: skip
    files["config.yaml"] = config(
        transcoders=[f"hf://google/scope/layer_{i}/width_10/params.npz" for i in range(L)]
    )
    return files, w


def gemma_scope_2(cross: bool = False) -> tuple[Files, Weights]:
    w = weights(threshold=True, skip=True, cross=cross, counts=(10,) * L)
    w.fields |= {"scan": "a/scan", "model_name": "tiny"}
    files: Files = {}
    for i in range(L):
        w_dec = w.w_dec[i][:, 0]
        if cross:  # places before the own layer are there, too
            w_dec = np.concatenate([np.full((10, i, E), np.nan, np.float32), w.w_dec[i]], axis=1)
        arrays = {"w_enc": w.w_enc[i].T, "w_dec": w_dec, "b_enc": w.b_enc[i], "b_dec": w.output[i],
                  "threshold": w.threshold[i], "affine_skip_connection": w.skip[i].T}  # fmt: skip
        files[f"l{i}.safetensors"] = from_arrays(arrays)
    kind = "cross_layer_transcoder" if cross else "transcoder_set"
    files["config.yaml"] = config(kind, transcoders=[f"l{i}.safetensors" for i in range(L)])
    return files, w


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def cross_layer(threshold: bool = False) -> tuple[Files, Weights]:
    """Two files per layer, in BF16."""
    w = weights(cross=True, threshold=threshold)
    w.fields |= {"scan": "a/scan", "model_name": "tiny"}
    files: Files = {"config.yaml": config("cross_layer_transcoder")}
    lists = {"W_enc": w.w_enc, "b_enc": w.b_enc, "b_dec": w.output, "W_dec": w.w_dec}
    for i in range(L):
        halves = {}
        for name, values in (lists | ({"threshold": w.threshold} if threshold else {})).items():
            halves[f"{name}_{i}"], values[i] = bf16(values[i])
        decoder = {name: array for name, array in halves.items() if name.startswith("W_dec")}
        encoder = {name: array for name, array in halves.items() if name not in decoder}
        for part, arrays in (("W_enc", encoder), ("W_dec", decoder)):
            files[f"{part}_{i}.safetensors"] = from_arrays(arrays, dict.fromkeys(arrays, "BF16"))
    return files, w


# ------------------------------------------------------------------------------------------ SAELens


def saelens_config(i: int, f: int, **more: Any) -> dict[str, Any]:
    """cfg.json of SAELens 5."""
    known = {"architecture": "standard", "d_in": E, "d_sae": f, "d_out": E, "activation_fn_str": "relu",
             "apply_b_dec_to_input": False, "normalize_activations": "none", "dtype": "float32",
             "hook_name": f"blocks.{i}.ln2.hook_normalized", "hook_layer": i, "model_name": "tiny",
             "hook_name_out": f"blocks.{i}.hook_mlp_out", "hook_layer_out": i, "lr": 1e-3}  # fmt: skip
    return known | more


def saelens_layer(w: Weights, i: int) -> dict[str, np.ndarray]:
    arrays = {"W_enc": w.w_enc[i].T, "W_dec": w.w_dec[i][:, 0], "b_enc": w.b_enc[i], "b_dec": w.output[i]}
    if w.threshold is not None:
        arrays["threshold"] = w.threshold[i]
    if w.skip is not None:
        arrays["W_skip"] = w.skip[i]
    return arrays


def saelens() -> tuple[Files, Weights]:
    w = weights()
    w.fields["model_name"] = "tiny"
    files: Files = {}
    for i in range(L):
        files[f"gpt2-small-layer-{i}/cfg.json"] = saelens_config(i, COUNTS[i])
        files[f"gpt2-small-layer-{i}/sae_weights.safetensors"] = from_arrays(saelens_layer(w, i))
        files[f"gpt2-small-layer-{i}/sparsity.safetensors"] = from_arrays({"sparsity": w.b_enc[i]})
    return files, w


def saelens_6() -> tuple[Files, Weights]:
    """Metadata apart, JumpReLU and a skip."""
    w = weights(threshold=True, skip=True)
    w.fields["model_name"] = "tiny"
    files: Files = {}
    for i in range(L):
        metadata = {"hook_name": f"blocks.{i}.ln2.hook_normalized", "model_name": "tiny",
                    "hook_name_out": f"blocks.{i}.hook_mlp_out"}  # fmt: skip
        settings = {"architecture": "jumprelu_skip_transcoder", "d_in": E, "d_sae": COUNTS[i], "d_out": E}
        files[f"l{i}/cfg.json"] = settings | {"metadata": metadata}
        files[f"l{i}/sae_weights.safetensors"] = from_arrays(saelens_layer(w, i))
    return files, w


def saelens_top_k() -> tuple[Files, Weights]:
    files, w = saelens()
    w.fields |= {"activation": "topk", "top_k": 3}
    for i in range(L):
        more = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
        files[f"gpt2-small-layer-{i}/cfg.json"] = saelens_config(i, COUNTS[i], **more)
    return files, w


# ------------------------------------------------------------------------------- Dunefsky et al. .pt


def pt_value(value: Any) -> bytes:
    """Opcodes of a plain value."""
    h = torch_by_hand
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return h.number(value) if isinstance(value, int) else h.text(value)


def pt_file(
    arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None, *, as_dict: bool = False
) -> bytes:
    """What torch.save({"cfg": object, "state_dict": ...}) writes."""
    h = torch_by_hand
    state, storages = h.state_dict(arrays)
    items = {}
    if settings is not None:
        values = {name: pt_value(value) for name, value in settings.items()}
        values["dtype"] = h.name("torch", "float32")
        values["device"] = h.name("torch", "device") + b"(" + h.text("cuda") + h.number(0) + b"tR"
        body = h.plain_dict(values)
        items["cfg"] = body if as_dict else h.name(*PT_CLASS) + b")\x81" + body + b"b"
    return h.archive(h.finished(h.plain_dict(items | {"state_dict": state})), storages)


def pt_settings(i: int, **more: Any) -> dict[str, Any]:
    known = {"model_name": "tiny", "hook_point": f"blocks.{i}.ln2.hook_normalized", "hook_point_layer": i,
             "hook_point_head_index": None, "d_in": E, "is_transcoder": True, "d_out": E,
             "out_hook_point": f"blocks.{i}.hook_mlp_out", "out_hook_point_layer": i}  # fmt: skip
    return known | more


def pt_layer(w: Weights, i: int, b_dec: np.ndarray) -> dict[str, np.ndarray]:
    w_enc, w_dec = np.ascontiguousarray(w.w_enc[i].T), np.ascontiguousarray(w.w_dec[i][:, 0])
    return {"W_enc": w_enc, "b_enc": w.b_enc[i], "W_dec": w_dec, "b_dec": b_dec, "b_dec_out": w.output[i]}


def pt(as_dict: bool = False) -> tuple[Files, Weights]:
    w = weights()
    w.fields["model_name"] = "tiny"
    w.rounding = 1e-6
    files: Files = {}
    for i in range(L):
        b_dec = np.random.default_rng(90 + i).standard_normal(E).astype(np.float32)
        name = f"final_sparse_autoencoder_gpt2-small_blocks.{i}.ln2.hook_normalized_{COUNTS[i]}.pt"
        files[name] = pt_file(pt_layer(w, i, b_dec), pt_settings(i), as_dict=as_dict)
        w.b_enc[i] = (w.b_enc[i] - w.w_enc[i].astype(np.float64) @ b_dec).astype(np.float32)
    return files, w


# ---------------------------------------------------------------------------------------- CLT-Forge


def clt_forge_config(n: int, **more: Any) -> dict[str, Any]:
    known = {"device": "cpu", "dtype": "float32", "seed": 0, "model_name": "tiny", "debug": False, "d_in": E,
             "d_latent": n, "n_layers": L, "jumprelu_bandwidth": 1.0, "jumprelu_init_threshold": 0.03,
             "normalize_decoder": False, "dead_feature_window": 1, "cross_layer_decoders": True,
             "context_size": 16, "l0_coefficient": 1.0, "ddp": False, "fsdp": False,
             "feature_sharding": False}  # fmt: skip
    return known | more


def clt_forge_arrays(crossing: bool = True, n: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    pairs = L * (L + 1) // 2 if crossing else L
    return {
        "W_enc": draw(L, E, n), "b_enc": draw(L, n), "W_dec": draw(pairs, n, E), "b_dec": draw(pairs, E),
        "log_threshold": draw(L, n), "feature_count": np.zeros((L, n), np.int64),
        "layer_mask": np.zeros((L, pairs), np.float32),
        "estimated_norm_scaling_factor_in": np.array([0.5, 2, 0.3], np.float32),
        "estimated_norm_scaling_factor_out": np.array([1.5, 0.7, 3], np.float32),
    }  # fmt: skip


def clt_forge(crossing: bool = True, ranks: int = 0) -> tuple[Files, Weights]:
    """Whole, or split over files of which each has its own part of the features."""
    n = 8
    a = clt_forge_arrays(crossing, n)
    scale_in, scale_out = (a[f"estimated_norm_scaling_factor_{way}"] for way in ("in", "out"))
    w = weights(cross=crossing, threshold=True, counts=(n,) * L)
    w.fields["model_name"] = "tiny"
    pairs = [(i, k) for i in range(L) for k in (range(i, L) if crossing else [i])]
    for i in range(L):
        mine = [number for number, pair in enumerate(pairs) if pair[0] == i]
        w.w_enc[i] = a["W_enc"][i].T * scale_in[i]
        w.b_enc[i] = a["b_enc"][i]
        w.threshold[i] = np.exp(a["log_threshold"][i])
        w.w_dec[i] = np.stack([a["W_dec"][number] / scale_out[pairs[number][1]] for number in mine], axis=1)
        total = np.zeros(E, np.float32)
        for number, pair in enumerate(pairs):
            if pair[1] == i:
                total += a["b_dec"][number]
        w.output[i] = total / scale_out[i]
    files: Files = {
        "clt_cfg.json": clt_forge_config(n, cross_layer_decoders=crossing, feature_sharding=ranks > 0)
    }
    if not ranks:
        files["clt_weights.safetensors"] = from_arrays(a)
    axes = {"W_enc": 2, "b_enc": 1, "W_dec": 1, "log_threshold": 1, "feature_count": 1}
    for rank in range(ranks):
        each = math.ceil(n / ranks)
        mine = range(rank * each, min(n, (rank + 1) * each))
        part = {name: np.take(x, mine, axes[name]) if name in axes else x for name, x in a.items()}
        files[f"rank{rank}_clt_weights.safetensors"] = from_arrays(part)
    return files, w


#: name: (writer, the file of the folder to load, "" for the folder itself)
FORMATS: dict[str, tuple[Callable[[], tuple[Files, Weights]], str]] = {
    "circuit-tracer, ReLU": (circuit_tracer, ""),
    "circuit-tracer, JumpReLU and skip": (lambda: circuit_tracer(threshold=True, skip=True), ""),
    "circuit-tracer, top-k": (circuit_tracer_top_k, ""),
    "circuit-tracer, float16": (circuit_tracer_float16, ""),
    "circuit-tracer, float64": (circuit_tracer_float64, ""),
    "circuit-tracer, YAML file": (circuit_tracer, "config.yaml"),
    "circuit-tracer v0.1": (circuit_tracer_v01, "set.yaml"),
    "circuit-tracer, cross-layer, BF16": (cross_layer, ""),
    "circuit-tracer, cross-layer, JumpReLU": (lambda: cross_layer(threshold=True), ""),
    "GemmaScope": (gemma_scope, ""),
    "GemmaScope 2": (gemma_scope_2, ""),
    "GemmaScope 2, cross-layer": (lambda: gemma_scope_2(cross=True), ""),
    "SAELens 5": (saelens, ""),
    "SAELens 6, JumpReLU and skip": (saelens_6, ""),
    "SAELens 5, top-k": (saelens_top_k, ""),
    "Dunefsky et al.": (pt, ""),
    "Dunefsky et al., cfg as a dict": (lambda: pt(as_dict=True), ""),
    "CLT-Forge": (clt_forge, ""),
    "CLT-Forge, in ranks": (lambda: clt_forge(ranks=2), ""),
    "CLT-Forge, uneven ranks": (lambda: clt_forge(ranks=3), ""),
    "CLT-Forge, one per layer": (lambda: clt_forge(crossing=False), ""),
    "CLT-Forge, one per layer, in ranks": (lambda: clt_forge(crossing=False, ranks=2), ""),
}


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write files: bytes and text as they are, everything else as JSON; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
