"""Cut files (R2) and changed bytes (R3): nothing that is not the whole file passes for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_transcoders
import torch_by_hand
from bundle_by_hand import around, forged
from reliability import report
from safetensors_by_hand import entry, file_bytes, from_arrays

from attnsparse.errors import FormatError
from attnsparse.io.bundle import Bundle, Schema
from attnsparse.io.npz_file import NpzFile
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.torch_file import TorchFile

HALF_GIGABYTE = 500_000_000
ARRAYS = {
    "wte.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "e": np.zeros((0, 2), np.float16),
    "s": np.array(1.5),
}


def open_and_close(reader: Callable) -> Callable[[Path], object]:
    return lambda path: reader(path).close()


def read_bundle(path: Path) -> object:
    with Bundle(path, Schema("example", 1, "")) as bundle:
        return bundle.read_all()


SMALL = {
    "x.safetensors": (from_arrays(ARRAYS), open_and_close(SafetensorsFile)),
    "x.pth": (torch_by_hand.torch_file(ARRAYS), open_and_close(TorchFile)),
    "x.npz": (tiny_transcoders.npz(a=ARRAYS["wte.weight"], s=np.array(1.0)), open_and_close(NpzFile)),
    "x.example.safetensors": (
        forged("example", {"step": 3}, {"a": np.arange(7.0), "b": np.array(2)}),
        read_bundle,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_prefix_of_a_small_file_is_refused(tmp_path, name):
    data, read = SMALL[name]
    path = tmp_path / name
    path.write_bytes(data)
    read(path)
    size = path.stat().st_size
    assert 100 < size <= 65_536
    for length in range(size - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FormatError):
            read(path)
    report("R2", f"{name}: all {size:,} prefixes refused")


# ------------------------------------------------------------------------------------------- large files


def large_safetensors(path: Path, n_bytes: int) -> None:
    """A good file of which only the header takes room on the disk."""
    step = n_bytes // 100 // 4 * 4
    header = {f"t{i}": entry(step * i, step * (i + 1), [step // 4]) for i in range(100)}
    begin = file_bytes(header)
    path.write_bytes(begin)
    os.truncate(path, len(begin) + 100 * step)


def large_torch(path: Path, n_bytes: int) -> None:
    """A good archive except for the checksum of its one storage, which opening does not look at."""
    n = n_bytes // 4
    opcodes = torch_by_hand.ordered_dict({"t": torch_by_hand.tensor("0", "FloatStorage", n, 0, [n], [1])})
    _stretched(path, torch_by_hand.archive(torch_by_hand.finished(opcodes), {"0": b"data"}), 4 * n)


def large_npz(path: Path, n_bytes: int) -> None:
    n = n_bytes // 4
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({n},), }}\n".encode()
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    whole = tiny_transcoders.npz(a=np.zeros(1, np.float32))
    _stretched(path, whole, len(start) + 4 * n, start)


def _stretched(path: Path, small: bytes, n_bytes: int, start: bytes = b"") -> None:
    """`small` with its largest stored entry (the last in size order: data/0 or a.npy) made `n_bytes` long."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(small)) as archive:
        items = [(item.filename, archive.read(item)) for item in archive.infolist()]
    target = next(name for name, _ in items if name.endswith(("data/0", "a.npy")))
    # the large entry last, so that what follows it is only the directory
    items = [(name, data) for name, data in items if name != target] + [(target, b"")]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in items:
            archive.writestr(name, data)
    data = bytearray(made.getvalue())
    end = data.rfind(b"PK\x05\x06")
    directory = int.from_bytes(data[end + 16 : end + 20], "little")
    local, central = data.rfind(b"PK\x03\x04"), data.rfind(b"PK\x01\x02")
    for at in (local + 18, local + 22, central + 20, central + 24):
        data[at : at + 4] = n_bytes.to_bytes(4, "little")
    data[end + 16 : end + 20] = (directory + n_bytes).to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(data[:directory] + start)
        file.seek(directory + n_bytes)
        file.write(data[directory:])


def large_bundle(path: Path, n_bytes: int) -> None:
    """A good file except for the checksum of its tensor, which is compared when it is read."""
    text = {"schema": "example", "version": 1, "fields": {}, "tensors": {"x": "0" * 64}}
    begin = around(text, x=entry(0, n_bytes, [n_bytes // 4]))
    path.write_bytes(begin)
    os.truncate(path, len(begin) + n_bytes)


LARGE = {
    "safetensors": (large_safetensors, open_and_close(SafetensorsFile), "x.safetensors"),
    "torch": (large_torch, open_and_close(TorchFile), "x.pth"),
    "npz": (large_npz, open_and_close(NpzFile), "x.npz"),
    "bundle": (large_bundle, lambda path: Bundle(path, Schema("example", 1, "")).close(), "x.safetensors"),
}


def refuse_prefixes(tmp_path: Path, kind: str, count: int) -> None:
    write, read, name = LARGE[kind]
    path = tmp_path / name
    write(path, HALF_GIGABYTE)
    size = path.stat().st_size
    assert size >= HALF_GIGABYTE - 1000
    read(path)
    rng = np.random.default_rng(0)
    near = size - rng.integers(1, 2000, count // 10)
    begin = rng.integers(0, 10_000, count // 10)
    lengths = np.concatenate([near, begin, rng.integers(0, size, count - 2 * (count // 10))])
    for length in np.sort(lengths)[::-1].tolist():
        os.truncate(path, length)
        with pytest.raises(FormatError) as caught:
            read(path)
        assert caught.value.code in ("truncated", "bad_offsets", "too_short", "magic"), length
    report("R2", f"{kind}: {count:,} prefixes of a file of {size:,} bytes refused")


@pytest.mark.parametrize("kind", LARGE)
def test_some_prefixes_of_a_large_file_are_refused(tmp_path, kind):
    refuse_prefixes(tmp_path, kind, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_2000_prefixes_of_a_large_file_are_refused(tmp_path, kind):
    refuse_prefixes(tmp_path, kind, 2000)


# ----------------------------------------------------------------------------------------- changed bytes


def change_every_byte(
    path: Path, whole: bytes, reader: Callable, values: Callable[[int], list[int]]
) -> tuple:
    """(files, accepted): what is accepted after a change of one byte has the tensors of the whole file."""
    path.write_bytes(whole)
    with reader(path) as file:
        expected = {name: (info, file.read(name).tobytes()) for name, info in file.tensors.items()}
    accepted = []
    descriptor = os.open(path, os.O_WRONLY)
    count = 0
    for at, old in enumerate(whole):
        for value in values(old):
            count += 1
            os.pwrite(descriptor, bytes([value]), at)
            try:
                with reader(path) as file:
                    found = {name: (info, file.read(name).tobytes()) for name, info in file.tensors.items()}
            except FormatError:
                continue
            assert found == expected, (at, value)
            accepted.append(at)
        os.pwrite(descriptor, bytes([old]), at)
    os.close(descriptor)
    return count, accepted


ZIPS = {"x.pth": (torch_by_hand.torch_file(ARRAYS), TorchFile), "x.npz": (SMALL["x.npz"][0], NpzFile)}


def check_zip(tmp_path: Path, name: str, values: Callable[[int], list[int]]) -> None:
    whole, reader = ZIPS[name]
    count, accepted = change_every_byte(tmp_path / name, whole, reader, values)
    # Accepted are changes of what says nothing about the contents: dates, versions, systems, rights.
    assert len(set(accepted)) < len(whole) // 3
    text = f"{count:,} changes of one byte of {len(whole):,}: {count - len(accepted):,} refused, the rest"
    report("R3", f"{name}: {text} (dates, versions, attributes in the zip) changes no tensor")


@pytest.mark.parametrize("name", ZIPS)
def test_a_changed_byte_of_an_archive_is_refused_or_changes_nothing(tmp_path, name):
    check_zip(tmp_path, name, lambda old: [old ^ 1, old ^ 0x80])


@pytest.mark.slow
@pytest.mark.parametrize("name", ZIPS)
def test_every_changed_byte_of_an_archive_is_refused_or_changes_nothing(tmp_path, name):
    check_zip(tmp_path, name, lambda old: [value for value in range(256) if value != old])
