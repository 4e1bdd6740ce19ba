"""Fetches checkpoints from the Hugging Face hub with huggingface_hub, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

from .tokenizer.files import FILES as TOKENIZER_FILES

_TIMEOUT_SECONDS = 20
GPT2_REPOSITORY = "openai-community/gpt2"
_SMALL_FILES = ("config.json", *TOKENIZER_FILES)
# only one kind of weights is fetched: the first of which the repository has a file
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("*final.pth",),
    ("*.pth", "*.pt", "*.bin"),
)


class NotOnHub(Exception):
    """The hub has no such repository, revision or weights, or is out of reach and the cache is empty."""


def fetch(repository: str, revision: str | None = None) -> Path:
    """Download config, tokenizer and weights of `owner/name` to the hub's cache and return their folder.

    `revision` is a branch, tag or commit. Where the hub cannot be reached, or HF_HUB_OFFLINE=1 forbids it,
    what the cache holds is used. Raises ImportError if huggingface_hub is not installed, and NotOnHub.
    """
    library = _library()
    try:
        about = library.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        listed = [item.rfilename for item in about.siblings or ()]
    except Exception as error:  # its kinds of network errors change with its versions
        folder = _cached(library, repository, revision)
        if folder is None:
            raise NotOnHub(_first_line(error)) from error
        return folder
    files = [name for name in listed if name in _SMALL_FILES] + _weight_files(listed, repository)
    return Path(library.snapshot_download(repository, revision=revision, allow_patterns=files))


def fetch_tokenizer(repository: str) -> Path:
    """A folder with the tokenizer of `owner/name`, from the hub or its cache; errors as of `fetch`."""
    library = _library()
    try:
        return Path(library.snapshot_download(repository, allow_patterns=[*_SMALL_FILES]))
    except Exception as error:  # see fetch
        raise NotOnHub(_first_line(error)) from error


def fetch_gpt2_tokenizer() -> Path | None:
    """A folder with GPT-2's tokenizer, from the hub or its cache; None if neither has it."""
    try:
        return Path(
            _library().snapshot_download(GPT2_REPOSITORY, allow_patterns=["vocab.json", "merges.txt"])
        )
    except Exception:  # see fetch; a model without a tokenizer still runs on token ids
        return None


def _cached(library: ModuleType, repository: str, revision: str | None) -> Path | None:
    """The folder in the cache that holds weights and all that `fetch` would have fetched with them."""
    for patterns in _WEIGHTS:
        wanted = [*_SMALL_FILES, *patterns]
        try:
            found = library.snapshot_download(
                repository, revision=revision, allow_patterns=wanted, local_files_only=True
            )
        except Exception:  # not cached, or not all of it
            continue
        if any(path for pattern in patterns for path in Path(found).glob(pattern)):
            return Path(found)
    return None


def _weight_files(listed: Sequence[str], repository: str) -> list[str]:
    for patterns in _WEIGHTS:
        names = [
            name for name in listed if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)
        ]
        if names:
            return names
    raise NotOnHub(f"{repository} holds no weights in a format that attnsparse reads")


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        text = "reading from the hub needs huggingface_hub: pip install attnsparse[hub]"
        raise ImportError(text) from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
