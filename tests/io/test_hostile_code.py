"""Files that would run code if anybody let them: none is, whatever the format (R6)."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import reliability
import tiny_checkpoints as tiny
import tiny_transcoders
import torch_by_hand as h
from bundle_by_hand import around
from reliability import report

NAMES = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("builtins", "eval"),
    ("builtins", "exec"), ("builtins", "__import__"), ("builtins", "getattr"), ("builtins", "open"),
    ("__builtin__", "eval"), ("importlib", "import_module"), ("operator", "methodcaller"),
    ("runpy", "run_path"), ("functools", "partial"), ("ctypes", "CDLL"), ("code", "interact"),
    ("torch", "load"), ("torch.jit", "load"), ("torch.hub", "load"),
    ("torch._utils", "_rebuild_wrapper_subclass"), ("numpy", "load"), ("pickle", "loads"),
    ("torch.utils._config_module", "load_config"), ("torch.serialization", "_get_layout"),
    ("types", "CodeType"), ("torch.fx.experimental.symbolic_shapes.ShapeEnv", "evaluate_guards_expression"),
    ("pip", "main"), ("sae_training.config", "LanguageModelSAERunnerConfig.__reduce__"),
    ("sae_training.config", "os.system"), ("timeit", "timeit"), ("cProfile", "run"), ("pdb", "run"),
    ("asyncio", "create_subprocess_shell"),
]  # fmt: skip
RECORD = h.name("sae_training.config", "LanguageModelSAERunnerConfig")


def command(root: Path) -> bytes:
    return h.text(f"touch {root / 'harm'}")


def calls(module: str, name: str, text: bytes) -> list[bytes]:
    """Ways of calling a name, or of getting at it, that pickle has."""
    return [
        h.name(module, name) + b"(" + text + b"tR",
        h.name(module, name) + b")\x81" + h.plain_dict({"a": text}) + b"b",
        b"(" + text + b"i" + module.encode() + b"\n" + name.encode() + b"\n",
        b"(" + h.name(module, name) + text + b"o",
        h.text(module) + h.text(name) + b"\x93" + text + b"\x85R",
        h.name(module, name) + b"(" + text + b"t}\x92",
        h.ordered_dict({}) + h.name(module, name) + b"b",
        RECORD + b")\x81" + h.plain_dict({"__reduce__": h.name(module, name) + text + b"\x85R"}) + b"b",
        RECORD + h.name(module, name) + text + b"\x85R\x85R",
    ]


def pickles(root: Path) -> list[bytes]:
    """Hostile pickles: in the place of the state dict, of a tensor's hooks, and of what lies beside it."""
    good = h.tensor("0", "FloatStorage", 4, 0, [4], [1])
    made = []
    for index, (module, name) in enumerate(NAMES):
        for call in calls(module, name, command(root)):
            place = [call, h.plain_dict({"cfg": call, "state_dict": h.ordered_dict({"W": good})}),
                     h.ordered_dict({"a": good[: good.rindex(b"\x89") + 1] + call + b"tR"})]  # fmt: skip
            made.append(h.finished(place[index % 3]))
    return made


class Evil:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple:
        import os

        return os.system, (self.text,)


def write_all(root: Path) -> dict[str, int]:
    """Every hostile file under `root`/<kind>; how many of each kind."""
    for kind in ("torch", "transcoder", "yaml", "npz", "circuit", "checkpoint"):
        (root / kind).mkdir()
    shell = f"touch {root / 'harm'}"
    for index, data in enumerate(pickles(root)):
        whole = h.archive(data, {"0": bytes(16)})
        (root / "torch" / f"{index:03}.pth").write_bytes(whole)
        (root / "transcoder" / f"{index:03}.pt").write_bytes(whole)
    (root / "torch" / "old.bin").write_bytes(pickle.dumps({"a": Evil(shell)}, 2))
    (root / "checkpoint" / "a.safetensors").write_bytes(pickle.dumps(Evil(shell)))
    (root / "circuit" / "c.safetensors").write_bytes(pickle.dumps(Evil(shell)))
    (root / "circuit" / "d.safetensors").write_bytes(around(pickle.dumps(Evil(shell), 0)))
    tags = ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system",
            "!!python/module:os", "!!python/object:subprocess.Popen", "!python/object/apply:os.system",
            "!<tag:yaml.org,2002:python/object/apply:os.system>")  # fmt: skip
    for index, (tag, key) in enumerate(itertools.product(tags, ("model_name", "scan", "more"))):
        text = tiny_transcoders.config() + f'{key}x: {tag} ["{shell}"]\n'
        (root / "yaml" / f"{index}.yaml").write_text(text)
    objects = io.BytesIO()
    np.savez(objects, a=np.array([Evil(shell)], object))
    (root / "npz" / "a.npz").write_bytes(objects.getvalue())
    bait = {"auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "evil.Config"},
            "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
            "architectures": ["Evil"], "tokenizer_class": "Evil"}  # fmt: skip
    tiny.write_folder(root / "warm", tiny.weights(), tiny.plain_config())
    tiny.write_folder(root / "bait", tiny.weights(), tiny.plain_config(**bait))
    for name in ("modeling_evil", "evil", "__init__", "setup", "tokenization_evil"):
        (root / "bait" / f"{name}.py").write_text(f"import os\nos.system({shell!r})\n")
    (root / "bait" / "tokenizer_config.json").write_text(json.dumps(bait))
    return {path.name: len(list(path.iterdir())) for path in root.iterdir()}


@pytest.mark.filterwarnings("ignore")
def test_no_hostile_file_runs_anything(tmp_path):
    counts = write_all(tmp_path)
    assert counts["torch"] >= 200
    found = reliability.child("hostile_child.py", str(tmp_path), timeout=120)
    assert not found["harmed"]
    assert found["events"] == []
    assert found["imported"] == []
    assert found["bait"] == 2  # loaded, with its auto_map and trust_remote_code ignored
    outcomes = found["outcomes"]
    assert all("read" not in each for each in outcomes.values()), outcomes
    for kind in ("torch", "transcoder"):  # an old-style pickle is told apart by its first byte
        assert set(outcomes[kind]) <= {"unsafe", "magic"}
        assert outcomes[kind]["unsafe"] >= 290
    assert set(outcomes["yaml"]) == {"yaml_feature"}
    assert sum(outcomes["circuit"].values()) == 2
    total = sum(sum(each.values()) for each in outcomes.values())
    text = f"{total} hostile files of 6 formats, {outcomes['torch']['unsafe']} pickles in two readers"
    report("R6", f"{text}: all refused, 0 import, open, exec, subprocess, socket or ctypes events")


def test_the_hostile_files_would_harm(tmp_path):
    """What is refused above does run where pickles are loaded: the test has teeth."""
    for kind in ("harm",):
        data = pickles(tmp_path)[0]
        assert not (tmp_path / kind).exists()
        pickle.loads(data)
        assert (tmp_path / kind).exists()
