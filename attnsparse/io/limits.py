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

    Raise one by name, for example ``asp.load(path, limits=Limits(max_weight_bytes=2**38))``, if you trust the
    file. All are integers of at least 1.

    Parameters
    ----------
    max_header_bytes : int, default 16 MiB
        Bytes of a safetensors header, which in files of circuits, graphs and training checkpoints holds all
        but the arrays; at most 100,000,000.
    max_json_depth : int, default 64
        Nesting of lists and objects.
    max_string_bytes : int, default 1 MiB
        Bytes of one string in a JSON text.
    max_json_keys : int, default 200,000
        Keys of one JSON object.
    max_json_values : int, default 2,000,000
        Commas and opening brackets of one JSON text, which bounds its memory.
    max_tensors : int, default 100,000
        Tensors in one file.
    max_rank : int, default 8
        Dimensions of a tensor.
    max_name_bytes : int, default 1,024
        Bytes of a tensor's name, or of an entry's name in an archive.
    max_config_bytes : int, default 1 MiB
        Bytes of config.json.
    max_yaml_bytes : int, default 64 KiB
        Bytes of config.yaml of transcoders.
    max_index_bytes : int, default 16 MiB
        Bytes of an index of shards, and of prompts of tasks.
    max_graph_bytes : int, default 128 MiB
        Bytes of a graph's JSON from circuit-tracer or Neuronpedia.
    max_array_bytes : int, default 16 GiB
        Bytes of the file of a circuit or a graph.
    max_tokenizer_bytes : int, default 64 MiB
        Bytes of tokenizer.json, vocab.json, merges.txt and the files beside them.
    max_merges : int, default 1,000,000
        Lines of merges.txt.
    max_table_cells : int, default 1,000,000
        Values of a CSV of prompts, counted by commas and line ends.
    max_prompts : int, default 50,000
        Prompts of a task in one file.
    max_pickle_bytes : int, default 16 MiB
        Bytes of data.pkl in a torch file.
    max_pickle_opcodes : int, default 4,000,000
        Steps of data.pkl.
    max_pickle_objects : int, default 1,000,000
        Objects on the stack and in the memo of data.pkl together.
    max_zip_entries : int, default 100,000
        Files in a torch archive.
    max_weight_bytes : int, default 64 GiB
        Bytes of a model's weights in memory.

    Raises
    ------
    TypeError, ValueError
        For a limit that is not an integer of at least 1.
    """

    max_header_bytes: int = 16 * 2**20
    max_json_depth: int = 64
    max_string_bytes: int = 2**20
    max_json_keys: int = 200_000
    max_json_values: int = 2_000_000
    max_tensors: int = 100_000
    max_rank: int = 8
    max_name_bytes: int = 1024
    max_config_bytes: int = 2**20
    max_yaml_bytes: int = 2**16
    max_index_bytes: int = 16 * 2**20
    max_graph_bytes: int = 128 * 2**20
    max_array_bytes: int = 16 * 2**30
    max_tokenizer_bytes: int = 64 * 2**20
    max_merges: int = 1_000_000
    max_table_cells: int = 1_000_000
    max_prompts: int = 50_000
    max_pickle_bytes: int = 16 * 2**20
    max_pickle_opcodes: int = 4_000_000
    max_pickle_objects: int = 1_000_000
    max_zip_entries: int = 100_000
    max_weight_bytes: int = 64 * 2**30

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
        """Compare a size with one of the limits.

        Parameters
        ----------
        name : str
            The limit, such as "max_header_bytes".
        value : int
            The size that was found.
        path : path or None
            The file.
        what : str
            Describes the size in the message: "header of 20,000,000 bytes".
        code : str
            Code of the error.
        field : str, optional
            Field of the error.

        Raises
        ------
        LimitError
            If `value` is above the limit.
        """
        limit = getattr(self, name)
        if value > limit:
            text = f"{what} is above {name}={limit:,}; pass limits=Limits({name}=...) if you trust the file"
            raise file_error(LimitError, code, path, text, field=field)


DEFAULT_LIMITS = Limits()
