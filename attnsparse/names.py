"""Checkpoint tensor names and layouts -> our parameters.

Ours are the names of Hugging Face's GPT-2 (see Config.parameter_shapes). Read are: those names with or
without `transformer.` and `_orig_mod.`; nanoGPT, whose linear weights are stored [out, in]; and
TransformerLens state dicts, with or without folded LayerNorms. A `Placement` says where one stored tensor
goes: it is copied into a view of one of our arrays, so that transposing and splitting q, k, v needs no second
copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .config import Config
from .errors import ConfigError, located, quoted

HUGGING_FACE, NANOGPT, TRANSFORMER_LENS = "hugging_face", "nanogpt", "transformer_lens"

_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BUFFERS = re.compile(r"h\.[0-9]+\.attn\.(bias|masked_bias)|blocks\.[0-9]+\.attn\.(mask|IGNORE)")
_LAYER = re.compile(r"(?:h|blocks)\.([0-9]{1,6})\.")

Shape = tuple[int, ...]


class Placement(NamedTuple):
    """One stored tensor: its name, our parameter, the shape it must have, and how to view ours like it."""

    source: str
    ours: str
    shape: Shape
    view: Callable[[np.ndarray], np.ndarray]


class Names:
    """The tensors of a file under plain names (no prefixes, no buffers), and the layout they are in."""

    def __init__(self, shapes: Mapping[str, Shape], path: str) -> None:
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.source: dict[str, str] = {}  # plain name -> name in the file
        for name, shape in shapes.items():
            plain = name.removeprefix("_orig_mod.").removeprefix("transformer.")
            if _BUFFERS.fullmatch(plain):
                continue
            if plain in self.source:
                text = f"{quoted(self.source[plain])} and {quoted(name)} are the same parameter"
                raise located(ConfigError, "duplicate_name", path, text, field=name)
            self.shapes[plain] = shape
            self.source[plain] = name
        self.layout = self._layout()
        found = {int(match[1]) for match in map(_LAYER.match, self.shapes) if match}
        self.n_layer = next((layer for layer in range(len(found)) if layer not in found), len(found))
        self.layernorm_folded = self.layout == TRANSFORMER_LENS and not any(
            re.fullmatch(r"(blocks\.[0-9]+\.ln[12]|ln_final)\.[wb]", name) for name in self.shapes
        )

    def _layout(self) -> str:
        if "embed.W_E" in self.shapes or "blocks.0.attn.W_Q" in self.shapes:
            return TRANSFORMER_LENS
        width = self._side("wte.weight", 1, 2)
        attention = self.shapes.get("h.0.attn.c_attn.weight", ())
        transposed = len(attention) == 2 and attention[1] == width != attention[0]
        return NANOGPT if transposed else HUGGING_FACE

    def _side(self, name: str, axis: int, rank: int) -> int | None:
        shape = self.shapes.get(name, ())
        return shape[axis] if len(shape) == rank else None

    def has(self, name: str) -> bool:
        """True if the file has a tensor of this plain name."""
        return name in self.shapes

    def sizes(self) -> dict[str, Any]:
        """Fields of Config that the shapes show (n_head and d_head only in the TransformerLens layout)."""
        if self.layout == TRANSFORMER_LENS:
            found = {
                "n_vocab": self._side("embed.W_E", 0, 2), "d_model": self._side("embed.W_E", 1, 2),
                "n_ctx": self._side("pos_embed.W_pos", 0, 2), "d_mlp": self._side("blocks.0.mlp.W_in", 1, 2),
                "n_head": self._side("blocks.0.attn.W_Q", 0, 3),
                "d_head": self._side("blocks.0.attn.W_Q", 2, 3),
            }  # fmt: skip
        else:
            hidden = 0 if self.layout == NANOGPT else 1
            found = {
                "n_vocab": self._side("wte.weight", 0, 2), "d_model": self._side("wte.weight", 1, 2),
                "n_ctx": self._side("wpe.weight", 0, 2),
                "d_mlp": self._side("h.0.mlp.c_fc.weight", hidden, 2),
            }  # fmt: skip
        return {name: side for name, side in {"n_layer": self.n_layer, **found}.items() if side}

    def place(self, config: Config, rows: int) -> list[Placement]:
        """Where every stored tensor goes, in the order of the file.

        `rows` is the vocabulary as stored; where it is larger than `config.n_vocab` the rest is left out.
        Raises ConfigError missing_tensor, unexpected_tensor or tensor_shape; the first one in the order of
        the file.
        """
        if self.layout == TRANSFORMER_LENS:
            wanted = _transformer_lens(config, rows, self.layernorm_folded)
        else:
            wanted = _hugging_face(config, rows, transposed=self.layout == NANOGPT)
        placements = []
        for plain, shape in self.shapes.items():
            if plain not in wanted:
                if plain == "lm_head.weight" and config.tied:
                    continue  # compared with the token embedding by the loader
                if plain == "unembed.b_U" and not config.unembed_bias:
                    continue  # all zero
                text = (
                    f"tensor {quoted(self.source[plain])} has no place in this model ({self._about(config)})"
                )
                raise located(ConfigError, "unexpected_tensor", self.path, text, field=self.source[plain])
            ours, needed, view = wanted[plain]
            if shape != needed:
                text = f"tensor {quoted(self.source[plain])} has shape {list(shape)}, expected {list(needed)}"
                raise located(ConfigError, "tensor_shape", self.path, text, field=self.source[plain])
            placements.append(Placement(self.source[plain], ours, shape, view))
        for plain in wanted:
            if plain not in self.shapes:
                text = f"tensor {quoted(plain)} is missing ({self._about(config)})"
                raise located(ConfigError, "missing_tensor", self.path, text, field=plain)
        return placements

    def _about(self, config: Config) -> str:
        layers = f"layers 0-{self.n_layer - 1}" if self.n_layer else "no layers"
        return f"config says n_layer={config.n_layer}; {layers} found"


Wanted = dict[str, tuple[str, Shape, Callable[[np.ndarray], np.ndarray]]]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T


def _hugging_face(config: Config, rows: int, *, transposed: bool) -> Wanted:
    wanted: Wanted = {}
    for name, shape in config.parameter_shapes().items():
        if name in ("wte.weight", "lm_head.weight", "lm_head.bias"):
            shape = (rows, *shape[1:])
        if transposed and name.endswith(_LINEAR):
            wanted[name] = (name, shape[::-1], _transposed)
        else:
            wanted[name] = (name, shape, _same)
    return wanted


def _transformer_lens(config: Config, rows: int, layernorm_folded: bool) -> Wanted:
    width, mlp, heads, head = config.d_model, config.d_mlp, config.n_head, config.d_head

    def weight_part(index: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: array.reshape(width, 3, heads, head)[:, index].transpose(1, 0, 2)

    def bias_part(index: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: array.reshape(3, heads, head)[index]

    def by_head(array: np.ndarray) -> np.ndarray:
        return array.reshape(heads, head, width)

    wanted: Wanted = {
        "embed.W_E": ("wte.weight", (rows, width), _same),
        "pos_embed.W_pos": ("wpe.weight", (config.n_ctx, width), _same),
        "unembed.W_U": ("lm_head.weight", (width, rows), _transposed),
    }
    if config.unembed_bias:
        wanted["unembed.b_U"] = ("lm_head.bias", (rows,), _same)
    norms = {"ln_final": "ln_f"}
    for layer in range(config.n_layer):
        theirs, ours = f"blocks.{layer}.", f"h.{layer}."
        norms |= {theirs + "ln1": ours + "ln_1", theirs + "ln2": ours + "ln_2"}
        for index, letter in enumerate("QKV"):
            weight, bias = f"{theirs}attn.W_{letter}", f"{theirs}attn.b_{letter}"
            wanted[weight] = (ours + "attn.c_attn.weight", (heads, width, head), weight_part(index))
            wanted[bias] = (ours + "attn.c_attn.bias", (heads, head), bias_part(index))
        wanted |= {
            theirs + "attn.W_O": (ours + "attn.c_proj.weight", (heads, head, width), by_head),
            theirs + "attn.b_O": (ours + "attn.c_proj.bias", (width,), _same),
            theirs + "mlp.W_in": (ours + "mlp.c_fc.weight", (width, mlp), _same),
            theirs + "mlp.b_in": (ours + "mlp.c_fc.bias", (mlp,), _same),
            theirs + "mlp.W_out": (ours + "mlp.c_proj.weight", (mlp, width), _same),
            theirs + "mlp.b_out": (ours + "mlp.c_proj.bias", (width,), _same),
        }
    if not layernorm_folded:
        for theirs, ours in norms.items():
            wanted[theirs + ".w"] = (ours + ".weight", (width,), _same)
            wanted[theirs + ".b"] = (ours + ".bias", (width,), _same)
    return wanted
