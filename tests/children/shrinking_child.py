"""Child of test_file_manners.py: reads a file that another thread cuts, many times; prints outcomes (JSON).

python shrinking_child.py FILE COUNT
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

from bundle_by_hand import contents

from attnsparse.errors import FormatError
from attnsparse.io.npz_file import NpzFile
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.torch_file import TorchFile
from attnsparse.model.tokenizer import Tokenizer


def read_tensors(reader):
    def read(path: Path) -> None:
        with reader(path) as file:
            for name in file.tensors:
                file.read(name, "float64")

    return read


READERS = {
    ".safetensors": read_tensors(SafetensorsFile),
    ".pth": read_tensors(TorchFile),
    ".npz": read_tensors(NpzFile),
    ".checkpoint.safetensors": contents,
    ".json": Tokenizer.load,
}


def main(path: Path, count: int) -> None:
    whole, read, rng = path.read_bytes(), READERS["".join(path.suffixes)], Random(0)
    read(path)
    begin = time.perf_counter()
    read(path)
    usual = time.perf_counter() - begin
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        path.write_bytes(whole)
        length, wait = rng.randrange(len(whole)), rng.choice((0, usual)) * rng.random() ** 3
        ready = threading.Event()

        def cut(length: int = length, wait: float = wait, ready: threading.Event = ready) -> None:
            ready.set()
            if wait:
                time.sleep(wait)
            os.truncate(path, length)

        thread = threading.Thread(target=cut)
        thread.start()
        ready.wait()
        try:
            read(path)
            outcomes["read"] += 1
        except FormatError as error:
            outcomes[error.code] += 1
        thread.join()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
