"""Child of test_hostile_code.py: reads hostile files with an audit hook, prints what was done (JSON).

    python hostile_child.py FOLDER

FOLDER/<kind>/... are read by kind; an event that is no opening of a file below FOLDER for reading is listed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

WATCHED = (
    "import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "marshal.", "shutil.",
    "code.", "cpython.run", "urllib", "webbrowser", "tempfile", "builtins.input", "mmap", "signal",
)  # fmt: skip
HARMLESS = ("os.listdir", "os.scandir")


def main(root: Path) -> None:
    import encodings.idna  # noqa: F401 - imported by codecs when first needed
    import unicodedata  # noqa: F401

    import numpy as np
    import tokenizers  # noqa: F401
    import yaml  # noqa: F401

    import attnsparse as asp
    from attnsparse.circuits import circuit as circuit_module
    from attnsparse.errors import ConfigError, FormatError, UnsafeFileError
    from attnsparse.io.npz_file import NpzFile
    from attnsparse.model import load as checkpoint
    from attnsparse.model.tokenizer import Tokenizer  # noqa: F401
    from attnsparse.training.trainer import Trainer
    from attnsparse.transcoders.load import load_transcoders

    asp.load(root / "warm", dtype="float32").run(np.zeros(2, np.int32), threads=1)
    kinds = {
        "torch": lambda path: checkpoint.load(path),
        "transcoder": lambda path: load_transcoders(path, verify=True),
        "yaml": lambda path: load_transcoders(path),
        "npz": lambda path: NpzFile(path).close(),
        "circuit": lambda path: circuit_module.load_circuit(path),
        "checkpoint": lambda path: Trainer.resume(path, None),
    }
    events: list[str] = []
    recording = False

    def hook(event: str, arguments: tuple) -> None:
        if not recording:
            return
        if event == "open":
            name, flags = arguments[0], arguments[2]
            mine = isinstance(name, int) or str(name).startswith(str(root))
            if not mine or flags & (os.O_WRONLY | os.O_RDWR) or str(name).endswith(".py"):
                events.append(f"{event} {arguments}")
        elif event.startswith(WATCHED) and event not in HARMLESS:
            events.append(f"{event} {arguments}"[:200])

    for path in [root / "warm", root / "bait"]:  # lazily imported parts
        checkpoint.load(path)
    sys.addaudithook(hook)
    outcomes: dict[str, dict[str, int]] = {}
    for kind, read in kinds.items():
        for path in sorted((root / kind).iterdir()):
            recording = True
            try:
                read(path)
                found = "read"
            except UnsafeFileError:
                found = "unsafe"
            except (FormatError, ConfigError) as error:
                found = error.code
            finally:
                recording = False
            outcomes.setdefault(kind, {}).setdefault(found, 0)
            outcomes[kind][found] += 1
    recording = True
    model = checkpoint.load(root / "bait")
    recording = False
    imported = sorted({"torch", "zipfile", "pickle", "modeling_evil", "evil"} & set(sys.modules) - BEFORE)
    result = {"outcomes": outcomes, "events": events, "imported": imported, "bait": model.config.n_layer}
    print(json.dumps(result | {"harmed": (root / "harm").exists()}))


BEFORE = set(sys.modules) | {"zipfile", "pickle"}  # NumPy imports these two itself

if __name__ == "__main__":
    main(Path(sys.argv[1]))
