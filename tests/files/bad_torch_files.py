"""Bad torch files: pickles that lie or would run code, and zip archives that torch does not write."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import tiny_checkpoints as tiny
import torch_by_hand as torch
from bad_files import FOUR, GOOD, BadFile

from attnsparse.errors import ConfigError, FormatError, LimitError, UnsafeFileError


def _pickles() -> list[BadFile]:
    def bad(name: str, error: type, code: str, opcodes: bytes, storages: dict | None = None) -> BadFile:
        data = torch.archive(opcodes, {"0": FOUR} if storages is None else storages)
        return BadFile("pickle: " + name, error, code, data, "x.pth")

    def unsafe(name: str, code: str, opcodes: bytes) -> BadFile:
        return bad(name, UnsafeFileError, code, torch.finished(opcodes))

    def wrong(name: str, code: str, opcodes: bytes, error: type = FormatError) -> BadFile:
        return bad(name, error, code, torch.finished(opcodes))

    def view(
        name: str, code: str, offset: int, sides: list, strides: list, error: type = FormatError
    ) -> BadFile:
        opcodes = torch.tensor("0", "FloatStorage", 4, offset, sides, strides)
        return wrong(name, code, torch.ordered_dict({"a": opcodes}), error)

    good = torch.tensor("0", "FloatStorage", 4, 0, [4], [1])
    rebuild = torch.name("torch._utils", "_rebuild_tensor_v2")
    long_opcode = b"\x8a\x40" + bytes(64)
    doubled = b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))  # (x, x) of (x, x) of ...
    deep = b"]" * 50_000 + b"a" * 49_999

    def beside(arguments: bytes) -> bytes:
        """A state dict with nanoGPT's model_args beside it."""
        return torch.plain_dict({"model": torch.ordered_dict({"a": good}), "model_args": arguments})

    return [
        unsafe("os.system called", "global", torch.name("os", "system") + b"(" + torch.text("true") + b"tR"),
        unsafe("eval named but not called", "global", torch.name("builtins", "eval")),
        unsafe("class of torch", "global", torch.name("torch.nn.modules.linear", "Linear") + b")R"),
        unsafe("torch.load", "global", torch.name("torch", "load")),
        unsafe("numpy scalar", "global", torch.name("numpy.core.multiarray", "scalar")),
        unsafe("attribute of OrderedDict", "global", torch.name("collections", "OrderedDict.fromkeys")),
        unsafe("empty module", "global", torch.name("", "eval")),
        unsafe("global with control characters", "global", torch.name("os\x1b[31m", "\x07system")),
        unsafe("STACK_GLOBAL", "opcode", torch.text("os") + torch.text("system") + b"\x93"),
        unsafe("INST", "opcode", b"(" + torch.text("true") + b"ios\nsystem\n"),
        unsafe("OBJ", "opcode", b"(" + torch.name("collections", "OrderedDict") + b"o"),
        unsafe("NEWOBJ", "opcode", torch.name("collections", "OrderedDict") + b")\x81"),
        unsafe("NEWOBJ_EX", "opcode", torch.name("collections", "OrderedDict") + b")}\x92"),
        unsafe("extension code", "opcode", b"\x82\x01"),
        unsafe("storage type called", "call", torch.name("torch", "FloatStorage") + b")R"),
        unsafe("OrderedDict of something", "call", torch.name("collections", "OrderedDict") + b"(]tR"),
        unsafe("string called", "call", torch.text("os.system") + b")R"),
        unsafe("tensor of nothing", "call", rebuild + b")R"),
        unsafe("tensor of a string", "call", rebuild + b"(" + torch.text("a") + b"NNNNNtR"),
        unsafe("tensor with float shape", "call",
               rebuild + b"(" + torch.storage("0", "FloatStorage",
               4) + b"K\x00G" + bytes(8) + b"\x85)\x89NtR"),
        unsafe("parameter of a dict", "call", torch.name("torch._utils",
            "_rebuild_parameter") + b"(}\x88NtR"),
        unsafe("BUILD on a tensor", "call", good + b"}b"),
        unsafe("BUILD with a tuple", "call", torch.ordered_dict({"a": good}) + b"}}\x86b"),
        unsafe("BUILD on a list", "call", b"]}b"),
        wrong("opcode 0xff", "opcode", b"\xff"),
        wrong("old INT opcode", "opcode", b"I1\n"),
        wrong("old string", "opcode", b"S'a'\n"),
        wrong("text persistent id", "opcode", b"P0\n"),
        wrong("POP", "opcode", b"N0"),
        wrong("bytes", "opcode", b"C\x01a"),
        view("no elements, sides that no array has", "size_overflow", 0, [0, 2**40, 2**40], [1, 1, 1]),
        wrong("a number names an argument", "pickle_structure", beside(b"}(K\x01K\x02u")),
        bad("arguments that contain themselves", ConfigError, "config_type",
            torch.finished(beside(torch.plain_dict({"n_layer": b"]q\x01h\x01a",
            "n_layers": b"]q\x02h\x02a"})))),
        bad("arguments that double forty times", ConfigError, "config_type",
            torch.finished(beside(torch.plain_dict({"n_layer": doubled, "n_layers": doubled})))),
        bad("arguments 50,000 deep", ConfigError, "config_type",
            torch.finished(beside(torch.plain_dict({"n_layer": deep, "n_layers": deep})))),
        bad("protocol 9", FormatError, "opcode", b"\x80\x09N."),
        bad("protocol in the middle", FormatError, "opcode", b"\x80\x02\x80\x02N."),
        bad("empty pickle", FormatError, "pickle_truncated", b""),
        bad("no STOP", FormatError, "pickle_truncated", b"\x80\x02N"),
        bad("ends inside a string", FormatError, "pickle_truncated", b"\x80\x02X\xff\xff\xff\xffabc."),
        bad("ends inside a global", FormatError, "pickle_truncated", b"\x80\x02ccollections"),
        bad("global of 300 bytes", FormatError, "pickle_truncated", b"\x80\x02c" + b"a" * 300 + b"\nb\n."),
        bad("bytes after STOP", FormatError, "trailing_data", torch.finished(b"N") + b"N."),
        wrong("nothing on the stack", "pickle_structure", b""),
        wrong("two values left", "pickle_structure", b"NN"),
        wrong("mark left", "pickle_structure", b"N("),
        wrong("no mark", "pickle_structure", b"Nt"),
        wrong("append across a mark", "pickle_structure", b"](Na"),
        wrong("append to nothing", "pickle_structure", b"Na"),
        wrong("set item of a list", "pickle_structure", b"]NNs"),
        wrong("odd items", "pickle_structure", b"}(NNNu"),
        wrong("tuple key", "pickle_structure", b"})Ns"),
        wrong("list key", "pickle_structure", b"}]Ns"),
        wrong("memo never stored", "pickle_structure", b"h\x05"),
        wrong("long memo never stored", "pickle_structure", b"j\x05\x00\x00\x00"),
        wrong("nothing to memoise", "pickle_structure", b"q\x00"),
        wrong("number of 64 bytes", "pickle_structure", long_opcode),
        wrong("persistent id is a string", "pickle_structure", torch.text("0") + b"Q"),
        wrong("persistent id without a type", "pickle_structure", torch.numbers([0, 0, 0, 0, 0]) + b"Q"),
        wrong("storage of negative size", "pickle_structure", torch.storage("0", "FloatStorage", -1)),
        wrong("storage of OrderedDicts", "pickle_structure",
              b"(" + torch.text("storage") + torch.name("collections", "OrderedDict") + torch.text("0")
              + torch.text("cpu") + torch.number(4) + b"tQ"),
        wrong("dict key twice", "duplicate_name", b"}(" + 2 * (torch.text("a") + good) + b"u"),
        wrong("not UTF-8", "pickle_text", b"X\x01\x00\x00\x00\xff"),
        wrong("half a surrogate pair", "pickle_text", torch.text("\ud800")),
        wrong("2 million values", "pickle_limit", b"N" * 1_000_001, LimitError),
        wrong("4 million steps", "pickle_limit", b"]" + b"Na" * 2_000_001, LimitError),
        wrong("17 MiB", "pickle_limit", b"N" * (17 * 2**20), LimitError),
        wrong("not a dict", "pickle_structure", b"]"),
        wrong("empty dict", "pickle_structure", b"}"),
        wrong("dict of numbers", "pickle_structure", torch.plain_dict({"a": torch.number(1)})),
        wrong("two state dicts", "pickle_structure", torch.plain_dict(dict.fromkeys(
            ("model", "state_dict"), torch.plain_dict({"a": good})))),
        wrong("state dict under another key", "pickle_structure",
              torch.plain_dict({"ema": torch.plain_dict({"a": good})})),
        wrong("unknown flag", "tensor_flags", torch.ordered_dict({"a": torch.tensor(
            "0", "FloatStorage", 4, 0, [4], [1], torch.plain_dict({"scale": torch.number(2)}))})),
        wrong("flag that is no yes", "tensor_flags", torch.ordered_dict({"a": torch.tensor(
            "0", "FloatStorage", 4, 0, [4], [1], torch.plain_dict({"neg": torch.number(1)}))})),
        wrong("conjugate bit of real values", "tensor_flags", torch.ordered_dict({"a": torch.tensor(
            "0", "FloatStorage", 4, 0, [4], [1], torch.plain_dict({"conj": b"\x88"}))})),
        wrong("hooks", "tensor_flags", torch.ordered_dict({"a": torch.tensor(
            "0", "FloatStorage", 4, 0, [4], [1], hooks=torch.plain_dict({"a": b"N"}))})),
        wrong("sparse tensor", "dtype", torch.plain_dict({
            "b": good, "a": torch.name("torch._utils", "_rebuild_sparse_tensor") + b"(NNtR"})),
        wrong("a number as name", "pickle_structure", b"}" + torch.number(1) + good + b"s"),
        wrong("a list inside itself", "pickle_structure", b"]q\x00h\x00a"),
        wrong("100,000 nested lists", "pickle_structure", b"]" * 100_000 + b"a" * 99_999),
        view("view past the end", "bad_view", 0, [5], [1]),
        view("view past the end by its offset", "bad_view", 1, [4], [1]),
        view("view past the end by its stride", "bad_view", 0, [2, 2], [3, 1]),
        view("huge view", "bad_view", 0, [2**62, 2**62, 2**62], [1, 1, 1]),
        view("stride 0", "bad_view", 0, [4, 1000], [1, 0]),
        view("overlapping rows", "bad_view", 0, [3, 2], [1, 1]),
        view("negative stride", "bad_view", 3, [4], [-1]),
        view("negative side", "bad_view", 0, [-4], [1]),
        view("negative offset", "bad_view", -1, [4], [1]),
        view("more strides than sides", "bad_view", 0, [4], [1, 1]),
        view("nine dimensions", "rank_limit", 0, [1] * 9, [1] * 9, LimitError),
        wrong("name of 2000 bytes", "name_limit", torch.plain_dict({"x" * 2000: good}), LimitError),
        wrong("storage not in the archive", "missing_storage",
              torch.ordered_dict({"a": torch.tensor("1", "FloatStorage", 4, 0, [4], [1])})),
        wrong("storage key with dots", "missing_storage",
              torch.ordered_dict({"a": torch.tensor("../data/0", "FloatStorage", 4, 0, [4], [1])})),
        wrong("storage smaller than declared", "storage_size",
              torch.ordered_dict({"a": torch.tensor("0", "FloatStorage", 589_824, 0, [4], [1])})),
        wrong("storage of another type", "storage_size",
              torch.ordered_dict({"a": torch.tensor("0", "HalfStorage", 4, 0, [4], [1])})),
        wrong("storage of 2^62 values", "storage_size",
              torch.ordered_dict({"a": torch.tensor("0", "FloatStorage", 2**62, 0, [2**62], [1])})),
    ]  # fmt: skip


def _zip(pieces: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, data in pieces.items():
            out.writestr(name, data)
    return file.getvalue()


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _archives() -> list[BadFile]:
    good = torch.torch_file({"a": np.arange(4, dtype=np.float32)})
    pickle, storages = torch.state_dict({"a": np.arange(4, dtype=np.float32)})
    pickle = torch.finished(pickle)
    central = good.index(b"PK\x01\x02")
    end = len(good) - 22
    second = good.index(b"PK\x01\x02", central + 4)
    local_of_second = int.from_bytes(good[second + 42 : second + 46], "little")
    n_entries = int.from_bytes(good[end + 10 : end + 12], "little")

    def bad(name: str, code: str, data: bytes, error: type = FormatError) -> BadFile:
        return BadFile("zip: " + name, error, code, data, "x.pth")

    extra64 = struct.pack("<4sQ2H2L4Q4sLQL", b"PK\x06\x06", 44, 45, 45, 0, 0, n_entries, n_entries,
        end - central,
                          central, b"PK\x06\x07", 0, end, 1)  # fmt: skip
    return [
        bad("empty", "too_short", b""),
        bad("4 bytes", "too_short", b"PK\x03\x04"),
        bad("old torch pickle", "magic", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        bad("safetensors inside", "magic", GOOD),
        bad("git lfs pointer", "magic", b"version https://git-lfs.github.com/spec/v1\n"),
        bad("html page", "magic", b"<html>"),
        bad("json", "magic", b'{"a": 1}'),
        bad("something else", "magic", b"\x7fELF" + bytes(100)),
        bad("cut in half", "truncated", good[: len(good) // 2]),
        bad("comment", "truncated", _patched(good, end + 20, b"\x02\x00") + b"hi"),
        bad("byte after the end", "truncated", good + b"\0"),
        bad("byte before the start", "magic", b"\0" + good),
        bad("two disks", "zip_structure", _patched(good, end + 4, b"\x01\x00")),
        bad("counts disagree", "zip_structure", _patched(good, end + 8, b"\x01\x00")),
        bad("too many entries for the directory", "zip_structure", _patched(good, end + 8,
            b"\xff\x7f\xff\x7f")),
        bad("one entry fewer", "zip_structure",
            _patched(good, end + 8, (n_entries - 1).to_bytes(2, "little") * 2)),
        bad("one entry more", "zip_structure",
            _patched(good, end + 8, (n_entries + 1).to_bytes(2, "little") * 2)),
        bad("directory elsewhere", "zip_structure", _patched(good, end + 16, b"\x00\x00\x00\x00")),
        bad("damaged directory entry", "zip_structure", _patched(good, central, b"PK\x01\x03")),
        bad("name longer than the directory", "zip_structure", _patched(good, central + 28, b"\xff\xff")),
        bad("unknown flags", "zip_structure", _patched(good, central + 8, b"\x20\x00")),
        bad("bytes before the first entry", "zip_structure",
            _patched(good, central + 42, b"\x01\x00\x00\x00")),
        bad("no 64-bit sizes", "zip_structure", _patched(good, central + 20, b"\xff" * 8)),
        bad("zip64 record elsewhere", "zip_structure",
            good[:end] + _patched(extra64, 64, bytes(8)) + good[end:]),
        bad("zip64 record on several disks", "zip_structure",
            good[:end] + _patched(extra64, 72, b"\x02") + good[end:]),
        bad("zip64 record damaged", "zip_structure", good[:end] + b"PK\x06\x05" + extra64[4:] + good[end:]),
        bad("zip64 record disagrees", "zip_structure",
            good[:end] + _patched(extra64, 24, bytes([n_entries + 1])) + good[end:]),
        bad("compressed", "zip_compressed", torch.archive(pickle, storages,
            compression=zipfile.ZIP_DEFLATED)),
        bad("encrypted", "zip_encrypted", _patched(good, central + 8, b"\x01\x00")),
        bad("stored size differs", "zip_mismatch", _patched(good, central + 20, b"\x01\x00\x00\x00")),
        bad("local name differs", "zip_mismatch", _patched(good, 30, b"X")),
        bad("local method differs", "zip_mismatch", _patched(good, 8, b"\x08\x00")),
        bad("local flags differ", "zip_mismatch", _patched(good, 6, b"\x01\x00")),
        bad("local size differs", "zip_mismatch", _patched(good, 22, b"\x01\x00\x00\x00")),
        bad("local crc differs", "zip_mismatch", _patched(good, 14, b"\x00\x00\x00\x00")),
        bad("no local header", "zip_mismatch", _patched(good, 0, b"PK\x03\x04").replace(
            b"PK\x03\x04", b"PK\x03\x05", 2).replace(b"PK\x03\x05", b"PK\x03\x04", 1)),
        bad("entry reaches into the directory", "zip_mismatch", _patched(
            _patched(good, central + 20, struct.pack("<2L", 2**20, 2**20)), 18, struct.pack("<2L", 2**20,
                2**20))),
        bad("overlapping entries", "zip_overlap",
            _patched(good, second + 42, struct.pack("<L", local_of_second - 1))),
        bad("entry far outside", "zip_structure", _patched(good, second + 42, b"\xf0\xff\xff\xff")),
        bad("same entry twice", "duplicate_name", _twice()),
        bad("entry name not UTF-8", "zip_name", good.replace(b"archive/version", b"archive/versio\xff")),
        bad("entry name with NUL", "zip_name", good.replace(b"archive/version", b"archive/versi\0n")),
        bad("entry name of 2000 bytes", "name_limit", _zip({"a/data.pkl": pickle, "a/" + "x" * 2000: b""}),
            LimitError),
        bad("no data.pkl", "zip_content", _zip({"archive/other": b""})),
        bad("two data.pkl", "zip_content", _zip({"a/data.pkl": pickle, "b/data.pkl": pickle})),
        bad("data.pkl at the top", "zip_content", _zip({"data.pkl": pickle})),
        bad("an ordinary zip", "zip_content", _zip({"readme.txt": b"hello"})),
        bad("entry beside the folder", "zip_content", _zip({"a/data.pkl": pickle, "b/c": b""})),
        bad("no version", "version", _zip({"a/data.pkl": pickle, "a/data/0": FOUR})),
        bad("version 11", "version", _zip({"a/data.pkl": pickle, "a/data/0": FOUR, "a/version": b"11\n"})),
        bad("notes of torch changed", "version", torch.archive(pickle, storages,
            extra={".storage_alignment": b"6x"})),
        bad("marked as a folder", "zip_structure", _patched(good, central + 38, b"\x10")),
        bad("TorchScript", "magic", torch.archive(pickle, storages, extra={"constants.pkl": b""})),
        bad("big-endian", "byteorder", torch.archive(pickle, storages, byteorder=b"big")),
        bad("byteorder of a megabyte", "byteorder", torch.archive(pickle, storages, byteorder=b"x" * 2**20)),
        bad("damaged pickle", "crc", good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", 1)),
    ]  # fmt: skip


def _twice() -> bytes:
    """An archive with two entries of one name (same length, renamed in both headers)."""
    pickle, _ = torch.state_dict({"a": np.arange(4, dtype=np.float32)})
    data = _zip({"a/data.pkl": torch.finished(pickle), "a/data/0": FOUR, "a/data/1": FOUR})
    return data.replace(b"a/data/1", b"a/data/0")


def _crc(name: str) -> BadFile:
    """A good archive whose tensor data were changed afterwards: found when the tensor is read."""
    good = torch.torch_file(tiny.transformer_lens(tiny.weights()))
    at = good.index(b"archive/data/3") + 20
    return BadFile(name, FormatError, "crc", _patched(good, at, bytes([good[at] ^ 1])), "x.pth")


FILES = [*_pickles(), *_archives(), _crc("zip: one bit of a tensor")]
