"""A tar archive as a stream of members: ustar, GNU and pax names, nothing that a bundle has no use for. Pure.

The standard library's reader takes names and pax headers of any size into memory and stops without a word at a missing
end; an archive from outside needs the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from infer_dev_entry.bundle.contents import render_name
from infer_dev_entry.errors import BundleError

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 256 * 1024
MAX_MEMBER_BYTES = 1 << 50
_MAX_EXTENSIONS_IN_A_ROW = 8
_ZERO_BLOCK = bytes(BLOCK_BYTES)

FILE, DIRECTORY, HARD_LINK, SYMLINK = "file", "directory", "hard link", "symbolic link"
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"5": DIRECTORY, b"1": HARD_LINK, b"2": SYMLINK}
_REFUSED_KINDS = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member. `size` bytes of data follow in the stream (0 unless it is a file)."""

    name: str
    kind: str
    size: int
    executable: bool
    link: str


class ChunkReader:
    """Reads a stream that comes in chunks. `position` counts the bytes taken so far."""

    def __init__(self, chunks: Iterator[bytes], seek: Callable[[int], None] | None = None) -> None:
        """`seek` skips so many bytes of the source behind `chunks`, where that is cheaper than reading them."""
        self._chunks = chunks
        self._seek = seek
        self._chunk = memoryview(b"")
        self.position = 0

    def read_some(self, limit: int) -> memoryview:
        """Return up to `limit` bytes, as many as are at hand; empty at the end."""
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return self._chunk
            self._chunk = memoryview(chunk)
        piece = self._chunk[:limit]
        self._chunk = self._chunk[limit:]
        self.position += len(piece)
        return piece

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        piece = self.read_some(size)
        if len(piece) == size:
            return bytes(piece)
        parts = [piece]
        left = size - len(piece)
        while left and (piece := self.read_some(left)):
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Drop `size` bytes; at the end of the stream it stops in silence, and the next read is empty."""
        left = size
        if self._seek is not None and size > len(self._chunk):
            beyond = size - len(self._chunk)
            self._chunk = memoryview(b"")
            self._seek(beyond)
            self.position += size
            return
        while left and (piece := self.read_some(left)):
            left -= len(piece)


def read_members(reader: ChunkReader) -> Iterator[Member]:
    """Yield the members one by one; between two, the caller may read the member's data from `reader`, or leave it.

    Raises:
        BundleError: it is no tar archive, is damaged or truncated, has data after its end, or holds a special file.
    """
    extensions: dict[str, str] = {}
    in_a_row = 0
    while (header := _read_header(reader)) is not None:
        kind = header[156:157]
        if kind in (_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL):
            in_a_row += 1
            if in_a_row > _MAX_EXTENSIONS_IN_A_ROW:
                _fail("it has too many extension headers in a row")
            extensions |= _read_extension(reader, kind, _parse_number(header[124:136]))
            continue
        member = _parse_member(header, extensions)
        extensions, in_a_row = {}, 0
        end = reader.position + _padded(member.size)
        yield member
        reader.skip(end - reader.position)
    if extensions:
        _fail("it ends behind an extension header")
    _check_rest(reader)


def looks_like_tar(start: bytes) -> bool:
    """Say whether the first bytes of a file are a tar header, or the end marker of an empty archive."""
    block = start[:BLOCK_BYTES]
    if len(block) < BLOCK_BYTES:
        return False
    return block == _ZERO_BLOCK or block[257:262] == b"ustar" or _checksum_fits(block)


def _read_header(reader: ChunkReader) -> bytes | None:
    """Return the next header, or None at the end marker (two blocks of zeros)."""
    block = reader.read_exactly(BLOCK_BYTES)
    if block == _ZERO_BLOCK:
        if reader.read_exactly(BLOCK_BYTES) != _ZERO_BLOCK:
            _fail("it is damaged or truncated: its end marker is incomplete")
        return None
    if len(block) < BLOCK_BYTES:
        _fail("it is truncated: it ends without an end marker")
    if not _checksum_fits(block):
        _fail("it is damaged, or no tar archive: a header's checksum is wrong")
    return block


def _checksum_fits(block: bytes) -> bool:
    field = block[148:156].strip(b" \0")
    if not field or not all(byte in b"01234567" for byte in field):
        return False
    expected = int(field, 8)
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old writers summed signed bytes.
    return expected in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def _read_extension(reader: ChunkReader, kind: bytes, size: int) -> dict[str, str]:
    if size > MAX_EXTENSION_BYTES:
        _fail(f"it has an extension header of {size} bytes; the limit is {MAX_EXTENSION_BYTES}")
    data = reader.read_exactly(_padded(size))
    if len(data) < _padded(size):
        _fail("it is truncated within an extension header")
    data = data[:size]
    if kind == _GNU_NAME:
        return {"path": _decode(data.rstrip(b"\0"))}
    if kind == _GNU_LINK:
        return {"linkpath": _decode(data.rstrip(b"\0"))}
    known = _parse_pax(data)
    if kind == _PAX_GLOBAL and known:
        _fail("it has a global header that names or sizes members")
    return known


def _parse_pax(data: bytes) -> dict[str, str]:
    """Return path, linkpath and size out of pax records `<length> <key>=<value>\\n`; others change nothing here."""
    known: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        if length <= len(digits) + 2 or len(record) != length - len(digits) - 1 or not record.endswith(b"\n"):
            _fail("it has a damaged pax header")
        key, _, value = record[:-1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            _fail("it holds a sparse file; pack it without --sparse")
        if key in (b"path", b"linkpath", b"size"):
            known[key.decode()] = _decode(value)
        at += length
    return known


def _parse_member(header: bytes, extensions: dict[str, str]) -> Member:
    name = extensions.get("path") or _parse_name(header)
    kind = _KINDS.get(header[156:157])
    if kind is None:
        found = _REFUSED_KINDS.get(header[156:157], f"of the unknown type {header[156:157]!r}")
        _fail(f"its member {render_name(name)} is {found}; a bundle holds files and folders")
    if kind == FILE and name.endswith("/"):
        kind = DIRECTORY  # as writers older than ustar mark them
    size = _parse_number(header[124:136])
    if "size" in extensions:
        text = extensions["size"]
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            _fail("it has a damaged pax header: its size is no number")
        size = int(text)
    if size > MAX_MEMBER_BYTES:
        _fail(f"its member {render_name(name)} says it has {size} bytes")
    if kind != FILE and size:
        _fail(f"its member {render_name(name)} is a {kind} with data")
    return Member(
        name=name,
        kind=kind,
        size=size,
        executable=bool(_parse_number(header[100:108]) & 0o100),
        link=extensions.get("linkpath") or _decode(_until_nul(header[157:257])),
    )


def _parse_name(header: bytes) -> str:
    name = _decode(_until_nul(header[:100]))
    # GNU's own magic is "ustar " and keeps times, not a prefix, in that field.
    prefix = _decode(_until_nul(header[345:500])) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _parse_number(field: bytes) -> int:
    """Parse an octal number, or GNU's base-256 form for large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not all(byte in b"01234567" for byte in text):
        _fail("it is damaged: a header holds a number that is none")
    return int(text or b"0", 8)


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise BundleError("it holds a name that is not UTF-8; pack it again") from error


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _check_rest(reader: ChunkReader) -> None:
    """Take what follows the end marker: only zeros, which fill the last record."""
    while piece := reader.read_some(1 << 20):
        if bytes(piece).strip(b"\0"):
            _fail("it has data after its end")


def _fail(reason: str) -> NoReturn:
    raise BundleError(f"{reason}; copy it anew or build it again")
