"""Everything that can be wrong with a file gets its named error, and nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import bad_files
import bad_folders
import bad_torch_files
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny_checkpoints as tiny
import torch_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability import report
from safetensors_by_hand import entry, file_bytes, from_arrays

import attnsparse
from attnsparse.errors import ConfigError, FormatError, TrainingDiverged, UnsafeFileError, file_error, quoted
from attnsparse.io.bundle import write_bundle
from attnsparse.io.limits import Limits
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.torch_file import TorchFile
from attnsparse.model import load as checkpoint
from attnsparse.training.checkpoint import SCHEMA

FILES = [*bad_files.FILES, *bad_torch_files.FILES]
FOLDERS = bad_folders.FOLDERS
PACKAGE = Path(attnsparse.__path__[0])
READERS = (
    *(f"io/{name}" for name in ("strict_json", "regular_file", "tensor_source", "safetensors_file",
      "zip_directory", "pickle_data", "torch_nodes", "torch_file", "foreign")),
    *(f"model/{name}" for name in ("config", "hf_config", "tensor_names", "load", "locate",
      "tokenizer/files", "tokenizer/sidecars")),
)  # fmt: skip


def check(error: Exception, case) -> None:
    """Exact type and code, a message as all messages here are, and an error that survives pickling."""
    assert type(error) is case.error, (type(error), error)
    assert error.code == case.code, (error.code, str(error))
    message = str(error)
    assert len(message) <= 300
    assert message.isprintable()
    assert error.path
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (message, vars(error))


def test_names_are_unique_and_many():
    for cases in (FILES, FOLDERS):
        assert len({case.name for case in cases}) == len(cases)
    assert len(FILES) + len(FOLDERS) >= 120
    codes = {case.code for case in [*FILES, *FOLDERS]}
    report("R4", f"{len(FILES)} bad files and {len(FOLDERS)} bad folders, {len(codes)} codes")


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_bad_file(tmp_path, case):
    path = tmp_path / case.file
    path.write_bytes(case.data)
    begin = time.process_time()
    with pytest.raises(Exception) as caught:
        checkpoint.load(path, config={"activation_function": "gelu_new"} if case.code == "crc" else None)
    check(caught.value, case)
    assert caught.value.path == str(path)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case.name)
def test_bad_folder(tmp_path, case):
    bad_folders.write(tmp_path, case.files)
    with pytest.raises(Exception) as caught:
        checkpoint.load(tmp_path)
    check(caught.value, case)


def test_every_code_of_the_readers_is_reached_by_a_bad_file():
    """The codes are those written in the sources; the few left out are tested elsewhere in this file."""
    written = set()
    for name in READERS:
        source = (PACKAGE / f"{name}.py").read_text()
        written |= set(re.findall(r"file_error\(\s*\w+,\s*\"(\w+)\"", source))
        written |= set(re.findall(r"(?:raise_file_error|raise_unsafe)\(\s*\"(\w+)\"", source))
        written |= set(re.findall(r"code(?:: str = |=)\"(\w+)\"", source))
    reached = {case.code for case in [*FILES, *FOLDERS]}
    elsewhere = {"value", "not_a_file", "weight_limit", "tensor_limit", "zip_entries", "header_value"}
    assert written - elsewhere <= reached
    assert reached <= written
    assert elsewhere <= written


def test_a_training_checkpoint_with_a_config_that_is_none(tmp_path):
    path = tmp_path / "step-000001.checkpoint.safetensors"
    write_bundle(path, SCHEMA, {"config": [1]}, {})
    with pytest.raises(FormatError, match="'config' must be an object") as caught:
        attnsparse.load(path)
    assert caught.value.code == "header_value"


def test_other_limits(tmp_path):
    many = {f"t{index}": entry(0, 0, [0]) for index in range(20)}
    (tmp_path / "a.safetensors").write_bytes(file_bytes(many))
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(tmp_path / "a.safetensors", limits=Limits(max_tensors=19))
    assert caught.value.code == "tensor_limit"
    (tmp_path / "a.pth").write_bytes(
        torch_by_hand.torch_file({f"t{index}": np.ones(1, "f4") for index in range(20)})
    )
    for limits, code in [
        (Limits(max_tensors=19), "tensor_limit"),
        (Limits(max_zip_entries=10), "zip_entries"),
    ]:
        with pytest.raises(FormatError) as caught:
            TorchFile(tmp_path / "a.pth", limits=limits)
        assert caught.value.code == code


def test_some_messages(tmp_path):
    """The wording is compared in a few cases only; see `code` everywhere else."""

    def message(name: str) -> str:
        for case in [*FILES, *FOLDERS]:
            if case.name == name:
                folder = tmp_path / str(len(os.listdir(tmp_path)))
                folder.mkdir()
                bad_folders.write(folder, {case.file: case.data} if hasattr(case, "data") else case.files)
                with pytest.raises((FormatError, ConfigError)) as caught:
                    checkpoint.load(folder / case.file if hasattr(case, "data") else folder)
                return str(caught.value).replace(str(folder.name) + ":", "DIR:")
        raise LookupError(name)

    incomplete = "probably an incomplete download"
    assert (
        message("five bytes")
        == f"model.safetensors: 5 bytes, a safetensors file has at least 8; {incomplete}"
    )
    assert message("gap") == "model.safetensors: tensor 'b' starts at 12, expected 8 (gap of 4 bytes)"
    assert (
        message("shape too small") == "model.safetensors: tensor 'a' has 16 bytes, shape [3] x F32 needs 12"
    )
    assert message("header of 20 MB") == (
        "model.safetensors: header of 20,000,002 bytes is above max_header_bytes=16,777,216; "
        "pass limits=Limits(max_header_bytes=...) if you trust the file"
    )
    assert message("pickle: os.system called") == (
        "x.pth: refers to 'os.system'; only tensors, numbers, strings, lists and dicts are read. "
        "The file was not executed; save the weights alone: torch.save(model.state_dict(), path)"
    )
    assert message("pickle: STACK_GLOBAL").startswith(
        "x.pth: pickle opcode 0x93 at byte 20 is not used in state dicts"
    )
    assert message("pickle: storage smaller than declared") == (
        "x.pth: storage '0' declares 589,824 F32 values (2,359,296 bytes), the archive holds 16"
    )
    assert message("config: n_layer is true") == "config.json: n_layer must be an integer in 1..512, got true"
    assert (
        message("config: heads do not divide the width")
        == "config.json: n_embd=8 is not a multiple of n_head=3"
    )
    assert message("weights: one tensor missing") == (
        "model.safetensors: tensor 'h.1.mlp.c_proj.bias' is missing (config says n_layer=2; layers 0-1 found)"
    )


def test_text_of_messages_is_escaped_and_short():
    assert quoted("a\nb\x1b[31m☃'") == r"'a\nb\x1b[31m\u2603''"
    assert len(quoted("\x00" * 100)) == 82
    error = file_error(FormatError, "x", "/some/where/evil\nname", "text " * 200, offset=3, field="f")
    assert len(str(error)) == 300
    assert str(error).startswith(r"'evil\nname': text")
    assert (error.offset, error.field, error.path) == (3, "f", "/some/where/evil\nname")
    diverged = pickle.loads(pickle.dumps(TrainingDiverged("loss is not finite", field="loss")))
    assert (diverged.code, diverged.field) == ("diverged", "loss")
    assert isinstance(diverged, ArithmeticError)


SMALL = {"wte.weight": np.ones((3, 2), np.float32), "é": np.zeros((0, 2), np.float16), "s": np.array(1.0)}


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_every_proper_prefix_is_refused(tmp_path, kind):
    whole = from_arrays(SMALL) if kind == "safetensors" else torch_by_hand.torch_file(SMALL)
    reader = SafetensorsFile if kind == "safetensors" else TorchFile
    path = tmp_path / f"x.{kind}"
    path.write_bytes(whole)
    with reader(path) as file:
        assert set(file.tensors) == set(SMALL)
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FormatError) as caught:
            reader(path)
        assert caught.value.code in ("too_short", "truncated", "bad_offsets", "magic"), length


def test_every_changed_byte_of_a_header_is_refused_or_read_as_the_package_reads_it(tmp_path):
    whole = bytearray(from_arrays({"ab": np.ones((2, 3), np.float32), "c": np.arange(4, dtype=np.float16)}))
    path = tmp_path / "x.safetensors"
    rng = np.random.default_rng(0)
    accepted = 0
    for at in range(len(whole) - 32):
        for value in {*rng.integers(0, 256, 6).tolist(), whole[at] ^ 1}:
            changed = bytes(whole[:at]) + bytes([value]) + bytes(whole[at + 1 :])
            path.write_bytes(changed)
            accepted += _agrees_with_the_package(path, changed)
    assert accepted > 10


def _agrees_with_the_package(path: Path, data: bytes) -> bool:
    """True if we accept the file; the safetensors package then accepts it too, with the same tensors."""
    try:
        file = SafetensorsFile(path)
    except FormatError:
        return False
    with file:
        theirs = dict(safetensors.deserialize(data))
        assert set(theirs) == set(file.tensors)
        for name, info in file.tensors.items():
            assert tuple(theirs[name]["shape"]) == info.shape
            assert theirs[name]["dtype"] == info.dtype
            if info.dtype in ("F32", "F64"):
                ours = file.read(name, "float64" if info.dtype == "F64" else "float32")
                assert ours.tobytes() == bytes(theirs[name]["data"])
    return True


SIDES = st.integers(0, 4)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ENTRIES = st.tuples(
    NAMES, st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL"]), st.lists(SIDES, max_size=4)
)
DAMAGE = st.tuples(
    st.sampled_from(["none", "begin", "end", "side", "type", "data", "field"]), st.integers(-3, 3)
)
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1}


@settings(max_examples=400, deadline=None)
@given(
    st.lists(ENTRIES, max_size=4, unique_by=lambda item: item[0]), DAMAGE, st.randoms(use_true_random=False)
)
def test_agreement_with_the_safetensors_package(tmp_path_factory, entries, damage, random):
    """Generated files, whole and with one change: what we accept the package reads alike."""
    header, at = {}, 0
    for name, dtype, sides in entries:
        n_bytes = int(np.prod(sides, dtype=int)) * BYTES[dtype]
        header[name] = entry(at, at + n_bytes, sides, dtype)
        at += n_bytes
    data = random.randbytes(at)
    kind, amount = damage
    target = header[random.choice(list(header))] if header else {}
    if kind in ("begin", "end") and target:
        target["data_offsets"][kind == "end"] = max(0, target["data_offsets"][kind == "end"] + amount)
    elif kind == "side" and target.get("shape"):
        target["shape"][0] = target["shape"][0] + amount
    elif kind == "type" and target:
        target["dtype"] = "I32"
    elif kind == "data":
        data = data + bytes(max(0, amount)) if amount >= 0 else data[:amount]
    elif kind == "field" and target:
        target["more"] = 1
    items = list(header.items())
    random.shuffle(items)
    path = tmp_path_factory.mktemp("generated") / "x.safetensors"
    whole = file_bytes(dict(items), data)
    path.write_bytes(whole)
    accepted = _agrees_with_the_package(path, whole)
    if kind == "none" and "__metadata__" not in header:
        assert accepted


MALICIOUS = """
import glob, os, sys
sys.path.insert(0, sys.argv[1])
from attnsparse.errors import UnsafeFileError
from attnsparse.io.torch_file import TorchFile
import attnsparse.errors, attnsparse.io.strict_json, ast, encodings.idna
files = sorted(glob.glob(os.path.join(sys.argv[2], "*.pth")))
seen = []
watched = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "marshal.",
    "shutil.")
def hook(event, arguments):
    if recording and (event.startswith(watched) or event == "open" and not isinstance(arguments[0],
    int) and not str(arguments[0]).endswith(".pth")):
        seen.append((event, arguments))
recording = False
sys.addaudithook(hook)
kinds = (frozenset(), frozenset({"sae_training.config.LanguageModelSAERunnerConfig"}))
for name, records in [(name, records) for name in files for records in kinds]:
    recording = True
    try:
        TorchFile(name, records=records)
    except UnsafeFileError:
        pass
    else:
        raise SystemExit(f"{name} was read")
    finally:
        recording = False
if seen:
    raise SystemExit(f"events: {seen[:5]}")
if {"torch", "zipfile", "tokenizers"} & set(sys.modules):
    raise SystemExit("torch, zipfile or tokenizers was imported")
print(len(files))
"""


def test_malicious_pickles_run_nothing(tmp_path):
    """200 pickles that would run code: all refused, with no import, open, exec or subprocess event."""
    h = torch_by_hand
    calls = [("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("builtins",
        "eval"),
             ("builtins", "exec"), ("builtins", "__import__"), ("builtins", "getattr"), ("__builtin__",
             "eval"),
             ("importlib", "import_module"), ("operator", "attrgetter"), ("functools", "partial"), ("pty",
             "spawn"),
             ("socket", "create_connection"), ("webbrowser", "open"), ("ctypes", "CDLL"), ("code",
             "interact"),
             ("torch", "load"), ("torch.hub", "load"), ("torch._utils", "_rebuild_wrapper_subclass"),
             ("torch.serialization", "load"), ("numpy", "load"), ("runpy", "run_path"), ("pickle", "loads"),
             ("collections", "namedtuple")]  # fmt: skip
    text = h.text("echo harm")
    tensor = h.tensor("0", "FloatStorage", 4, 0, [4], [1])
    shapes = [
        lambda module, name: h.name(module, name) + b"(" + text + b"tR",
        lambda module, name: h.name(module, name) + b"q\x00" + text + b"\x85R",
        lambda module, name: b"(" + text + b"i" + module.encode() + b"\n" + name.encode() + b"\n",
        lambda module, name: b"(" + h.name(module, name) + text + b"o",
        lambda module, name: h.name(module, name) + b"(" + text + b"t\x81",
        lambda module, name: h.text(module) + h.text(name) + b"\x93(" + text + b"tR",
        lambda module, name: h.ordered_dict({"a": tensor}) + h.name(module, name) + b"b",
        lambda module, name: h.ordered_dict({"w": h.name(module, name) + b")R"}),
    ]
    count = 0
    for module, name in calls:
        for shape in shapes:
            data = h.archive(h.finished(shape(module, name)), {"0": bytes(16)})
            (tmp_path / f"{count:03}.pth").write_bytes(data)
            count += 1
    assert count == 200
    done = subprocess.run([sys.executable, "-c", MALICIOUS, str(PACKAGE.parent), str(tmp_path)],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200"]


def test_no_reader_imports_pickle_or_runs_anything():
    forbidden = re.compile(
        r"\b(import (pickle|marshal|shelve|torch|mmap)|from (pickle|torch|mmap) |eval\(|exec\(|__import__)"
    )
    for name in (*READERS, "errors", "io/limits", "model/hub"):
        assert not forbidden.search((PACKAGE / f"{name}.py").read_text()), name


@pytest.mark.serial
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["model.safetensors", "x.pth", "config.json", "tokenizer.json"])
def test_pipes_devices_and_folders(tmp_path, name):
    if name in ("config.json", "tokenizer.json"):
        tiny.write_folder(tmp_path, tiny.weights(), tiny.plain_config())
        (tmp_path / name).unlink(missing_ok=True)
    begin = time.perf_counter()
    os.mkfifo(tmp_path / name)
    with pytest.raises(FormatError) as caught:
        checkpoint.load(tmp_path)
    assert caught.value.code == "not_a_file"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError) as wrong:
        checkpoint.load(tmp_path)
    assert wrong.value.filename == str(tmp_path / name)
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(FormatError) as caught:
        checkpoint.load(tmp_path)
    assert caught.value.code == "not_a_file"
    assert time.perf_counter() - begin < 1


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    """Another thread cuts the file: the load works or says so, and never crashes."""
    whole = from_arrays({"a": np.ones((2000, 1000), np.float32)})
    path = tmp_path / "x.safetensors"
    outcomes = set()
    for _ in range(60):
        path.write_bytes(whole)
        with SafetensorsFile(path) as file:
            thread = threading.Thread(target=os.truncate, args=(path, 100_000))
            thread.start()
            try:
                file.read("a", "float64")
                outcomes.add("read")
            except FormatError as error:
                outcomes.add(error.code)
            thread.join()
    assert outcomes <= {"read", "truncated"}
    path.write_bytes(whole)
    with SafetensorsFile(path) as file:
        os.truncate(path, 100_000)
        with pytest.raises(FormatError) as caught:
            file.read("a")
    assert caught.value.code == "truncated"


def test_a_header_of_100_000_tensors_is_read_quickly(tmp_path):
    def seconds(count: int) -> float:
        row = '"layer.{}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'
        rows = (row.format(index, 4 * index, 4 * index + 4) for index in range(count))
        path = tmp_path / f"{count}.safetensors"
        path.write_bytes(file_bytes(("{" + ",".join(rows) + "}").encode(), bytes(4 * count)))
        begin = time.process_time()
        SafetensorsFile(path).close()
        return time.process_time() - begin

    quarter, whole = seconds(25_000), seconds(100_000)
    print(f"100,000 tensors in {whole:.2f} s, 25,000 in {quarter:.2f} s")
    assert whole < 3  # half a second on an idle machine of 2026
    assert whole < 8 * quarter


def test_unsafe_errors_are_format_errors():
    assert issubclass(UnsafeFileError, FormatError)
    assert issubclass(FormatError, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(ConfigError, FormatError)
