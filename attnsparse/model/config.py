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
ACTIVATIONS = ("gelu_new", "gelu", "relu")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and conventions of a GPT-2-family transformer and its gate.

    Raises
    ------
    ConfigError
        ``config_type`` or ``config_value``; the message names the field.
    """

    n_layer: int
    n_head: int
    d_model: int  #: width of the residual stream
    d_head: int  #: width of one head; n_head * d_head need not be d_model
    d_mlp: int
    n_ctx: int  #: most tokens in a sequence
    n_vocab: int
    activation: str = "gelu_new"  #: gelu_new (tanh form), gelu (exact) or relu
    ln_eps: float = 1e-5
    gated: bool = False  #: a pattern entry is kept only where score + gate_bias > 0
    gate_bias: float = 0.0
    tied: bool = True  #: the unembedding is the token embedding
    bias: bool = True  #: biases of all linear maps and LayerNorms: all there or all absent
    unembed_bias: bool = False
    scale_attn: bool = True  #: divide scores by sqrt(d_head)
    scale_by_inverse_layer: bool = False  #: also divide the scores of layer l (from 0) by l + 1

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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`. Unknown and missing names are ConfigErrors."""
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
        """All fields under their own names, as plain Python values."""
        return dataclasses.asdict(self)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight array of such a model, in order."""
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
        """Number of weights, exactly."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())


def check_kind(
    name: str, value: object, kind: str, *, path: str | os.PathLike[str] = "Config", label: str | None = None
) -> Any:
    """`value` as the kind (int, float, bool, str) that field `name` of a Config wants; ConfigError
    `config_type` else.

    `path` and `label` say where the value came from and what it is called there.
    """
    label = label or name
    if kind == "int":
        most = SIZE_LIMITS[name]
        if type(value) is int and 1 <= value <= most:
            return value
        expected = f"an integer in 1..{most}"
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
