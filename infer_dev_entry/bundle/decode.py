"""From the bytes of a bundle's file to the bytes of its tar, chunk by chunk in flat memory. Pure.

Every decoder takes all of its input, so that the digest covers the whole file, and refuses a stream that ends early.
"""

from __future__ import annotations

import binascii
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NoReturn

from infer_dev_entry.bundle.tar import looks_like_tar
from infer_dev_entry.errors import BundleError

CHUNK_BYTES = 1 << 20
# What the zstd tool itself takes without being asked (--long=27); the window is the decoder's memory.
MAX_ZSTD_WINDOW_LOG = 27
MAX_SHELL_HEADER_BYTES = 1 << 20

TAR, GZIP, ZSTD, SHELL = "tar", "tar.gz", "tar.zst", "sh"
_FOREIGN = (
    (b"PK\x03\x04", "a zip file (one package rather than a bundle?)"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
)

Decoder = Callable[[Iterator[bytes]], Iterator[bytes]]


def detect_container(start: bytes) -> str:
    """Tell the kind of a bundle's file by its first 512 bytes; its name says nothing.

    Raises:
        BundleError: it is none of the kinds that are known.
    """
    if start.startswith(b"\x1f\x8b"):
        return GZIP
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        return ZSTD
    if start.startswith(b"#!"):
        return SHELL
    if looks_like_tar(start):
        return TAR
    found = next((name for magic, name in _FOREIGN if start.startswith(magic)), "empty" if not start else "no archive")
    raise BundleError(f"it is {found}; give a .tar, .tar.gz, .tar.zst, pixi-pack's .sh, or a directory")


def decode_plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass the chunks on."""
    return chunks


def decode_gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip, of one or many members, zeros behind the last.

    Raises:
        BundleError: it is damaged, truncated, or followed by other data.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        for data in chunks:
            while data:
                if stream.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    stream = zlib.decompressobj(wbits=31)
                yield stream.decompress(data, CHUNK_BYTES)
                data = stream.unused_data if stream.eof else stream.unconsumed_tail
        while not stream.eof:
            piece = stream.decompress(b"", CHUNK_BYTES)
            if not piece:
                _fail("it is truncated: its gzip stream ends early")
            yield piece
    except zlib.error as error:
        raise _damaged(f"its gzip stream is damaged ({error})") from error


def decode_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress zstd, of one or many frames.

    Raises:
        BundleError: it is damaged, truncated, followed by other data, or needs a window over 128 MiB.
    """
    if sys.version_info >= (3, 14):  # imported here, as only .tar.zst pays for it
        from compression import zstd
    else:
        from backports import zstd

    options = {int(zstd.DecompressionParameter.window_log_max): MAX_ZSTD_WINDOW_LOG}
    stream = zstd.ZstdDecompressor(options=options)
    try:
        for data in chunks:
            while data or not (stream.needs_input or stream.eof):
                if stream.eof:
                    stream = zstd.ZstdDecompressor(options=options)
                yield stream.decompress(data, CHUNK_BYTES)
                data = stream.unused_data if stream.eof else b""
        if not stream.eof:
            _fail("it is truncated: its zstd stream ends early")
    except zstd.ZstdError as error:
        raise _damaged(f"its zstd stream is damaged, or needs more than 128 MiB ({error})") from error


def decode_shell(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decode the tar within pixi-pack's self-extracting script; nothing of the script is run.

    Raises:
        BundleError: its marks are missing, or the base64 between them is damaged.
    """
    rest = _find_archive(chunks)
    text = b""
    while b"@" not in rest:
        text += _join_lines(rest)
        whole = (len(text) - 1) // 4 * 4 if text else 0  # the last four may hold the padding
        yield _decode_base64(text[:whole], last=False)
        text = text[whole:]
        rest = next(chunks, b"")
        if not rest:
            _fail("it is truncated: the mark @@END_ARCHIVE@@ is missing")
    last, _, mark = rest.partition(b"@")
    yield _decode_base64(text + _join_lines(last), last=True)
    while len(mark) < len(b"@END_ARCHIVE@@") and (more := next(chunks, b"")):
        mark += more
    if not mark.startswith(b"@END_ARCHIVE@@"):
        _fail("it is damaged: something else stands where the mark @@END_ARCHIVE@@ should be")
    for _ in chunks:
        pass  # pixi-unpack's own program: hashed on its way here, of no use to us


def _find_archive(chunks: Iterator[bytes]) -> bytes:
    """Take the script up to the line that begins with @@END_HEADER@@, and return what came with it behind that line."""
    head = b""
    for chunk in chunks:
        head += chunk
        _, mark, behind = head.partition(b"\n@@END_HEADER@@")
        _, newline, rest = behind.partition(b"\n")
        if mark and newline:
            return rest
        if len(head) > MAX_SHELL_HEADER_BYTES + CHUNK_BYTES:
            break
    raise _damaged("it is a script without the mark @@END_HEADER@@, so not one that pixi-pack made")


def _join_lines(text: bytes) -> bytes:
    return text.replace(b"\n", b"").replace(b"\r", b"")  # where there are none, these cost nothing


def _decode_base64(text: bytes, *, last: bool) -> bytes:
    try:
        if text.endswith(b"===" if last else b"="):
            _fail("it is damaged: its base64 goes on behind its end")
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise _damaged(f"its base64 is damaged ({error})") from error


DECODERS: dict[str, Decoder] = {TAR: decode_plain, GZIP: decode_gzip, ZSTD: decode_zstd, SHELL: decode_shell}


def _fail(reason: str) -> NoReturn:
    raise _damaged(reason)


def _damaged(reason: str) -> BundleError:
    return BundleError(f"{reason}; copy it anew or build it again")
