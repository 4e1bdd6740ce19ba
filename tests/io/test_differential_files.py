"""Our readers against the ones that wrote the formats: what we accept they accept with the same bytes (R5).

We may be stricter, but only for the reasons listed here, each by its error code. Files are good ones and such
with one to three changes of structure. The comparison with torch needs torch.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors
import torch_by_hand
from fuzz import mutators, seeds
from fuzz.harnesses import TENSOR_WORDS
from reliability import report
from safetensors_by_hand import entry, file_bytes

from attnsparse.errors import FormatError
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.torch_file import TorchFile
from attnsparse.io.torch_nodes import TYPES

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}

# code -> why we refuse what the safetensors package reads
STRICTER_SAFETENSORS = {
    "duplicate_name": "a name twice: the package takes the last",
    "header_field": "fields that a tensor does not have: the package ignores them",
    "name_limit": "names of more than 1,024 bytes",
    "rank_limit": "more than 8 dimensions",
    "size_overflow": "no elements, but sides that no array can have",
    "dtype": "element types that we do not know",
}

# code -> why we refuse what torch.load(weights_only=True) reads
STRICTER_TORCH = {
    "zip_structure": "zip features that torch never writes: comments, bytes before or after, several disks",
    "zip_mismatch": "an entry whose own header differs from the directory",
    "zip_overlap": "entries that overlap",
    "zip_compressed": "compressed entries",
    "zip_encrypted": "encryption flags",
    "zip_name": "entry names that are not UTF-8 or empty",
    "zip_content": "several data.pkl, or one in another place",
    "truncated": "something after the zip's directory",
    "magic": "an entry constants.pkl beside: a TorchScript program",
    "duplicate_name": "an entry, a key of a dict or a tensor twice",
    "crc": "a checksum that is wrong",
    "version": "an archive version that is not a plain number",
    "byteorder": "big-endian or unknown byte order",
    "global": "torch's list of safe names is longer",
    "call": "calls that torch does not write for a tensor",
    "opcode": "pickle opcodes that torch does not write",
    "pickle_structure": "the file is no state dict",
    "pickle_truncated": "torch reads names of any length",
    "pickle_text": "text that is not UTF-8",
    "trailing_data": "something after the end of the pickle",
    "storage_size": "a storage larger or smaller than declared",
    "bad_view": "strides of 0, or more values than the storage",
    "size_overflow": "no elements, but sides that no array can have",
    "tensor_flags": "hooks, and flags that torch does not write",
    "dtype": "sparse, quantized, nested and meta tensors",
    "missing_storage": "tensors without elements whose storage is not there",
}


# ------------------------------------------------------------------------------------------- safetensors


def generated_safetensors(rng: Random) -> bytes:
    """A good file, or one of the fuzzer's seeds."""
    if rng.random() < 0.3:
        return rng.choice(SEEDS["safetensors"])
    header, at = {}, 0
    for index in range(rng.randint(0, 5)):
        dtype = rng.choice(list(BYTES))
        sides = [rng.randint(0, 4) for _ in range(rng.randint(0, 3))]
        size = int(np.prod(sides, dtype=int)) * BYTES[dtype]
        header[rng.choice(("a", "é", "h.0.", "")) + str(index)] = entry(at, at + size, sides, dtype)
        at += size
    items = list(header.items())
    rng.shuffle(items)
    if rng.random() < 0.2:
        items.insert(0, ("__metadata__", {"format": "pt"}))
    text = json.dumps(dict(items)).encode()
    return file_bytes(text + b" " * rng.choice((0, 0, 3)), rng.randbytes(at))


def compare_safetensors(path: Path, data: bytes, tally: Counter) -> None:
    path.write_bytes(data)
    try:
        theirs = dict(safetensors.deserialize(data))
    except Exception:  # the package has one class of its own and raises others too
        theirs = None
    try:
        file = SafetensorsFile(path)
    except FormatError as error:
        if theirs is None:
            tally["both refuse"] += 1
        else:
            if error.code not in STRICTER_SAFETENSORS:
                raise AssertionError(f"refused by us alone: {error}; {data!r}") from error
            tally["stricter: " + error.code] += 1
        return
    with file:
        assert theirs is not None, data
        assert set(theirs) == set(file.tensors), data
        for name, info in file.tensors.items():
            assert (tuple(theirs[name]["shape"]), theirs[name]["dtype"]) == info, data
            if info.dtype in ("F32", "F64"):
                ours = file.read(name, "float64" if info.dtype == "F64" else "float32")
                assert ours.tobytes() == bytes(theirs[name]["data"]), data
    tally["both read"] += 1


def run_safetensors(folder: Path, count: int, seed: int) -> None:
    rng, tally = Random(seed), Counter()
    for _ in range(count):
        data = generated_safetensors(rng)
        if rng.random() < 0.7:
            data = mutators.change_safetensors(data, rng, TENSOR_WORDS)
        compare_safetensors(folder / "x.safetensors", data, tally)
    finish("safetensors", count, tally)


def finish(kind: str, count: int, tally: Counter) -> None:
    stricter = sum(number for what, number in tally.items() if what.startswith("stricter"))
    text = f"{kind}: {count:,} files, {tally['both read']:,} read alike, {tally['both refuse']:,} refused by "
    report("R5", f"{text}both, {stricter:,} by us alone for a listed reason, 0 differences; {dict(tally)}")
    assert tally["both read"] > count / 10
    assert tally["both refuse"] > count / 20


SEEDS = {"safetensors": seeds.safetensors_seeds(), "torch": seeds.torch_seeds()}


def test_safetensors_are_read_as_the_package_reads_them(tmp_path):
    run_safetensors(tmp_path, 600, 1)


@pytest.mark.slow
def test_20000_safetensors_are_read_as_the_package_reads_them(tmp_path):
    run_safetensors(tmp_path, 20_000, 2)


# ------------------------------------------------------------------------------------------------- torch


def generated_torch(rng: Random) -> bytes:
    """A good checkpoint by hand: tensors of several types, some of them views of one storage."""
    h = torch_by_hand
    if rng.random() < 0.3:
        return rng.choice(SEEDS["torch"])
    items, storages = {}, {}
    for index in range(rng.randint(1, 4)):
        dtype = rng.choice(("f4", "f2", "f8", "i8", "u1", "b1"))
        sides = tuple(rng.randint(0, 4) for _ in range(rng.randint(0, 3)))
        array = np.frombuffer(rng.randbytes(8 * int(np.prod(sides, dtype=int))), "u1")
        size = int(np.prod(sides, dtype=int)) * np.dtype(dtype).itemsize
        array = (array[:size] % 2 if dtype == "b1" else array[:size]).view(dtype).reshape(sides)
        items[f"t{index}"] = h.array_tensor(str(index), array)
        storages[str(index)] = array.tobytes()
    if rng.random() < 0.5:
        kind, count = "FloatStorage", rng.randint(4, 12)
        for name in ("v", "w"):
            shape = (rng.randint(1, 2), rng.randint(1, 2))
            view = rng.choice(((2, 1), (1, 2), (3, 1), (1, 1)))
            items[name] = h.tensor("s", kind, count, rng.randint(0, 2), shape, view)
        storages["s"] = rng.randbytes(4 * count)
    pickle = h.finished(h.ordered_dict(items))
    return h.archive(pickle, storages, byteorder=rng.choice((b"little", None)))


def compare_torch(torch, path: Path, data: bytes, tally: Counter) -> None:
    path.write_bytes(data)
    try:
        theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        refusal = ""
    except Exception as error:
        theirs, refusal = None, str(error)
    try:
        with TorchFile(path) as file:
            ours = {name: file.read(name, "float64") if info.dtype in ("F64", "F32", "F16", "BF16") else None
                    for name, info in file.tensors.items()}  # fmt: skip
            infos, left_out = file.tensors, file.left_out
    except FormatError as error:
        if theirs is None:
            tally["both refuse"] += 1
        else:
            if error.code not in STRICTER_TORCH:
                raise AssertionError(f"refused by us alone: {error}; {data!r}") from error
            tally["stricter: " + error.code] += 1
        return
    if theirs is None and left_out:  # damage in tensors beside the weights, which are not read here
        tally["read without what is damaged beside it"] += 1
        return
    if theirs is None and re.search("Unsupported operand 14[089]", refusal):
        tally["read with an opcode of pickle protocol 4, which means the same"] += 1
        return
    assert theirs is not None, (refusal, data)
    theirs = next((found for found in dicts_of_tensors(torch, theirs) if set(found) == set(ours)), None)
    assert theirs is not None, data
    for name, array in ours.items():
        tensor = theirs[name]
        assert tuple(tensor.shape) == infos[name].shape, data
        if array is not None:
            with np.errstate(all="ignore"):
                expected = tensor.detach().resolve_neg().to(torch.float64).numpy()
            assert array.tobytes() == expected.tobytes() or np.array_equal(array, expected, equal_nan=True)
        else:
            assert TYPES[str(tensor.dtype).removeprefix("torch.")] == infos[name].dtype
    tally["both read"] += 1


def dicts_of_tensors(torch, value: object) -> list[dict]:
    """The tensors of every dict in nested dicts, by name."""
    if not isinstance(value, dict):
        return []
    inner = [found for item in value.values() for found in dicts_of_tensors(torch, item)]
    return [*inner, {name: item for name, item in value.items() if isinstance(item, torch.Tensor)}]


def written_by_torch(rng: Random, torch) -> bytes:
    """What torch.save writes: types, views, flags, Parameters, Buffers, plain objects beside, wrappers."""
    state = {f"t{index}": written_tensor(rng, torch) for index in range(rng.randint(1, 4))}
    whole: object = state
    for _ in range(rng.choice((0, 0, 1, 2))):
        beside = {f"b{index}": plain_object(rng, torch) for index in range(rng.randint(0, 3))}
        whole = {rng.choice(("model", "state_dict", "module", "net")): whole, **beside}
    file = io.BytesIO()
    torch.serialization.set_crc32_options(rng.random() < 0.8)
    try:
        torch.save(whole, file)
    finally:
        torch.serialization.set_crc32_options(True)
    return file.getvalue()


def written_tensor(rng: Random, torch):
    names = ("float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool", "int8", "uint16",
             "uint32", "complex64", "float8_e4m3fn", "float8_e5m2")  # fmt: skip
    dtype = getattr(torch, rng.choice(names[:4] if rng.random() < 0.7 else names))
    sides = [rng.randint(0, 4) for _ in range(rng.randint(0, 3))]
    tensor = torch.tensor(np.random.default_rng(rng.randrange(2**32)).standard_normal(sides)).to(dtype)
    if tensor.dim() > 1 and rng.random() < 0.4:
        tensor = tensor.transpose(0, 1)
    if tensor.dim() and len(tensor) > 1 and rng.random() < 0.4:
        tensor = tensor[rng.randint(0, 1) :: rng.randint(1, 2)]
    kind = rng.random()
    if dtype.is_floating_point and dtype.itemsize > 1:
        if kind < 0.2:
            return torch._neg_view(tensor)
        if kind < 0.3 and dtype in (torch.float32, torch.float64):
            return torch.complex(tensor, tensor).conj().imag
        if kind < 0.4:
            return torch.nn.Buffer(tensor)
        if kind < 0.5:
            parameter = torch.nn.Parameter(tensor, requires_grad=rng.random() < 0.5)
            if rng.random() < 0.5:
                parameter.note = "an attribute"
            return parameter
        if kind < 0.55:
            return tensor.to_sparse()
    return tensor.conj() if dtype.is_complex else tensor


def plain_object(rng: Random, torch):
    """One of the objects that torch's own safe loader admits."""
    return rng.choice((
        torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]),
        {1, "a"}, b"a\xff", bytearray(b"b"), Counter("aab"), Counter(), 1 + 2j, torch.strided, None, True, 5,
        -7.5, "text", [1, (2, {"a": [3]})], torch.zeros(2), {"state": {0: {"step": torch.tensor(3.0)}}},
    ))  # fmt: skip


def run_torch(folder: Path, count: int, seed: int, generate=None) -> None:
    torch = pytest.importorskip("torch")
    rng, tally = Random(seed), Counter()
    for _ in range(count):
        data = generate(rng, torch) if generate else generated_torch(rng)
        if rng.random() < (0.5 if generate else 0.7):
            data = mutators.change_torch(data, rng)
        compare_torch(torch, folder / "x.pth", data, tally)
    finish("torch.save" if generate else "torch", count, tally)


@pytest.mark.filterwarnings(
    "ignore"
)  # torch warns about typed storages, and that complex layouts are in beta
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path):
    run_torch(tmp_path, 400, 3, written_by_torch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_5000_files_that_torch_saved_are_read_as_torch_reads_them(tmp_path):
    run_torch(tmp_path, 5000, 4, written_by_torch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns about typed storages
def test_5000_torch_files_are_read_as_torch_reads_them(tmp_path):
    run_torch(tmp_path, 5000, 2)
