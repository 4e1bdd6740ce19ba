"""How much a file may ask for before it is refused."""

from __future__ import annotations

import dataclasses
import os

from .. import _check
from ..errors import LimitError, file_error

HARD_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """Upper bounds for reading files; a file above one of them is refused with a `LimitError` that names it.

    Raise one by name, for example `asp.load(path, limits=Limits(max_weight_bytes=2**38))`, if you trust the
    file. All are integers of at least 1.
    """

    max_header_bytes: int = (
        16 * 2**20
    )  #: safetensors header, with the fields of a bundle; at most 100,000,000
    max_json_depth: int = 64  #: nesting of lists and objects
    max_string_bytes: int = 2**20  #: one string in a JSON text
    max_json_keys: int = 200_000  #: keys of one JSON object
    max_json_values: int = 2_000_000  #: commas and opening brackets of one JSON text, which bounds its memory
    max_tensors: int = 100_000  #: tensors in one file
    max_rank: int = 8  #: dimensions of a tensor
    max_name_bytes: int = 1024  #: a tensor's name, or an entry's name in an archive
    max_config_bytes: int = 2**20  #: config.json
    max_yaml_bytes: int = 2**16  #: config.yaml of transcoders
    max_index_bytes: int = 16 * 2**20  #: index of shards, prompts of tasks
    max_graph_bytes: int = 128 * 2**20  #: graph JSON of circuit-tracer and Neuronpedia
    max_array_bytes: int = 16 * 2**30  #: file of a circuit or a graph
    max_tokenizer_bytes: int = 64 * 2**20  #: tokenizer.json, vocab.json, merges.txt and the files beside them
    max_merges: int = 1_000_000  #: lines of merges.txt
    max_table_cells: int = 1_000_000  #: values of a CSV of prompts, counted by commas and line ends
    max_prompts: int = 50_000  #: prompts of a task in one file
    max_pickle_bytes: int = 16 * 2**20  #: data.pkl of a torch file
    max_pickle_opcodes: int = 4_000_000  #: steps of data.pkl
    max_pickle_objects: int = 1_000_000  #: stack and memo together
    max_zip_entries: int = 100_000  #: files in a torch archive
    max_weight_bytes: int = 64 * 2**30  #: weights of a model in memory

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            most = HARD_MAX_HEADER_BYTES if item.name == "max_header_bytes" else None
            _check.integer(getattr(self, item.name), item.name, 1, most)

    def check(
        self,
        name: str,
        value: int,
        path: str | os.PathLike[str] | None,
        what: str,
        *,
        code: str,
        field: str | None = None,
    ) -> None:
        """Raise LimitError if `value`, described by `what` ("header of 20,000,000 bytes"), is above limit
        `name`."""
        limit = getattr(self, name)
        if value > limit:
            text = f"{what} is above {name}={limit:,}; pass limits=Limits({name}=...) if you trust the file"
            raise file_error(LimitError, code, path, text, field=field)


DEFAULT_LIMITS = Limits()
