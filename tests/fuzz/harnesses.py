"""What is fuzzed: for each format seeds made on the spot, a mutator, and a reading of any bytes.

A reading may end well (True) or with one of the named errors (False); every other exception, an impossible
result, a message against the rules and more than a second of processor time are failures. What is accepted is
used as a caller would use it, and where another reader or a way back exists, the two are compared.
"""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import safetensors
import tiny_training

import attnsparse
from attnsparse.circuits import circuit as circuit_module
from attnsparse.errors import ConfigError, FormatError, TrainingDiverged
from attnsparse.graphs.graph import Graph, load_graph
from attnsparse.io.bundle import Bundle, write_bundle
from attnsparse.io.npz_file import NpzFile
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.strict_json import parse_object
from attnsparse.io.strict_yaml import read_yaml
from attnsparse.io.tensor_source import FLOAT_TYPES, FileSource
from attnsparse.io.torch_file import TorchFile
from attnsparse.model import load as checkpoint
from attnsparse.model.config import Config
from attnsparse.model.hf_config import hugging_face_config, read_config
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.training.trainer import Trainer
from attnsparse.transcoders.load import load_transcoders

from . import mutators, seeds
from .seeds import folder, pack, place, unpack

MAX_BYTES = 65_536
MAX_SECONDS = 1.0
TEXTS = ("", "a b c", "  \n\t", "é☃😀\0", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "1 2 ##")


class Harness(NamedTuple):
    """`read` takes any bytes, valid or not."""

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: mutators.Mutator
    read: Callable[[bytes], None]


def attempt(harness: Harness, data: bytes) -> tuple[bool, float]:
    """(read or refused, seconds of processor time); whatever else happens raises."""
    begin = time.thread_time()
    try:
        harness.read(data)
        accepted = True
    except (FormatError, ConfigError) as error:
        accepted = False
        message = str(error)
        if not (error.code and len(message) <= 300 and message.isprintable()):
            raise AssertionError(f"a message against the rules: {message!r}") from error
    except (FileNotFoundError, IsADirectoryError):  # folders whose files have other names now
        accepted = False
    seconds = time.thread_time() - begin
    assert seconds < MAX_SECONDS, f"{seconds:.2f} s"
    return accepted, seconds


# ----------------------------------------------------------------------------------------------- reading


def use(source: FileSource) -> None:
    """Read all that could be a weight, in every way."""
    with source:
        for name, info in source.tensors.items():
            if info.dtype not in FLOAT_TYPES:
                continue
            whole = source.read(name)
            assert whole.shape == info.shape
            if info.shape and whole.size:
                blocks = [block for _, block in source.blocks(name)]
                with np.errstate(over="ignore"):
                    again = np.concatenate(blocks).astype(np.float32).reshape(info.shape)
                assert np.array_equal(whole, again, equal_nan=True)
                rows = np.empty((1, info.shape[-1]), np.float32)
                source.read_rows(name, np.array([0]), rows)
                assert np.array_equal(rows[0], whole.reshape(-1, info.shape[-1])[0], equal_nan=True)
        names = list(source.tensors)[:2]
        if len(names) == 2 and all(source.tensors[n].dtype in FLOAT_TYPES and source.tensors[n].shape
                                   for n in names):  # fmt: skip
            source.same_values(*names)


def read_safetensors(data: bytes) -> None:
    file = SafetensorsFile(place("x.safetensors", data))
    theirs = dict(safetensors.deserialize(data))
    assert set(theirs) == set(file.tensors)
    for name, info in file.tensors.items():
        assert (tuple(theirs[name]["shape"]), theirs[name]["dtype"]) == info
    use(file)


def read_torch(data: bytes) -> None:
    records = frozenset(("sae_training.config.LanguageModelSAERunnerConfig",))
    file = TorchFile(place("x.pth", data), records=records if b"sae_training" in data else frozenset())
    use(file)
    if file.config is not None:
        complete(read_config(file.config, "x.pth"))


def complete(fields: dict) -> Config:
    sizes = dict.fromkeys(("n_layer", "n_head", "d_model", "d_head", "d_mlp", "n_ctx", "n_vocab"), 1)
    return Config(**(sizes | fields))


def read_config_json(data: bytes) -> None:
    config = complete(read_config(parse_object(data, "config.json"), "config.json"))
    assert Config.from_dict(config.to_dict()) == config
    again = read_config(json.loads(json.dumps(hugging_face_config(config, None))), "again")
    assert complete(again) == config


def read_tokenizer(data: bytes) -> None:
    if data[:1] == b"{":
        tokenizer = Tokenizer.load(place("tokenizer.json", data))
    else:
        vocabulary, _, merges = data[1:].partition(b"\0")
        tokenizer = Tokenizer.from_files(place("vocab.json", vocabulary), place("merges.txt", merges))
    for text in TEXTS:
        try:
            ids = tokenizer.encode(text)
        except ValueError:
            continue
        assert all(0 <= token < tokenizer.n_vocab for token in ids)
        try:
            tokenizer.decode(ids)
        except ValueError:
            continue
    tokenizer.token_strings(range(min(tokenizer.n_vocab, 50)))


def read_bundle(data: bytes) -> None:
    with Bundle(place("x.safetensors", data), seeds.EXAMPLE) as bundle:
        arrays = bundle.read_all()
    with safetensors.safe_open(folder() / "x.safetensors", "np") as file:
        assert all(file.get_tensor(name).tobytes() == array.tobytes() for name, array in arrays.items())
    write_bundle(folder() / "again.safetensors", seeds.EXAMPLE, bundle.fields, arrays)
    with Bundle(folder() / "again.safetensors", seeds.EXAMPLE) as again:
        assert again.fields == bundle.fields
        assert all(again.read_all()[name].tobytes() == array.tobytes() for name, array in arrays.items())


def read_npz(data: bytes) -> None:
    use(NpzFile(place("x.npz", data)))


def read_yaml_file(data: bytes) -> None:
    assert isinstance(read_yaml(place("config.yaml", data)), dict)


def saved_again(
    data: bytes, load: Callable[[Path], Any], save: Callable[[Any, Path], None]
) -> tuple[Any, Any]:
    """What a bundle holds, and the same after it was saved and loaded."""
    found, again = load(place("x.safetensors", data)), folder() / "again.safetensors"
    save(found, again)
    return found, load(again)


def read_circuit(data: bytes) -> None:
    circuit, again = saved_again(data, circuit_module.load_circuit, circuit_module.Circuit.save)
    assert np.array_equal(again.items, circuit.items)
    assert again.options == circuit.options


def read_graph(data: bytes) -> None:
    graph, again = saved_again(data, load_graph, Graph.save)
    assert np.array_equal(again.weights, graph.weights)
    assert again.token_strings == graph.token_strings


def read_training(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # another build
        trainer = Trainer.resume(place("x.safetensors", data), tiny_training.data(), threads=1)
    if not trainer.finished and trainer.options.accumulation < 5:  # a step may be as long as the file says
        with contextlib.suppress(TrainingDiverged):
            trainer.step()
    trainer.save(folder() / "again.safetensors")


def in_folder(data: bytes) -> Path:
    """The packed files in a folder that holds nothing else."""
    where = folder() / "files"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    for name, content in unpack(data).items():
        parts = name.split("|")  # one folder deep
        (where / parts[0]).mkdir(exist_ok=True) if len(parts) == 2 else None
        (where / "/".join(parts[:2])).write_bytes(content)
    return where


def read_model(data: bytes) -> None:
    model = checkpoint.load(in_folder(data))
    model.run(np.zeros(1, np.int32), threads=1)


def read_transcoders(data: bytes) -> None:
    where = in_folder(data)
    alone = where / "set.yaml"
    found = load_transcoders(alone if alone.exists() else where, verify=True)
    assert found.n_features


# ----------------------------------------------------------------------------------------------- changes


def change_tokenizer(data: bytes, rng: Random) -> bytes:
    if data[:1] == b"{":
        return mutators.change_json(data, rng, TOKENIZER_WORDS)
    vocabulary, _, merges = data[1:].partition(b"\0")
    if rng.random() < 0.5:
        return b"v" + mutators.change_json(vocabulary, rng, ("a", "ab", "b")) + b"\0" + merges
    return b"v" + vocabulary + b"\0" + mutators.change_bytes(merges, rng)


def change_folder(data: bytes, rng: Random) -> bytes:
    """Change one or two files of a folder, sometimes their names."""
    files = unpack(data)
    if not files or rng.random() < 0.02:
        return mutators.change_bytes(data, rng)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(list(files))
        if rng.random() < 0.05:
            files[mutators.change_bytes(name.encode(), rng).decode("utf-8", "replace")] = files.pop(name)
            continue
        files[name] = _change_file(name, files[name], rng)
    return pack(files)


def _change_file(name: str, data: bytes, rng: Random) -> bytes:
    if name.endswith(".safetensors"):
        return mutators.change_safetensors(data, rng, WORDS)
    if name.endswith(".json"):
        return mutators.change_json(data, rng, WORDS)
    if name.endswith((".pt", ".pth", ".bin")):
        return mutators.change_torch(data, rng)
    if name.endswith(".npz"):
        return mutators.change_npz(data, rng)
    return mutators.change_bytes(data, rng)


# --------------------------------------------------------------------------------------------- the list


def _words(*patterns: str) -> tuple[str, ...]:
    """Strings of the readers' own sources that could be in a file."""
    found = set()
    for path in [path for pattern in patterns for path in Path(attnsparse.__path__[0]).glob(pattern)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 40:
                found.add(node.value)
    return tuple(sorted(found))


TENSOR_WORDS = ("dtype", "shape", "data_offsets", "__metadata__", "F64", "F32", "F16", "BF16", "I64", "BOOL",
                "U8", "a", "b.c")  # fmt: skip
CONFIG_WORDS = _words("model/*config.py")
BUNDLE_WORDS = (
    *TENSOR_WORDS,
    "I32",
    "schema",
    "version",
    "fields",
    "tensors",
    "attnsparse",
    "sha256",
    "example",
)
OBJECT_WORDS = (*BUNDLE_WORDS, *_words("circuits/*.py", "graphs/graph*.py"))
TRAINING_WORDS = (*BUNDLE_WORDS, *_words("training/*.py"))
TOKENIZER_WORDS = (
    "type", "model", "vocab", "merges", "BPE", "WordLevel", "WordPiece", "Unigram", "ByteLevel", "Split",
    "pattern", "Regex", "String", "behavior", "Isolated", "Removed", "MergedWithNext", "Contiguous", "invert",
    "Sequence", "pretokenizers", "decoders", "normalizers", "Replace", "content", "Strip", "start", "stop",
    "CTC", "ByteFallback", "Fuse", "Metaspace", "Digits", "individual_digits", "FixedLength", "length", "NFC",
    "NFKD", "BertNormalizer", "Precompiled", "precompiled_charsmap", "Prepend", "prepend", "Whitespace",
    "Punctuation", "CharDelimiterSplit", "delimiter", "UnicodeScripts", "TemplateProcessing", "unk_token",
    "unk_id", "(a+)+$", "\\p{L}+", "(?!", "", "a", "ab", "##", "id", "special", "normalized", "lstrip",
    "rstrip", "single_word", "RobertaProcessing", "sep", "cls", "dropout", "ignore_merges", "Nmt", "cleanup",
)  # fmt: skip
WORDS = (*TENSOR_WORDS, *CONFIG_WORDS, *_words("transcoders/formats/*.py"))

HARNESSES = {
    harness.name: harness
    for harness in (
        Harness("safetensors", seeds.safetensors_seeds,
                lambda data, rng: mutators.change_safetensors(data, rng, TENSOR_WORDS), read_safetensors),
        Harness("torch", seeds.torch_seeds, mutators.change_torch, read_torch),
        Harness("config", seeds.config_seeds,
                lambda data, rng: mutators.change_json(data, rng, CONFIG_WORDS), read_config_json),
        Harness("tokenizer", seeds.tokenizer_seeds, change_tokenizer, read_tokenizer),
        Harness("bundle", seeds.bundle_seeds,
                lambda data, rng: mutators.change_bundle(data, rng, BUNDLE_WORDS), read_bundle),
        Harness("training", seeds.training_seeds,
                lambda data, rng: mutators.change_bundle(data, rng, TRAINING_WORDS), read_training),
        Harness("npz", seeds.npz_seeds, mutators.change_npz, read_npz),
        Harness("yaml", seeds.yaml_seeds, mutators.change_bytes, read_yaml_file),
        Harness("circuit", seeds.circuit_seeds,
                lambda data, rng: mutators.change_bundle(data, rng, OBJECT_WORDS), read_circuit),
        Harness("graph", seeds.graph_seeds,
                lambda data, rng: mutators.change_bundle(data, rng, OBJECT_WORDS), read_graph),
        Harness("model", seeds.model_seeds, change_folder, read_model),
        Harness("transcoders", seeds.transcoder_seeds, change_folder, read_transcoders),
    )
}  # fmt: skip
