"""A process of test_transcoder_files.py: reads a set of a few hundred MB, prints how much memory that took.

    python transcoder_memory_child.py layers|clt|clt_forge|pt folder    # write the set
    python transcoder_memory_child.py read folder n_features

All weights are 0; most files have holes and take no room.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import tiny_transcoders as tiny
import torch_by_hand
from peak_memory import peak_bytes
from safetensors_by_hand import entry, file_bytes

from attnsparse.transcoders.load import load_transcoders

LAYERS, WIDTH = 4, 256
SIZES = {"F32": 4, "BF16": 2}


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A .safetensors file of zeros that takes no room."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * SIZES[dtype]
        header[name] = entry(at, end, shape, dtype)
        at = end
    begin = file_bytes(header)
    path.write_bytes(begin)
    os.truncate(path, len(begin) + at)


def layers(folder: Path) -> int:
    n = 28_000
    for i in range(LAYERS):
        shapes = {"W_enc": (n, WIDTH), "W_dec": (n, WIDTH), "b_enc": (n,), "b_dec": (WIDTH,)}
        sparse_file(folder / f"layer_{i}.safetensors", shapes, "F32")
    (folder / "config.yaml").write_text(tiny.config())
    return n


def clt(folder: Path) -> int:
    n = 30_000
    for i in range(LAYERS):
        shapes = {f"W_enc_{i}": (n, WIDTH), f"b_enc_{i}": (n,), f"b_dec_{i}": (WIDTH,)}
        sparse_file(folder / f"W_enc_{i}.safetensors", shapes, "BF16")
        sparse_file(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": (n, LAYERS - i, WIDTH)}, "BF16")
    (folder / "config.yaml").write_text(tiny.config("cross_layer_transcoder"))
    return n


def clt_forge(folder: Path) -> int:
    n, pairs = 30_000, LAYERS * (LAYERS + 1) // 2
    shapes = {
        "W_enc": (LAYERS, WIDTH, n),
        "b_enc": (LAYERS, n),
        "W_dec": (pairs, n, WIDTH),
        "b_dec": (pairs, WIDTH),
        "log_threshold": (LAYERS, n),
    }
    shapes |= {f"estimated_norm_scaling_factor_{way}": (LAYERS,) for way in ("in", "out")}
    path = folder / "clt_weights.safetensors"
    sparse_file(path, shapes, "BF16")
    with open(path, "r+b") as file:  # the factors, 1 each, are the last numbers
        file.seek(-2 * 2 * LAYERS, os.SEEK_END)
        file.write(np.full(2 * LAYERS, 0x3F80, "<u2").tobytes())
    config = tiny.clt_forge_config(n, n_layers=LAYERS, d_in=WIDTH)
    (folder / "clt_cfg.json").write_text(json.dumps(config))
    return n


def pt(folder: Path) -> int:
    n = 28_000
    shapes = {
        "W_enc": (WIDTH, n),
        "b_enc": (n,),
        "W_dec": (n, WIDTH),
        "b_dec": (WIDTH,),
        "b_dec_out": (WIDTH,),
    }
    h = torch_by_hand
    for i in range(LAYERS):
        items = {}
        for key, (name, shape) in enumerate(shapes.items()):
            count = math.prod(shape)
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            items[name] = h.tensor(str(key), "FloatStorage", count, 0, shape, strides)
        settings = {
            name: tiny.pt_value(value) for name, value in tiny.pt_settings(i, d_in=WIDTH, d_out=WIDTH).items()
        }
        data = h.finished(h.plain_dict({"cfg": h.plain_dict(settings), "state_dict": h.ordered_dict(items)}))
        with zipfile.ZipFile(folder / f"{i}.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3\n")
            for key, shape in enumerate(shapes.values()):
                archive.writestr(f"archive/data/{key}", bytes(4 * math.prod(shape)))
    return n


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what != "read":
        print({"layers": layers, "clt": clt, "clt_forge": clt_forge, "pt": pt}[what](folder))
        return
    n = int(sys.argv[3])
    tiny.write(folder / "small", tiny.circuit_tracer()[0])
    load_transcoders(folder / "small", verify=True)  # what the modules themselves take
    before = peak_bytes()
    source = load_transcoders(folder).source
    found = {"loading": peak_bytes() - before}
    rng = np.random.default_rng(0)
    begin = time.perf_counter()
    for layer in range(LAYERS):
        source.decoder_rows(layer, np.sort(rng.choice(n, 1000, replace=False)))
    found |= {"rows": peak_bytes() - before, "rows_seconds": time.perf_counter() - begin}
    for layer in range(LAYERS):
        source.encoder(layer)
        source.output_bias(layer)
    print(json.dumps(found | {"encoders": peak_bytes() - before}))


if __name__ == "__main__":
    main()
