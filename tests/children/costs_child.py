"""Child of test_file_costs.py: reads one file and prints its cost (JSON).

    python costs_child.py FILE

Time is the processor time of the reading, memory what the peak of the process grew by, in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import tokenizers  # noqa: F401 - so that their import is not counted
import yaml  # noqa: F401
from peak_memory import peak_bytes

from attnsparse.circuits import circuit as circuit_module
from attnsparse.errors import ConfigError, FormatError
from attnsparse.io.limits import Limits
from attnsparse.io.npz_file import NpzFile
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.strict_json import parse_object
from attnsparse.io.strict_yaml import read_yaml
from attnsparse.io.torch_file import TorchFile
from attnsparse.model.tokenizer import Tokenizer


def merges(path: Path) -> None:
    Tokenizer.from_files(path.with_name("vocab.json"), path)


READERS = {
    ".safetensors": lambda path: SafetensorsFile(path).close(),
    ".pth": lambda path: TorchFile(path).close(),
    ".npz": lambda path: NpzFile(path).close(),
    ".json": Tokenizer.load,
    ".txt": merges,
    ".yaml": read_yaml,
    ".config": lambda path: parse_object(path.read_bytes(), path, limits=Limits()),
    ".circuit.safetensors": circuit_module.load_circuit,
}


def main(path: Path) -> None:
    np.zeros(1)
    before, begin = peak_bytes(), time.process_time()
    try:
        READERS["".join(path.suffixes)](path)
        code = "read"
    except (FormatError, ConfigError) as error:
        code = error.code
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before, "code": code}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
