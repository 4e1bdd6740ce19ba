"""Finds the entries of a zip archive as torch writes it, and refuses every other kind of zip.

Stored entries only, no encryption, no comment, no bytes before the first entry or after the directory, and
the header of each entry must agree with the directory: all programs that read the file see the same entries.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NoReturn

from ..errors import FormatError, file_error, quoted
from .limits import Limits
from .regular_file import RegularFile
from .tensor_source import ByteRange

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_TORCH_FLAGS = _DESCRIPTOR | _UTF8
_MOST_EXTRA = 1024  # bytes after an entry's name in the directory; torch writes 32 at most
_FOLDER = 0x10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class _Entry(NamedTuple):
    name: str
    flags: int
    crc: int
    size: int
    header: int  # byte offset of its local header


def read_zip_directory(
    file: RegularFile, limits: Limits, *, crc_may_be_off: bool = False
) -> dict[str, ByteRange]:
    """Map each entry's name to the place of its bytes, checked against the file's size and against each
    other.

    With `crc_may_be_off` an archive in which every checksum is 0, as torch writes it after
    set_crc32_options(False), has places without one.

    Raises FormatError with codes too_short, truncated, zip_structure, zip_compressed, zip_encrypted,
    zip_mismatch, zip_overlap, zip_name, duplicate_name; LimitError zip_entries, name_limit.
    """
    n_entries, begin, n_bytes = _end_records(file)
    limits.check(
        "max_zip_entries", n_entries, file.path, f"an archive of {n_entries:,} entries", code="zip_entries"
    )
    if n_entries * _CENTRAL.size > n_bytes:
        _raise_file_error(
            file, f"{n_entries:,} entries do not fit in a directory of {n_bytes:,} bytes", begin
        )
    if n_bytes > n_entries * (_CENTRAL.size + limits.max_name_bytes + _MOST_EXTRA):
        _raise_file_error(file, f"a directory of {n_bytes:,} bytes for {n_entries:,} entries", begin)
    entries = _central_entries(file, file.read(begin, n_bytes), begin, n_entries, limits)
    unchecked = crc_may_be_off and all(
        item.crc == 0 and item.flags == (_TORCH_FLAGS if item.size else _UTF8) for item in entries
    )
    places: dict[str, ByteRange] = {}
    end = 0
    for entry in sorted(entries, key=lambda item: item.header):
        if entry.header < end:
            text = f"entry {quoted(entry.name)} starts at byte {entry.header:,}, inside the one before it"
            raise file_error(
                FormatError, "zip_overlap", file.path, text, offset=entry.header, field=entry.name
            )
        if end == 0 and entry.header != 0:
            _raise_file_error(file, f"{entry.header:,} bytes before the first entry", 0)
        data = _data_offset(file, entry, begin)
        places[entry.name] = ByteRange(data, entry.size, None if unchecked else entry.crc)
        end = data + entry.size
    return {entry.name: places[entry.name] for entry in entries}


def _end_records(file: RegularFile) -> tuple[int, int, int]:
    """Number of entries, offset and size of the central directory."""
    if file.size < _END.size:
        text = f"{file.size} bytes, a zip archive has at least {_END.size}; probably an incomplete download"
        raise file_error(FormatError, "too_short", file.path, text, offset=0)
    end_at = file.size - _END.size
    record = file.read(end_at, _END.size)
    magic, disk, start_disk, on_disk, total, n_bytes, begin, n_comment = _END.unpack(record)
    if magic != b"PK\x05\x06" or n_comment:
        text = "does not end with the directory of a torch archive; probably an incomplete download"
        raise file_error(FormatError, "truncated", file.path, text, offset=end_at)
    directory_end = end_at
    classic: tuple[int, ...] = (disk, start_disk, on_disk, total, n_bytes, begin)
    locator_at = end_at - _LOCATOR64.size
    locator = file.read(locator_at, _LOCATOR64.size) if locator_at >= 0 else b""
    if locator.startswith(b"PK\x06\x07"):
        directory_end, large = _end64(file, locator, locator_at)
        for small, big, full in zip(classic, large, [_FULL16] * 4 + [_FULL32] * 2):
            if small not in (big, full):
                _raise_file_error(file, "its two end records disagree", end_at)
        classic = large
    disk, start_disk, on_disk, total, n_bytes, begin = classic
    if disk or start_disk or on_disk != total:
        _raise_file_error(file, "an archive in several parts", end_at)
    if begin + n_bytes != directory_end:
        _raise_file_error(
            file, f"its directory should end at byte {directory_end:,}, not at {begin + n_bytes:,}", end_at
        )
    return total, begin, n_bytes


def _end64(file: RegularFile, locator: bytes, locator_at: int) -> tuple[int, tuple[int, ...]]:
    """Offset of the zip64 end record, and its numbers in the order of the ordinary one."""
    _, disk, at, n_disks = _LOCATOR64.unpack(locator)
    if disk or n_disks != 1:
        _raise_file_error(file, "an archive in several parts", locator_at)
    if at + _END64.size != locator_at:
        _raise_file_error(
            file,
            f"its zip64 record should be at byte {locator_at - _END64.size:,}, not at {at:,}",
            locator_at,
        )
    magic, n_rest, _, _, *numbers = _END64.unpack(file.read(at, _END64.size))
    if magic != b"PK\x06\x06" or n_rest != _END64.size - 12:
        _raise_file_error(file, "a damaged zip64 end record", at)
    return at, tuple(numbers)


def _central_entries(
    file: RegularFile, data: bytes, begin: int, n_entries: int, limits: Limits
) -> list[_Entry]:
    entries: list[_Entry] = []
    seen: set[str] = set()
    at = 0
    for _ in range(n_entries):
        if len(data) - at < _CENTRAL.size:
            _raise_file_error(file, "its directory is cut short", begin + at)
        numbers = _CENTRAL.unpack_from(data, at)
        (magic, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment,
         disk, _, attributes, header) = numbers  # fmt: skip
        names_at = at + _CENTRAL.size
        after = names_at + n_name + n_extra + n_comment
        if magic != b"PK\x01\x02" or after > len(data):
            _raise_file_error(file, "a damaged directory entry", begin + at)
        name = _entry_name(file, data[names_at : names_at + n_name], begin + names_at, limits)
        if name in seen:
            text = f"two entries are called {quoted(name)}"
            raise file_error(FormatError, "duplicate_name", file.path, text, offset=begin + at, field=name)
        seen.add(name)
        _check_storage(file, name, flags, method, begin + at)
        if attributes & _FOLDER:  # some readers then give no data
            _raise_file_error(file, f"entry {quoted(name)} is marked as a folder", begin + at)
        extra = data[names_at + n_name : names_at + n_name + n_extra]
        size, packed, header = _zip64_values(file, name, extra, [size, packed, header], begin + at)
        if packed != size or disk:
            _raise_mismatch(file, name, "stores a number of bytes that differs from its size", begin + at)
        entries.append(_Entry(name, flags, crc, size, header))
        at = after
    if at != len(data):
        _raise_file_error(file, f"{len(data) - at:,} bytes after the last directory entry", begin + at)
    return entries


def _entry_name(file: RegularFile, raw: bytes, at: int, limits: Limits) -> str:
    limits.check(
        "max_name_bytes", len(raw), file.path, f"an entry name of {len(raw):,} bytes", code="name_limit"
    )
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        text = f"an entry name that is not UTF-8 at byte {at:,}"
        raise file_error(FormatError, "zip_name", file.path, text, offset=at) from error
    if not name or "\0" in name:
        raise file_error(FormatError, "zip_name", file.path, f"entry name {quoted(name)}", offset=at)
    return name


def _check_storage(file: RegularFile, name: str, flags: int, method: int, at: int) -> None:
    if flags & _ENCRYPTED:
        text = f"entry {quoted(name)} is encrypted; torch files are not"
        raise file_error(FormatError, "zip_encrypted", file.path, text, offset=at, field=name)
    if method != 0:
        text = f"entry {quoted(name)} is compressed; torch files store tensors uncompressed"
        raise file_error(FormatError, "zip_compressed", file.path, text, offset=at, field=name)
    if flags & ~(_DESCRIPTOR | _UTF8):
        _raise_file_error(file, f"entry {quoted(name)} has unknown flags 0x{flags:x}", at)


def _zip64_values(file: RegularFile, name: str, extra: bytes, values: list[int], at: int) -> list[int]:
    """Replace those of (size, packed size, header offset) that are all ones by their 64-bit values."""
    missing = [index for index, value in enumerate(values) if value == _FULL32]
    position = 0
    while missing and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1 and length >= 8 * len(missing) and position + 4 + length <= len(extra):
            numbers = struct.unpack_from(f"<{len(missing)}Q", extra, position + 4)
            for index, number in zip(missing, numbers):
                values[index] = number
            return values
        position += 4 + length
    if missing:
        _raise_file_error(file, f"entry {quoted(name)} lacks its 64-bit sizes", at)
    return values


def _data_offset(file: RegularFile, entry: _Entry, directory: int) -> int:
    """Offset of an entry's bytes, after checking its local header against the directory."""
    at = entry.header
    if at + _LOCAL.size > directory:
        _raise_file_error(file, f"entry {quoted(entry.name)} at byte {at:,} lies outside the archive", at)
    record = file.read(at, _LOCAL.size)
    magic, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack(record)
    if magic != b"PK\x03\x04":
        _raise_mismatch(file, entry.name, "has no header of its own", at)
    data: int = at + _LOCAL.size + n_name + n_extra
    if data + entry.size > directory:
        _raise_mismatch(file, entry.name, f"of {entry.size:,} bytes reaches into the directory", at)
    tail = file.read(at + _LOCAL.size, n_name + n_extra)
    name, extra = tail[:n_name], tail[n_name:]
    if flags & _DESCRIPTOR and (crc, packed, size) == (0, 0, 0):
        crc, packed, size = entry.crc, entry.size, entry.size  # written after the data instead
    size, packed = _zip64_values(file, entry.name, extra, [size, packed], at)
    own = (name, flags, method, crc, packed, size)
    if own != (entry.name.encode(), entry.flags, 0, entry.crc, entry.size, entry.size):
        _raise_mismatch(file, entry.name, "has a different name, size or checksum in its own header", at)
    return data


def _raise_mismatch(file: RegularFile, name: str, what: str, at: int) -> NoReturn:
    text = f"entry {quoted(name)} {what} (byte {at:,}); the archive is damaged or malicious"
    raise file_error(FormatError, "zip_mismatch", file.path, text, offset=at, field=name)


def _raise_file_error(file: RegularFile, what: str, at: int) -> NoReturn:
    raise file_error(
        FormatError, "zip_structure", file.path, f"not an archive that torch writes: {what}", offset=at
    )
