"""The shape and the conventions of a model: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, file_error
from ..io.strict_json import shown

#: upper bounds of the integers in a Config
SIZE_LIMITS = {
    "n_layer": 512, "n_head": 1024, "d_model": 65_536, "d_head": 65_536, "d_mlp": 1_048_576, "n_ctx":
    1_048_576, "n_vocab": 4_194_304,
}  # fmt: skip
#: fields of dense models whose softmax is over some positions only; 0: over all
KEPT_ENTRIES = ("window", "top_k", "min_weight")
#: fields that are written only where they are set
OPTIONAL = ("self_closed", *KEPT_ENTRIES)
ACTIVATIONS = ("gelu_new", "gelu", "relu")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and conventions of a GPT-2-family transformer and its gate; immutable.

    Parameters
    ----------
    n_layer : int
        Layers L.
    n_head : int
        Heads H of each layer.
    d_model : int
        Width E of the residual stream.
    d_head : int
        Width D of one head; ``n_head * d_head`` need not be `d_model`.
    d_mlp : int
        Width M of the MLPs.
    n_ctx : int
        Largest number of tokens in a prompt.
    n_vocab : int
        Tokens V in the vocabulary.
    activation : {"gelu_new", "gelu", "relu"}, default "gelu_new"
        Of the MLPs: GELU in its tanh form, exact GELU, or ReLU.
    ln_eps : float, default 1e-5
        Added to the variance in every LayerNorm; above 0.
    gated : bool, default False
        Keep a pattern entry only where ``score + gate_bias > 0``.
    gate_bias : float, default 0.0
        Added to the scores before the gate.
    self_closed : bool, default False
        No gate opens the entry of a token to itself, so that every edge leads from another token. For gated
        models; the softmax is over the token itself too.
    tied : bool, default True
        The unembedding is the token embedding.
    bias : bool, default True
        All linear maps and LayerNorms have biases; False: none has.
    unembed_bias : bool, default False
        The unembedding has a bias.
    scale_attn : bool, default True
        Divide scores by ``sqrt(d_head)``.
    scale_by_inverse_layer : bool, default False
        Divide the scores of layer l (from 0) by l + 1 too.
    window : int, default 0
        The softmax of a query is over the last so many positions, its own among them; 0: over all.
    top_k : int, default 0
        Of these it is over the so many with the largest scores, and those equal to the last of them; 0: over
        all.
    min_weight : float, default 0.0
        Of these it is over those that have at least this share of the softmax, and over the largest in any
        case; below 1. 0: over all. `window`, `top_k` and `min_weight` are for dense models: sparse attention
        by a fixed rule, to compare the gate with.

    Raises
    ------
    ConfigError
        ``config_type`` or ``config_value``; the message names the field.

    References
    ----------
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2). The gate: "Sparse
    Attention Post-Training for Mechanistic Interpretability", arXiv 2512.05865.
    """

    n_layer: int
    n_head: int
    d_model: int
    d_head: int
    d_mlp: int
    n_ctx: int
    n_vocab: int
    activation: str = "gelu_new"
    ln_eps: float = 1e-5
    gated: bool = False
    gate_bias: float = 0.0
    self_closed: bool = False
    tied: bool = True
    bias: bool = True
    unembed_bias: bool = False
    scale_attn: bool = True
    scale_by_inverse_layer: bool = False
    window: int = 0
    top_k: int = 0
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = check_kind(item.name, getattr(self, item.name), str(item.type))
            object.__setattr__(self, item.name, value)
        if self.activation not in ACTIVATIONS:
            text = (
                f"activation {shown(self.activation)} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
            raise file_error(ConfigError, "config_value", "Config", text, field="activation")
        if not self.ln_eps > 0:
            raise file_error(
                ConfigError,
                "config_value",
                "Config",
                f"ln_eps must be above 0, got {self.ln_eps}",
                field="ln_eps",
            )
        self._check_attention()

    def _check_attention(self) -> None:
        kept = [name for name in KEPT_ENTRIES if getattr(self, name)]
        text = None
        if not 0 <= self.min_weight < 1:
            kept, text = ["min_weight"], f"min_weight must be at least 0 and below 1, got {self.min_weight}"
        elif self.self_closed and not self.gated:
            kept, text = ["self_closed"], "self_closed is for gated models, this one is dense"
        elif kept and self.gated:
            text = f"{kept[0]} is for dense models; the gate chooses the entries of a gated one"
        if text is not None:
            raise file_error(ConfigError, "config_value", "Config", text, field=kept[0])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Make a config from a mapping, the inverse of `to_dict`.

        Parameters
        ----------
        values : mapping of str to value
            Fields by name. The seven sizes are required.

        Returns
        -------
        Config

        Raises
        ------
        ConfigError
            ``config_value`` for an unknown or a missing name, ``config_type`` for a value of another type.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                text = f"unknown name {shown(name)}; known: {', '.join(sorted(known))}"
                raise file_error(ConfigError, "config_value", "Config", text, field=str(name))
        for name in SIZE_LIMITS:
            if name not in values:
                raise file_error(ConfigError, "config_value", "Config", f"{name} is missing", field=name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, but `self_closed`, `window`, `top_k` and `min_weight` only where they are set.

        Returns
        -------
        dict of str to int, float, bool or str
            `from_dict` reads it back.
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value or name not in OPTIONAL}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weight arrays of such a model.

        Returns
        -------
        dict of str to tuple of int
            Hugging Face's names, in the order in which the arrays are stored.
        """
        width, mlp, heads = self.d_model, self.d_mlp, self.n_head * self.d_head
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.n_vocab, width),
            "wpe.weight": (self.n_ctx, width),
        }
        for layer in range(self.n_layer):
            at = f"h.{layer}."
            shapes |= {
                at + "ln_1.weight": (width,),
                at + "ln_1.bias": (width,),
                at + "attn.c_attn.weight": (width, 3 * heads),
                at + "attn.c_attn.bias": (3 * heads,),
                at + "attn.c_proj.weight": (heads, width),
                at + "attn.c_proj.bias": (width,),
                at + "ln_2.weight": (width,),
                at + "ln_2.bias": (width,),
                at + "mlp.c_fc.weight": (width, mlp),
                at + "mlp.c_fc.bias": (mlp,),
                at + "mlp.c_proj.weight": (mlp, width),
                at + "mlp.c_proj.bias": (width,),
            }
        shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
        if not self.bias:
            shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".bias")}
        if not self.tied:
            shapes["lm_head.weight"] = (self.n_vocab, width)
        if self.unembed_bias:
            shapes["lm_head.bias"] = (self.n_vocab,)
        return shapes

    def n_parameters(self) -> int:
        """Number of weights.

        Returns
        -------
        int
            The sum of the sizes of `parameter_shapes`.
        """
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())


@dataclasses.dataclass(frozen=True)
class LensConfig:
    """Sizes of a model under TransformerLens's names. Made by `Model.cfg`.

    Attributes
    ----------
    n_layers, n_heads : int
        Layers, and heads of each.
    d_model, d_head, d_mlp : int
        Widths of the residual stream, of a head and of an MLP.
    d_vocab : int
        Tokens in the vocabulary.
    n_ctx : int
        Largest number of tokens in a prompt.
    act_fn : str
        "gelu_new", "gelu" or "relu".
    eps : float
        Added to the variance in every LayerNorm.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    act_fn: str
    eps: float

    @classmethod
    def of(cls, config: Config) -> LensConfig:
        """The same sizes under the other names.

        Parameters
        ----------
        config : Config

        Returns
        -------
        LensConfig
        """
        c = config
        return cls(
            c.n_layer, c.n_head, c.d_model, c.d_head, c.d_mlp, c.n_vocab, c.n_ctx, c.activation, c.ln_eps
        )


def check_kind(
    name: str, value: object, kind: str, *, path: str | os.PathLike[str] = "Config", label: str | None = None
) -> Any:
    """`value` as the kind (int, float, bool, str) that field `name` of a Config wants; ConfigError
    `config_type` else.

    `path` and `label` say where the value came from and what it is called there.
    """
    label = label or name
    if kind == "int":
        least, most = (1, SIZE_LIMITS[name]) if name in SIZE_LIMITS else (0, SIZE_LIMITS["n_ctx"])
        if type(value) is int and least <= value <= most:
            return value
        expected = f"an integer in {least}..{most}"
    elif kind == "float":
        if type(value) in (int, float) and abs(value) < 1e30:  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
        expected = "a finite number"
    elif kind == "bool":
        if type(value) is bool:
            return value
        expected = "true or false"
    else:
        if type(value) is str:
            return value
        expected = "a string"
    raise file_error(
        ConfigError, "config_type", path, f"{label} must be {expected}, got {shown(value)}", field=label
    )
