"""How readers treat the file system: names, links, pipes, devices, folders, files that shrink (R9)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import bad_folders
import numpy as np
import pytest
import reliability
import tiny_checkpoints as tiny
import tiny_transcoders
import torch_by_hand
from bundle_by_hand import contents
from reliability import report
from safetensors_by_hand import from_arrays

from attnsparse.circuits import circuit as circuit_module
from attnsparse.errors import ConfigError, FormatError
from attnsparse.io.bundle import write_bundle
from attnsparse.io.npz_file import NpzFile
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.strict_yaml import read_yaml
from attnsparse.io.torch_file import TorchFile
from attnsparse.model import load as checkpoint
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.training.checkpoint import SCHEMA
from attnsparse.transcoders.load import load_transcoders

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
READERS = {
    "x.safetensors": SafetensorsFile,
    "x.pth": TorchFile,
    "x.npz": NpzFile,
    "x.checkpoint.safetensors": contents,
    "tokenizer.json": Tokenizer.load,
    "x.yaml": read_yaml,
    "c.circuit.safetensors": circuit_module.load_circuit,
}
NAMES = ("/etc/passwd.safetensors", "../a.safetensors", "a/../b.safetensors", "a/b.safetensors", "..", ".",
         "a\\b.safetensors", "C:\\a.safetensors", "C:a.safetensors", "a\0.safetensors", ".a.safetensors", "",
         "//a/b.safetensors", "~/a.safetensors/..", "a.safetensors/", "\0", "a.safetensors\0",
         "file:///a")  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shard_can_only_lie_beside_its_index(tmp_path, name):
    where = dict.fromkeys(tiny.weights(), "model-1.safetensors") | {"wte.weight": name}
    files = {"config.json": tiny.plain_config(), "model.safetensors.index.json": {"weight_map": where},
             "model-1.safetensors": from_arrays(tiny.weights())}  # fmt: skip
    bad_folders.write(tmp_path, files)
    with pytest.raises(FormatError) as caught:
        checkpoint.load(tmp_path)
    assert caught.value.code == "shard_name"


@needs_pipes
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    read, path = READERS[name], tmp_path / name
    begin = time.perf_counter()
    os.mkfifo(path)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.code == "not_a_file"
    path.unlink()
    for device in ("/dev/zero", "/dev/tty", "/dev/random"):
        if not os.path.exists(device):
            continue
        path.symlink_to(device)
        with pytest.raises((FormatError, OSError)):  # without a terminal /dev/tty cannot be opened
            read(path)
        path.unlink()
    path.mkdir()
    with pytest.raises((IsADirectoryError, FileNotFoundError)):  # a tokenizer's folder may hold files
        read(path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(OSError, match=r"(?i)levels of symbolic links|loop"):
        read(path)
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        read(path)
    assert time.perf_counter() - begin < 5  # a second on an idle machine


@needs_pipes
def test_a_pipe_among_the_files_of_a_set_is_refused_at_once(tmp_path):
    for name in ("layer_1.safetensors", "config.yaml"):
        folder = tiny_transcoders.write(tmp_path / name, tiny_transcoders.circuit_tracer()[0])
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises((FormatError, ConfigError)) as caught:
            load_transcoders(folder)
        assert caught.value.code in ("not_a_file", "config_missing")


def test_a_link_is_read_as_the_file_that_was_opened(tmp_path):
    """The size and all bytes come from one descriptor: changing the link in between changes nothing."""
    first, second = {"a": np.zeros(1000, np.float32)}, {"a": np.ones(2000, np.float32)}
    for name, arrays in (("one", first), ("two", second)):
        (tmp_path / name).write_bytes(from_arrays(arrays))
    link = tmp_path / "x.safetensors"
    link.symlink_to(tmp_path / "one")
    with SafetensorsFile(link) as file:
        link.unlink()
        link.symlink_to(tmp_path / "two")
        assert np.array_equal(file.read("a"), first["a"])
    with SafetensorsFile(link) as file:
        os.replace(tmp_path / "one", tmp_path / "two")
        assert np.array_equal(file.read("a"), second["a"])


def shrinking_files(folder: Path) -> list[Path]:
    arrays = {f"t{i}": np.full((200, 500), i, np.float32) for i in range(10)}
    (folder / "x.safetensors").write_bytes(from_arrays(arrays))
    (folder / "x.pth").write_bytes(torch_by_hand.torch_file(arrays))
    (folder / "x.npz").write_bytes(tiny_transcoders.npz(**arrays))
    write_bundle(folder / "x.checkpoint.safetensors", SCHEMA, {}, arrays)
    words = Tokenizer.from_words([f"w{i}" for i in range(20_000)])
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(words.to_json())))
    return sorted(folder.iterdir())


def shrink(folder: Path, count: int) -> None:
    for path in shrinking_files(folder):
        found = reliability.child("shrinking_child.py", str(path), str(count), timeout=400)
        assert sum(found.values()) == count  # the child lives: no SIGBUS
        codes = {"read", "truncated", "json_syntax", "too_short", "magic", "crc", "bad_offsets", "checksum"}
        assert set(found) <= codes, found
        assert count < 50 or set(found) != {"read"}, found
        report("R9", f"{path.name}: cut {count} times while it was read: {found}, no crash")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    shrink(tmp_path, 6)


@pytest.mark.slow
def test_a_file_that_shrinks_200_times_while_it_is_read(tmp_path):
    shrink(tmp_path, 200)
