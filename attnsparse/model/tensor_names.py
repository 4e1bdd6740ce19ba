"""Checkpoint tensor names and layouts -> our parameters.

Ours are the names of Hugging Face's GPT-2 (see Config.parameter_shapes). Read are: those names; nanoGPT's,
whose linear weights are stored [out, in]; TransformerLens's, those of HookedTransformer (`embed.W_E`) and of
version 4's TransformerBridge (`embed.weight`), with or without folded LayerNorms. What training programs put
around or inside the names (`module.`, `_orig_mod.`, `model.transformer.`, ...) is taken off first. A
`Placement` says where one stored tensor goes: it is copied into a view of one of our arrays, so that
transposing and splitting q, k, v needs no second copy.

A tensor without a place is an error, because an unknown tensor may change what the model computes, with two
exceptions: buffers that hold the causal mask, and what names say is read from the model instead of by it
(value, score and classifier heads, losses, metrics, optimizer and random state). The latter are `left_out`.
Nothing inside a block is ever left out but those buffers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, file_error, quoted
from ..io.foreign import family_of
from .config import Config

HUGGING_FACE, NANOGPT, TRANSFORMER_LENS, BRIDGE = "hugging_face", "nanogpt", "transformer_lens", "bridge"

_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# what DataParallel, FSDP, torch.compile, activation checkpointing and Fabric put between the parts of a name
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
                       "_forward_module"))  # fmt: skip
# tensors that every model has one of; what comes before them is the name of the model in its program
_ANCHOR = re.compile(r"((?:.*\.)?)(wte\.weight|wpe\.weight|embed\.W_E|pos_embed\.(?:W_pos|weight))")
_BUFFERS = re.compile(r"h\.[0-9]+\.attn\.(bias|masked_bias)|blocks\.[0-9]+\.attn\.(mask|IGNORE)")
_LAYER = re.compile(r"(?:h|blocks)\.([0-9]{1,6})\.")
_NORMS = re.compile(r"(blocks\.[0-9]+\.ln[12]|ln_final)\.(w|b|weight|bias)")
# words in the first part of a name: what reads the model's output, what a training keeps, and what must not
# be among them because it may be read by the model
_HEADS = frozenset((
    "head", "heads", "score", "scores", "classifier", "classification", "regressor", "value", "values",
    "critic", "reward", "summary", "qa", "probe", "pooler",
))  # fmt: skip
_STATES = frozenset((
    "loss", "losses", "criterion", "metric", "metrics", "acc", "accuracy", "f1", "auroc", "perplexity",
    "optimizer", "optim", "scheduler", "rng", "epoch", "step", "steps", "iter",
))  # fmt: skip
_CHANGERS = frozenset((
    "lm", "lora", "adapter", "adapters", "rotary", "norm", "ln", "embed", "embedding", "embeddings", "emb",
    "pos", "position", "prompt", "prefix", "scale", "gate",
))  # fmt: skip

Shape = tuple[int, ...]


class Placement(NamedTuple):
    """One stored tensor: its name, our parameter, the shape it must have, and how to view ours like it."""

    source: str
    ours: str
    shape: Shape
    view: Callable[[np.ndarray], np.ndarray]


class Names:
    """The tensors of a file under plain names (no prefixes, no buffers), and the layout they are in.

    `shared` are names that are not in the file -> those that hold their values (safetensors' `save_model`
    keeps one name of a shared tensor and notes the others). Raises ConfigError duplicate_name and
    several_models.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], path: str, shared: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.source: dict[str, str] = {}  # plain name -> name in the file
        #: names in the file of tensors that no logit needs; `place` fills it
        self.left_out: list[str] = []
        kept = {name: name for name in shapes}
        kept |= {name: same for name, same in (shared or {}).items() if same in shapes and name not in shapes}
        unwrapped = {name: _without_wrappers(name) for name in kept}
        outer = self._outer(unwrapped.values())
        for name, own in kept.items():
            plain = unwrapped[name].removeprefix(outer).removeprefix("transformer.")
            if _is_mask(plain, shapes[own]):
                continue
            if plain in self.source:
                text = f"{quoted(self.source[plain])} and {quoted(name)} are the same parameter"
                raise file_error(ConfigError, "duplicate_name", path, text, field=name)
            self.shapes[plain] = shapes[own]
            self.source[plain] = own
        self.layout = self._layout()
        found = {int(match[1]) for match in map(_LAYER.match, self.shapes) if match}
        self.n_layer = next((layer for layer in range(len(found)) if layer not in found), len(found))
        self.layernorm_folded = self.layout in (TRANSFORMER_LENS, BRIDGE) and not any(
            map(_NORMS.fullmatch, self.shapes)
        )

    def _outer(self, names: Iterable[str]) -> str:
        """The prefix of the model's own names, without a last `transformer.`."""
        found = {match[1].removesuffix("transformer.") for match in map(_ANCHOR.fullmatch, names) if match}
        if len(found) > 1:
            listed = " and ".join(quoted(prefix) for prefix in sorted(found)[:3])
            text = f"holds several models, under {listed}; save the state dict of one of them"
            raise file_error(ConfigError, "several_models", self.path, text)
        return found.pop() if found else ""

    def _layout(self) -> str:
        if "embed.W_E" in self.shapes or "blocks.0.attn.W_Q" in self.shapes:
            return TRANSFORMER_LENS
        if "blocks.0.attn.q.weight" in self.shapes:
            return BRIDGE
        width = self._side("wte.weight", 1, 2) or self._side("lm_head.weight", 1, 2)
        attention = self.shapes.get("h.0.attn.c_attn.weight", ())
        transposed = len(attention) == 2 and attention[1] == width != attention[0]
        return NANOGPT if transposed else HUGGING_FACE

    def share_head(self) -> None:
        """Take the unembedding for the token embedding, of which the file has no other copy."""
        if "wte.weight" not in self.shapes and "lm_head.weight" in self.shapes:
            self.shapes["wte.weight"] = self.shapes["lm_head.weight"]
            self.source["wte.weight"] = self.source["lm_head.weight"]

    def _side(self, name: str, axis: int, rank: int) -> int | None:
        shape = self.shapes.get(name, ())
        return shape[axis] if len(shape) == rank else None

    def has(self, name: str) -> bool:
        """True if the file has a tensor of this plain name."""
        return name in self.shapes

    def sizes(self) -> dict[str, Any]:
        """Fields of Config that the shapes show (n_head and d_head only in HookedTransformer's layout)."""
        if self.layout == TRANSFORMER_LENS:
            found = {
                "n_vocab": self._side("embed.W_E", 0, 2), "d_model": self._side("embed.W_E", 1, 2),
                "n_ctx": self._side("pos_embed.W_pos", 0, 2), "d_mlp": self._side("blocks.0.mlp.W_in", 1, 2),
                "n_head": self._side("blocks.0.attn.W_Q", 0, 3),
                "d_head": self._side("blocks.0.attn.W_Q", 2, 3),
            }  # fmt: skip
        elif self.layout == BRIDGE:
            found = {
                "n_vocab": self._side("embed.weight", 0, 2), "d_model": self._side("embed.weight", 1, 2),
                "n_ctx": self._side("pos_embed.weight", 0, 2),
                "d_mlp": self._side("blocks.0.mlp.in.bias", 0, 1),
            }  # fmt: skip
        else:
            hidden = 0 if self.layout == NANOGPT else 1
            table = "wte.weight" if self.has("wte.weight") else "lm_head.weight"
            found = {
                "n_vocab": self._side(table, 0, 2), "d_model": self._side(table, 1, 2),
                "n_ctx": self._side("wpe.weight", 0, 2),
                "d_mlp": self._side("h.0.mlp.c_fc.weight", hidden, 2),
            }  # fmt: skip
        return {name: side for name, side in {"n_layer": self.n_layer, **found}.items() if side}

    def place(self, config: Config, rows: int, linear: bool | None = None) -> list[Placement]:
        """Where every stored tensor goes, in the order of the file; fills `left_out`.

        `rows` is the vocabulary as stored; where it is larger than `config.n_vocab` the rest is left out.
        `linear`: see `bridge_is_linear`. Raises ConfigError missing_tensor, unexpected_tensor or
        tensor_shape; the first one in the order of the file.
        """
        if self.layout == TRANSFORMER_LENS:
            wanted = _transformer_lens(config, rows, self.layernorm_folded)
        elif self.layout == BRIDGE:
            wanted = _bridge(config, rows, self.layernorm_folded, linear=bool(linear))
        else:
            wanted = _hugging_face(config, rows, transposed=self.layout == NANOGPT)
        placements = []
        for plain, shape in self.shapes.items():
            name = self.source[plain]
            if plain not in wanted:
                if plain == "lm_head.weight" and config.tied:
                    continue  # compared with the token embedding by the loader
                if plain in ("unembed.b_U", "unembed.bias") and not config.unembed_bias:
                    continue  # all zero
                if not _is_needless(plain, shape, rows):
                    raise file_error(ConfigError, "unexpected_tensor", self.path, self._unknown(name, config),
                                  field=name)  # fmt: skip
                self.left_out.append(name)
                continue
            ours, needed, view = wanted[plain]
            if shape != needed:
                text = f"tensor {quoted(name)} has shape {list(shape)}, expected {list(needed)}"
                raise file_error(ConfigError, "tensor_shape", self.path, text, field=name)
            placements.append(Placement(name, ours, shape, view))
        for plain in wanted:
            if plain not in self.shapes:
                text = f"tensor {quoted(plain)} is missing ({self._about(config)})"
                raise file_error(ConfigError, "missing_tensor", self.path, text, field=plain)
        return placements

    def _unknown(self, name: str, config: Config) -> str:
        family = family_of([name])
        if family:
            return f"tensor {quoted(name)}: {family}"
        return (
            f"tensor {quoted(name)} has no place in this model ({self._about(config)}); it may change what "
            "the model computes: if it does not, save the weights without it"
        )

    def bridge_is_linear(self, architecture: object) -> bool | None:
        """Whether a TransformerBridge keeps `attn.o` and `mlp.in` [out, in] (its own models do) or [in, out]
        (those made from Hugging Face's GPT-2); ConfigError if neither the shapes nor its config show it."""
        if self.layout != BRIDGE:
            return None
        if architecture in ("TransformerLensNative", "GPT2LMHeadModel"):
            return architecture == "TransformerLensNative"
        shape = self.shapes.get("blocks.0.mlp.in.weight", ())
        if len(shape) == 2 and shape[0] != shape[1]:
            return shape[1] == self._side("embed.weight", 1, 2)
        text = (
            "mlp.in is square, so the weights do not show whether it is transposed; pass "
            "config={'architecture': 'TransformerLensNative'} (boot_native) or 'GPT2LMHeadModel'"
        )
        raise file_error(ConfigError, "config_missing", self.path, text, field="architecture")

    def _about(self, config: Config) -> str:
        layers = f"layers 0-{self.n_layer - 1}" if self.n_layer else "no layers"
        return f"config says n_layer={config.n_layer}; {layers} found"


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_mask(plain: str, shape: Shape) -> bool:
    """Whether a tensor is the causal mask that older programs save, or the number that it puts in."""
    if not _BUFFERS.fullmatch(plain):
        return False
    return shape in ((), (1,)) or (len(shape) > 1 and shape[-1] == shape[-2] and set(shape[:-2]) <= {1})


def _is_needless(plain: str, shape: Shape, rows: int) -> bool:
    """Whether a name says that the tensor is part of a head, a loss, a metric or the state of a training.

    A head with a row for every token may be the unembedding under another name, so it is none of these.
    """
    words = set(re.split(r"[_0-9]+", plain.split(".")[0].lower()))
    if words & _CHANGERS:
        return False
    return bool(words & _STATES) or (bool(words & _HEADS) and rows not in shape)


Wanted = dict[str, tuple[str, Shape, Callable[[np.ndarray], np.ndarray]]]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.transpose(array)


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
    """HookedTransformer's names: heads are an axis, linear maps are [in, out]."""
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
    for layer in range(config.n_layer):
        theirs, ours = f"blocks.{layer}.", f"h.{layer}."
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
    return wanted if layernorm_folded else wanted | _norms(config, "w", "b")


def _bridge(config: Config, rows: int, layernorm_folded: bool, *, linear: bool) -> Wanted:
    """TransformerBridge's names: q, k and v are [out, in], the others too if `linear`."""
    width, mlp, inner = config.d_model, config.d_mlp, config.n_head * config.d_head

    def part(index: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: array.reshape(*array.shape[:-1], 3, inner)[..., index, :].T

    def stored(ours: str, shape: Shape) -> tuple[str, Shape, Callable[[np.ndarray], np.ndarray]]:
        return (ours, shape[::-1], _transposed) if linear else (ours, shape, _same)

    wanted: Wanted = {
        "embed.weight": ("wte.weight", (rows, width), _same),
        "pos_embed.weight": ("wpe.weight", (config.n_ctx, width), _same),
        "unembed.weight": ("lm_head.weight", (rows, width), _same),
    }
    if config.unembed_bias:
        wanted["unembed.bias"] = ("lm_head.bias", (rows,), _same)
    for layer in range(config.n_layer):
        theirs, ours = f"blocks.{layer}.", f"h.{layer}."
        for index, letter in enumerate("qkv"):
            at = f"{theirs}attn.{letter}."
            wanted[at + "weight"] = (ours + "attn.c_attn.weight", (inner, width), part(index))
            wanted[at + "bias"] = (ours + "attn.c_attn.bias", (inner,), part(index))
        wanted |= {
            theirs + "attn.o.weight": stored(ours + "attn.c_proj.weight", (inner, width)),
            theirs + "attn.o.bias": (ours + "attn.c_proj.bias", (width,), _same),
            theirs + "mlp.in.weight": stored(ours + "mlp.c_fc.weight", (width, mlp)),
            theirs + "mlp.in.bias": (ours + "mlp.c_fc.bias", (mlp,), _same),
            theirs + "mlp.out.weight": stored(ours + "mlp.c_proj.weight", (mlp, width)),
            theirs + "mlp.out.bias": (ours + "mlp.c_proj.bias", (width,), _same),
        }
    return wanted if layernorm_folded else wanted | _norms(config, "weight", "bias")


def _norms(config: Config, weight: str, bias: str) -> Wanted:
    """TransformerLens's LayerNorms, whose arrays have these names."""
    norms = {"ln_final.": "ln_f."}
    for layer in range(config.n_layer):
        norms |= {f"blocks.{layer}.ln{which}.": f"h.{layer}.ln_{which}." for which in (1, 2)}
    wanted: Wanted = {}
    for theirs, ours in norms.items():
        wanted[theirs + weight] = (ours + "weight", (config.d_model,), _same)
        wanted[theirs + bias] = (ours + "bias", (config.d_model,), _same)
    return wanted
