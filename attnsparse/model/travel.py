"""How a `Model` travels to another process: by where it was loaded from, or whole as bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ..errors import quoted, raise_file_error
from ..io.bundle import Bundle, Schema, bundle_pieces
from ..io.bundle_fields import check_flag, check_integer, check_names, check_texts
from ..io.limits import DEFAULT_LIMITS, Limits
from ..io.regular_file import BytesFile
from .config import Config
from .tokenizer import Tokenizer
from .tokenizer.tokenizer import tokenizer_from_json

if TYPE_CHECKING:
    from .. import _core
    from .model import Model

SCHEMA = Schema("model", 1, ".model.safetensors")
_TOKENIZER = "tokenizer"  # a tensor: the UTF-8 bytes of its JSON, four to a number, with spaces at the end
_FIELDS = {"name", "config", "tokenizer"}
_ADVICE = (
    "a worker cannot load it: save it and load the folder, or send model.to_bytes() and make it again with "
    "Model.from_bytes"
)


class Origin(NamedTuple):
    """Where a model was loaded from, and how: arguments of `attnsparse.load`."""

    what: str  # absolute path, name of an embedded model, or repository of the hub
    revision: str | None  # the commit, if the hub told
    allow_nonfinite: bool
    tokenizer: Tokenizer | None  # given
    gated: bool | None
    config: Mapping[str, Any]
    strict: bool
    limits: Limits


class ModelTravel:
    """The part of `Model` that pickles and copies it."""

    config: Config
    name: str
    dtype: np.dtype[Any]
    tokenizer: Tokenizer | Any
    _core: _core.Model
    # where it was loaded from, the version of its weights then, and the tokenizer that was read there
    _origin: tuple[Origin, int, Tokenizer | None] | None

    def _set_origin(self, origin: Origin, tokenizer: Tokenizer | None) -> None:
        self._origin = (origin, self._core.version, tokenizer)

    def _is_as_loaded(self) -> bool:
        return self._origin is not None and self._origin[1] == self._core.version

    def to_bytes(self) -> bytes:
        """The whole model as bytes, for `from_bytes`: configuration, weights, tokenizer and name.

        Returns
        -------
        bytes
            One safetensors file with checksums over every byte; the same model gives the same bytes.

        Raises
        ------
        RuntimeError
            While another thread changes the weights.
        """
        fields: dict[str, Any] = {"name": self.name, "config": self.config.to_dict(), "tokenizer": None}
        with self._core.reading():
            tensors = {name: self._core.parameter(name) for name in self._core.names}
            if self.tokenizer is not None:
                text, _, bos_id, split_special = self.tokenizer.__reduce__()[1]
                fields["tokenizer"] = {"bos_id": bos_id, "encode_special_tokens": split_special}
                data = text.encode()
                tensors[_TOKENIZER] = np.frombuffer(data + b" " * (-len(data) % 4), "<i4")
            return b"".join(bundle_pieces(SCHEMA, fields, tensors))

    @classmethod
    def from_bytes(cls, data: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Model:
        """Make the model again that `to_bytes` wrote. Nothing in the bytes is ever run.

        Parameters
        ----------
        data : bytes
        limits : Limits, optional
            Largest sizes that are read.

        Returns
        -------
        Model

        Raises
        ------
        FormatError
            For other bytes, or bytes that are damaged or cut off.
        ConfigError
            For a configuration that no model can have.
        """
        with Bundle(BytesFile(data, "the bytes of a model"), SCHEMA, limits=limits) as bundle:
            config = _checked(bundle, limits)
            fields, arrays = bundle.fields, bundle.read_all()
        text = arrays.pop(_TOKENIZER, None)
        tokenizer = None if text is None else _tokenizer(text, fields["tokenizer"])
        dtype = next(iter(arrays.values())).dtype.name
        make = cast("type[Model]", cls)
        return make(config, arrays, tokenizer, fields["name"], dtype)

    def __copy__(self) -> Model:
        return cast("Model", self).copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return cast("Model", self).copy()

    def __reduce__(self) -> tuple[Any, ...]:
        from .arrival import arrived, remember
        from .shared_weights import offered

        if self._origin is None:
            raise TypeError(f"this Model was not loaded from a file, so {_ADVICE}")
        if not self._is_as_loaded():
            raise TypeError(f"this Model was changed after it was loaded, so {_ADVICE}")
        origin, _, read = self._origin
        replaced = None if self.tokenizer is read else (self.tokenizer,)
        model = cast("Model", self)
        arguments = (origin, self.dtype.name, model.digest, self.name, replaced)
        remember(model, arguments)
        return arrived, (*arguments, offered(model))


def _checked(bundle: Bundle, limits: Limits) -> Config:
    """The configuration, once fields and tensors are known to be those of a model that has it."""
    fields, path = bundle.fields, bundle.path
    check_names(fields, _FIELDS, "the file", path)
    check_texts(fields, ("name",), path)
    tokenizer = fields["tokenizer"]
    right = tokenizer is None or isinstance(tokenizer, dict)
    if not right or not isinstance(fields["config"], dict):
        text = "'config' must be an object, and 'tokenizer' null or an object"
        raise_file_error("header_value", path, text, "config")
    if tokenizer is not None:
        check_names(tokenizer, {"bos_id", "encode_special_tokens"}, "'tokenizer'", path)
        check_flag(tokenizer, "encode_special_tokens", path)
        if tokenizer["bos_id"] is not None:
            check_integer(tokenizer, "bos_id", 0, 2**31 - 1, path)
    config = Config.from_dict(fields["config"])
    shapes = config.parameter_shapes()
    dtype = next((info.dtype for name, info in bundle.tensors.items() if name in shapes), "F32")
    expected = {name: (shape, dtype) for name, shape in shapes.items()}
    found = {name: (info.shape, info.dtype) for name, info in bundle.tensors.items()}
    text_info = found.pop(_TOKENIZER, None)
    if (text_info is None) != (tokenizer is None) or (text_info and text_info[1] != "I32"):
        raise_file_error("dtype", path, "tensor 'tokenizer' must be I32, there if the field is", _TOKENIZER)
    n_text = 4 * math.prod(text_info[0]) if text_info else 0
    what = f"a tokenizer of {n_text:,} bytes"
    limits.check("max_tokenizer_bytes", n_text, path, what, code="tokenizer_limit")
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name) or dtype not in ("F32", "F64"):
            shown = f"{expected.get(name)}, got {found.get(name)}"
            text = f"tensor {quoted(name)} does not fit the configuration: expected {shown}"
            raise_file_error("size_mismatch", path, text, name)
    n_bytes = config.n_parameters() * (8 if dtype == "F64" else 4)
    limits.check("max_weight_bytes", n_bytes, path, f"a model of {n_bytes:,} bytes", code="weight_limit")
    return config


def _tokenizer(text: np.ndarray, fields: Mapping[str, Any]) -> Tokenizer:
    data = text.astype("<i4", copy=False).tobytes().decode("utf-8", "replace").rstrip(" ")
    return tokenizer_from_json(data, None, fields["bos_id"], fields["encode_special_tokens"])
