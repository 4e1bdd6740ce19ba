"""Finds the files of a checkpoint: an embedded model, a folder, a single file, or a repository of the hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..errors import ConfigError, FormatError, file_error, quoted
from ..io import bundle
from ..io.foreign import (
    ADAPTER,
    BEGIN_BYTES,
    INCOMPLETE,
    NO_WEIGHTS,
    OWN,
    SHORT_NAMES,
    kind_of_bytes,
    kind_of_ending,
    kind_of_folder,
)
from ..io.limits import Limits
from ..io.regular_file import RegularFile, read_small
from ..io.safetensors_file import SafetensorsFile
from ..io.strict_json import parse_object, shown
from ..io.tensor_source import TensorInfo, TensorSource
from ..io.torch_file import TorchFile
from ..items import name_of
from . import hub
from .tokenizer.files import FILES as TOKENIZER_FILES

MODELS_FOLDER = Path(__file__).parent.parent / "pretrained"
#: the bundle that a `Trainer` saves; what it holds is in training/checkpoint.py
TRAINING = bundle.Schema("training checkpoint", 1, ".checkpoint.safetensors")
TORCH_ENDINGS = (".bin", ".pth", ".pt", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# in this order; the first pattern that matches decides
_WEIGHT_PATTERNS = ("model.safetensors", "model.safetensors.index.json", "*.safetensors", "pytorch_model.bin",
                    "pytorch_model.bin.index.json", "*final.pth", "*.pth", "*.pt", "*.bin")  # fmt: skip


class Found(NamedTuple):
    """What `find` settled: the weights (a file, or the index of several), their folder, and a name."""

    weights: Path
    folder: Path
    name: str
    from_hub: bool = False

    @property
    def sparse_release(self) -> bool:
        """True for the layout of the published sparse checkpoints: a file that ends in final.pth."""
        return self.weights.name.endswith("final.pth")


def embedded_names() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    if not MODELS_FOLDER.is_dir():
        return ()
    return tuple(sorted(item.name for item in MODELS_FOLDER.iterdir() if (item / "config.json").is_file()))


def find(what: str | os.PathLike[str], revision: str | None = None) -> Found:
    """Locate the weights that `what` means; FileNotFoundError lists what was tried if there are none."""
    if isinstance(what, str) and what in embedded_names():
        return _in_folder(MODELS_FOLDER / what, what)
    path = Path(_check.path(what, "the model"))
    if path.is_dir():
        return _in_folder(path, name_of(path.resolve()))
    if path.exists():
        if path.suffix not in (".safetensors", *TORCH_ENDINGS):
            known = f"not a kind of file that holds weights; known: .safetensors {' '.join(TORCH_ENDINGS)}"
            kind = kind_of_ending(path) or _kind_of_file(path)
            raise file_error(FormatError, "magic", path, f"this is {kind}" if kind else known)
        _refuse_adapter(path.name.startswith("adapter_"), path)
        return Found(path, path.parent, name_of(named_by(path)))
    tried = f"no file or folder {str(what)[:200]!r}"
    repository = SHORT_NAMES.get(what, what) if isinstance(what, str) else ""
    if _HUB_ID.fullmatch(repository):
        try:
            return _in_folder(hub.fetch(repository, revision), repository, from_hub=True)
        except (ImportError, hub.NotOnHub) as error:
            short = f" (as {repository!r})" if repository != what else ""
            tried += f"; the Hugging Face hub{short}: {error}"
    elif isinstance(what, str) and path.name == what:
        tried += "; models of the Hugging Face hub are called owner/name"
    if Path(path.name) == path and (MODELS_FOLDER / path).is_dir():
        tried = f"{path.name!r} is a set of transcoders: see load_transcoders"
    names = ", ".join(embedded_names()) or "none in this build"
    text = f"{tried}; models that come with attnsparse: {names}"
    raise FileNotFoundError(errno.ENOENT, text)


def named_by(path: Path) -> Path:
    """The path whose last part is the name of the model in a file."""
    if path.stem == "final":
        return path.resolve().parent
    return Path(os.fspath(path).removesuffix(TRAINING.ending)) if is_training(path) else path.with_suffix("")


def is_training(path: Path) -> bool:
    """Whether a file has the name of a training checkpoint."""
    return path.name.endswith(TRAINING.ending) and path.name != TRAINING.ending


def find_tokenizer(what: str | os.PathLike[str]) -> Path:
    """The file or folder of a tokenizer; FileNotFoundError lists what was tried if there is none."""
    path = Path(_check.path(what, "the tokenizer"))
    if isinstance(what, str) and what in embedded_names():
        return MODELS_FOLDER / what
    repository = SHORT_NAMES.get(what, what) if isinstance(what, str) else ""
    if path.exists() or not _HUB_ID.fullmatch(repository):
        return path
    short = f" (as {repository!r})" if repository != what else ""
    try:
        folder = hub.fetch_tokenizer(repository)
        if any((folder / name).exists() for name in TOKENIZER_FILES):
            return folder
        reason = "its folder there holds no tokenizer"
    except (ImportError, hub.NotOnHub) as error:
        reason = str(error)
    text = f"no file or folder {str(what)[:200]!r}; the Hugging Face hub{short}: {reason}; give a folder with"
    raise FileNotFoundError(errno.ENOENT, f"{text} vocab.json and merges.txt, or a tokenizer.json")


def _kind_of_file(path: Path) -> str | None:
    with RegularFile(path) as file:
        return kind_of_bytes(file.read(0, min(file.size, BEGIN_BYTES)))


def _refuse_adapter(is_adapter: bool, path: Path) -> None:
    if is_adapter:
        raise file_error(ConfigError, "other_model", path, f"this is {ADAPTER}")


def _in_folder(folder: Path, name: str, *, from_hub: bool = False) -> Found:
    _refuse_adapter(any(folder.glob("adapter_*")), folder)  # transformers would load the adapter too
    for pattern in _WEIGHT_PATTERNS:
        matches = [
            path
            for path in sorted(folder.glob(pattern))
            if not any(path.match(other) for other in NO_WEIGHTS)
        ]
        if len(matches) > 1:
            listed = ", ".join(quoted(match.name) for match in matches[:4])
            text = f"{len(matches)} weight files match {pattern}: {listed}; name the one to load"
            raise file_error(ConfigError, "several_files", folder, text)
        if matches:
            return Found(matches[0], folder, name, from_hub)
    kind = kind_of_folder(folder)
    within = sorted(path.parent.name for path in folder.glob("*/*") if path.name in _WEIGHT_PATTERNS)
    if kind is not None:
        text = f"no weights in this folder: it is {kind}"
    elif within:
        text = f"no weights in this folder, only in {', '.join(map(quoted, within[:4]))}; load one of these"
    else:
        text = f"no weights in this folder; looked for {', '.join(_WEIGHT_PATTERNS)}"
    raise FileNotFoundError(errno.ENOENT, text, os.fspath(folder))


def open_weights(path: Path, limits: Limits) -> TensorSource:
    """Open the weights at `path`: .safetensors, a torch file, or an index.json naming several of either."""
    if path.suffix == ".json":
        return ShardedSource(path, limits)
    if path.suffix != ".safetensors":
        return TorchFile(path, limits=limits)
    source = SafetensorsFile(path, limits=limits)
    if bundle.KEY in source.metadata:
        source.close()
        raise file_error(FormatError, "magic", path, f"this is {OWN}")
    return source


class ShardedSource(TensorSource):
    """Weights in several files, as `weight_map` of an index.json says. Every file is open until `close`.

    Raises FormatError shard_index, shard_name, shard_missing, shard_mismatch and what the files
    themselves raise.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        index = parse_object(read_small(path, "max_index_bytes", limits=limits), path, limits=limits)
        where = _weight_map(index, path)
        self._shards: dict[str, TensorSource] = {}
        try:
            for name in dict.fromkeys(where.values()):
                if not (path.parent / name).exists():
                    text = f"names {quoted(name)}, which is not beside it; {INCOMPLETE}"
                    raise file_error(FormatError, "shard_missing", path, text, field=name)
                self._shards[name] = open_weights(path.parent / name, limits)
            _check_shards(self._shards, where, path)
        except BaseException:
            self.close()
            raise
        self._source = {tensor: self._shards[name] for tensor, name in where.items()}
        super().__init__(path, {tensor: source.tensors[tensor] for tensor, source in self._source.items()})
        self.left_out = tuple(name for shard in self._shards.values() for name in shard.left_out)

    def read_into(self, name: str, out: np.ndarray) -> None:
        self._source[name].read_into(name, out)

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        return self._source[name].blocks(name)

    def close(self) -> None:
        for source in self._shards.values():
            source.close()


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise file_error(
            FormatError, "shard_index", path, f"'weight_map' must be an object, got {shown(where)}"
        )
    endings = (".safetensors",) if path.name.endswith(".safetensors.index.json") else TORCH_ENDINGS
    for tensor, name in where.items():
        plain = isinstance(name, str) and name == os.path.basename(name) and not set(name) & set("/\\:\0")
        if not plain or name.startswith(".") or not name.endswith(endings):
            text = f"tensor {quoted(tensor)} should be in {shown(name)}, which is not a plain file name"
            raise file_error(FormatError, "shard_name", path, text, field=tensor)
    return where


def _check_shards(shards: Mapping[str, TensorSource], where: Mapping[str, str], path: Path) -> None:
    """Every tensor of the index is in its file and every tensor of a file is in the index."""
    for tensor, name in where.items():
        if tensor not in shards[name].tensors:
            text = f"tensor {quoted(tensor)} is not in {quoted(name)}, where the index says it is"
            raise file_error(FormatError, "shard_mismatch", path, text, field=tensor)
    for name, source in shards.items():
        for tensor in source.tensors:
            if where.get(tensor) != name:
                text = f"{quoted(name)} holds tensor {quoted(tensor)}, which the index does not place there"
                raise file_error(FormatError, "shard_mismatch", path, text, field=tensor)


def tensor_shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: info.shape for name, info in tensors.items()}
