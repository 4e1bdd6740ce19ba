"""What one pass over a batch recorded, as zero-copy read-only arrays in the shape of its prompts."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .batch import Batch
from .tokenizer import token_texts

if TYPE_CHECKING:
    from .. import _core
    from .model import Model

# name in Python -> array of the core
SQUARE = {"pattern": "pattern", "scores": "scores", "gate": "gate"}
LAYERED = {
    "resid_pre": "resid", "resid_mid": "resid_mid", "resid_post": "resid",
    "q": "qkv", "k": "qkv", "v": "qkv",
    "z": "z", "result": "result", "attn_out": "attn_out", "mlp_pre": "mlp_pre", "mlp_post": "mlp_post",
    "mlp_out": "mlp_out", "ln1_scale": "ln1_scale", "ln1_normalized": "ln1_normalized",
    "ln2_scale": "ln2_scale", "ln2_normalized": "ln2_normalized",
}  # fmt: skip
FLAT = {name: name for name in ("embed", "pos_embed", "ln_final_scale", "ln_final_normalized", "token_loss")}
CORE_NAMES = {**SQUARE, **LAYERED, **FLAT, "lse": "lse", "loss": "token_loss"}


class Recorded:
    """Arrays of one pass over one prompt or several: what `Run` and `Gradients` share.

    L layers, H heads, T tokens, D head width, E model width, M MLP width.  A batch of equally long prompts
    has its arrays with a batch axis in front; a batch of other prompts has them one prompt at a time.
    """

    def __init__(
        self, model: Model, core: _core.Run | _core.Gradients, batch: Batch, index: int | None
    ) -> None:
        self.model = model  #: the `Model` that was run
        self._core = core
        self._batch = batch
        self._index = 0 if batch.single else index
        self._recorded = frozenset(core.names)

    # --- prompts

    def __len__(self) -> int:
        return 1 if self._index is not None else len(self._batch)

    def _prompt_index(self, i: int) -> int:
        n = len(self)
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(f"a prompt index must be an integer, got {type(i).__name__}") from None
        if not -n <= i < n:
            raise IndexError(f"prompt index {i} is out of range: this run has {n} prompt{'s' * (n != 1)}")
        return self._index if self._index is not None else i % n

    @property
    def prepend_bos(self) -> bool:
        """Whether a BOS token was put before the prompt; positions count it."""
        return self._batch.prepend_bos

    @property
    def prompt(self) -> str | None:
        """The text that was run; None if token ids were given."""
        return self._batch.texts[self._one("prompt")]

    @property
    def tokens(self) -> np.ndarray:
        """Token ids, int32 [T], or [batch, T] of equally long prompts."""
        return self._flat(self._batch.tokens)

    @property
    def n_tokens(self) -> int:
        """T, the number of tokens (of each prompt)."""
        return self._length()

    @property
    def token_strings(self) -> list[str]:
        """The tokens as text; an id without a name as `<id>`."""
        first, last = self._range(self._one("token_strings"))
        return token_texts(self.model.tokenizer, self._batch.tokens[first:last].tolist())

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the arrays that are here."""
        return tuple(name for name, core in CORE_NAMES.items() if core in self._recorded and name != "loss")

    @property
    def _n_layer(self) -> int:
        """Layers that were computed."""
        return self.model.config.n_layer

    # --- arrays

    @property
    def pattern(self) -> np.ndarray:
        """Attention entries as they multiply v, [L, H, query, key], C-contiguous."""
        return self._array("pattern")

    @property
    def scores(self) -> np.ndarray:
        """Attention scores before the softmax, [L, H, query, key]; -inf for key > query."""
        return self._array("scores")

    @property
    def gate(self) -> np.ndarray:
        """Whether each gate is open, bool [L, H, query, key]."""
        return self._array("gate")

    @property
    def lse(self) -> np.ndarray:
        """Log-sum-exp of each row of scores, [L, H, T]."""
        return self._array("lse")

    @property
    def q(self) -> np.ndarray:
        """Queries, [L, T, H, D]."""
        return self._array("q")

    @property
    def k(self) -> np.ndarray:
        """Keys, [L, T, H, D]."""
        return self._array("k")

    @property
    def v(self) -> np.ndarray:
        """Values, [L, T, H, D]."""
        return self._array("v")

    @property
    def z(self) -> np.ndarray:
        """What each head reads, the weighted sum of values, [L, T, H, D]."""
        return self._array("z")

    @property
    def result(self) -> np.ndarray:
        """What each head writes into the residual stream, [L, T, H, E]."""
        return self._array("result")

    @property
    def resid_pre(self) -> np.ndarray:
        """Residual stream before each layer, [L, T, E]."""
        return self._array("resid_pre")

    @property
    def resid_mid(self) -> np.ndarray:
        """Residual stream between attention and MLP, [L, T, E]."""
        return self._array("resid_mid")

    @property
    def resid_post(self) -> np.ndarray:
        """Residual stream after each layer, [L, T, E]."""
        return self._array("resid_post")

    @property
    def attn_out(self) -> np.ndarray:
        """Output of each layer's attention, [L, T, E]."""
        return self._array("attn_out")

    @property
    def mlp_pre(self) -> np.ndarray:
        """MLP activations before the nonlinearity, [L, T, M]."""
        return self._array("mlp_pre")

    @property
    def mlp_post(self) -> np.ndarray:
        """MLP activations after the nonlinearity, [L, T, M]."""
        return self._array("mlp_post")

    @property
    def mlp_out(self) -> np.ndarray:
        """Output of each MLP, [L, T, E]."""
        return self._array("mlp_out")

    @property
    def ln1_scale(self) -> np.ndarray:
        """Standard deviation that the LayerNorm before attention divides by, [L, T]."""
        return self._array("ln1_scale")

    @property
    def ln1_normalized(self) -> np.ndarray:
        """(x - mean) / scale before attention, without weight and bias, [L, T, E]."""
        return self._array("ln1_normalized")

    @property
    def ln2_scale(self) -> np.ndarray:
        """Standard deviation that the LayerNorm before the MLP divides by, [L, T]."""
        return self._array("ln2_scale")

    @property
    def ln2_normalized(self) -> np.ndarray:
        """(x - mean) / scale before the MLP, without weight and bias, [L, T, E]."""
        return self._array("ln2_normalized")

    @property
    def ln_final_scale(self) -> np.ndarray:
        """Standard deviation that the final LayerNorm divides by, [T]."""
        return self._array("ln_final_scale")

    @property
    def ln_final_normalized(self) -> np.ndarray:
        """(x - mean) / scale at the end, without weight and bias, [T, E]."""
        return self._array("ln_final_normalized")

    @property
    def embed(self) -> np.ndarray:
        """Token embeddings, [T, E]."""
        return self._array("embed")

    @property
    def pos_embed(self) -> np.ndarray:
        """Position embeddings, [T, E]."""
        return self._array("pos_embed")

    @property
    def token_loss(self) -> np.ndarray:
        """Cross-entropy of each next token in nats, [T - 1]."""
        return self._array("token_loss")

    # --- packed -> one prompt, or a batch of equally long ones

    def _array(self, name: str) -> np.ndarray:
        """One recorded array in the shape of these prompts; AttributeError if it was not recorded."""
        self._need(name)
        packed: np.ndarray = self._core.array(CORE_NAMES[name])
        if name in SQUARE:
            return self._square(packed)
        if name == "lse":
            return np.swapaxes(self._layered(packed.transpose(0, 2, 1)), -1, -2)
        if name in ("q", "k", "v"):
            packed = packed[:, :, "qkv".index(name)]
        elif name == "resid_pre":
            packed = packed[:-1]
        elif name == "resid_post":
            packed = packed[1:]
        elif name == "token_loss":
            return self._flat(packed)[..., :-1]
        return self._flat(packed) if name in FLAT else self._layered(packed)

    def _need(self, name: str) -> None:
        if CORE_NAMES[name] not in self._recorded:
            raise AttributeError(f"this run did not record {name}; {self._how_to_record(name)}")

    def _how_to_record(self, name: str) -> str:
        return f"run with record={name!r} (it has: {', '.join(self.recorded) or 'nothing'})"

    def _one(self, what: str) -> int:
        if self._index is None:
            raise ValueError(f"{what} needs a run of one prompt, this one has {len(self)}; use run[i].{what}")
        return self._index

    def _range(self, prompt: int) -> tuple[int, int]:
        return int(self._batch.offsets[prompt]), int(self._batch.offsets[prompt + 1])

    def _length(self) -> int:
        if self._index is not None:
            return int(self._batch.lengths[self._index])
        lengths = set(self._batch.lengths.tolist())
        if len(lengths) > 1:
            raise ValueError(
                f"prompts have {min(lengths)} to {max(lengths)} tokens, so they share no array; use run[i]"
            )
        return int(lengths.pop())

    def _flat(self, packed: np.ndarray) -> np.ndarray:
        """[N, ...] -> [T, ...] or [batch, T, ...]."""
        if self._index is not None:
            first, last = self._range(self._index)
            return packed[first:last]
        return packed.reshape(len(self), self._length(), *packed.shape[1:])

    def _layered(self, packed: np.ndarray) -> np.ndarray:
        """[L, N, ...] -> [L, T, ...] or [batch, L, T, ...]."""
        if self._index is not None:
            first, last = self._range(self._index)
            return packed[:, first:last]
        return np.swapaxes(packed.reshape(len(packed), len(self), self._length(), *packed.shape[2:]), 0, 1)

    def _square(self, packed: np.ndarray) -> np.ndarray:
        """Packed per prompt (L, H, T, T) -> [L, H, T, T] or [batch, L, H, T, T]."""
        config = self.model.config
        heads = (self._n_layer, config.n_head)
        if self._index is None:
            return packed.reshape(len(self), *heads, self._length(), self._length())
        units, t = self._n_layer * config.n_head, self._length()
        first, last = self._batch.squares[self._index : self._index + 2] * units
        return packed[first:last].reshape(*heads, t, t)

    def __copy__(self) -> Recorded:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or sent to another process: send the model and the "
            "prompts and run there, or keep its arrays or tables made of it"
        )
