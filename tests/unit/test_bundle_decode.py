"""Containers: told apart by content, decoded chunk by chunk, refused when cut, damaged or followed by other data."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_bundle import CONTAINERS, gzip_of, shell_of, tar_of, zstd_of

from infer_dev_entry.bundle.decode import (
    CHUNK_BYTES,
    DECODERS,
    decode_gzip,
    decode_shell,
    decode_zstd,
    detect_container,
)
from infer_dev_entry.errors import BundleError

TAR = tar_of({"a": b"x" * 100, "b": bytes(range(256)) * 5})
PACKERS: list[tuple[Callable[[bytes], bytes], str]] = [(pack, kind) for kind, pack in CONTAINERS.items()]


def chunks_of(data: bytes, size: int = 100) -> Iterator[bytes]:
    """Yield the data in small pieces."""
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize(("pack", "kind"), PACKERS)
@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 10**6])
def test_decoder_chunks_of_any_size_give_the_tar(pack: Callable[[bytes], bytes], kind: str, size: int) -> None:
    packed = pack(TAR)
    assert detect_container(packed[:512]) == kind
    assert b"".join(DECODERS[kind](chunks_of(packed, size))) == TAR


@pytest.mark.parametrize("length", range(8))
@pytest.mark.parametrize("size", [1, 4, 5, 10**6])
def test_decode_shell_any_padding_and_border_gives_the_data(length: int, size: int) -> None:
    data = bytes(range(length))
    assert b"".join(decode_shell(chunks_of(shell_of(data), size))) == data


def test_decode_shell_wrapped_lines_are_understood() -> None:
    wrapped = shell_of(TAR).replace(base64.b64encode(TAR), base64.encodebytes(TAR).replace(b"\n", b"\r\n"))
    assert b"".join(decode_shell(chunks_of(wrapped))) == TAR


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst", "sh"])
@given(cut=st.floats(0, 0.999))
def test_decoder_truncated_input_is_refused(kind: str, cut: float) -> None:
    packed = CONTAINERS[kind](TAR)
    if kind == "sh":
        packed = packed[: packed.index(b"\n@@END_ARCHIVE@@") + 16]
    with pytest.raises(BundleError, match=r"truncated|damaged|without the mark"):
        list(DECODERS[kind](chunks_of(packed[: int(len(packed) * cut)])))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst"])
def test_decoder_garbage_behind_the_stream_is_refused(kind: str) -> None:
    for size in (1, 10**6):
        with pytest.raises(BundleError, match="damaged"):
            list(DECODERS[kind](chunks_of(CONTAINERS[kind](TAR) + b"garbage", size)))


@pytest.mark.parametrize(("decode", "pack"), [(decode_gzip, gzip_of), (decode_zstd, zstd_of)])
def test_decoder_many_streams_in_a_row_are_one(
    decode: Callable[[Iterator[bytes]], Iterator[bytes]], pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(TAR[:1000]) + pack(b"") + pack(TAR[1000:])
    for size in (1, 7, 10**6):
        assert b"".join(decode(chunks_of(packed, size))) == TAR


def test_decode_gzip_zeros_behind_the_stream_are_padding() -> None:
    assert b"".join(decode_gzip(chunks_of(gzip_of(TAR) + bytes(500), 7))) == TAR


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst", "sh"])
@given(at=st.floats(0, 0.999), flip=st.integers(1, 255))
def test_decoder_flipped_byte_gives_other_data_or_bundle_error(kind: str, at: float, flip: int) -> None:
    packed = bytearray(CONTAINERS[kind](TAR))
    packed[int(len(packed) * at)] ^= flip
    try:
        for chunk in DECODERS[kind](chunks_of(bytes(packed))):
            assert len(chunk) <= CHUNK_BYTES
    except BundleError as error:
        assert ";" in str(error)


@pytest.mark.parametrize(("decode", "pack"), [(decode_gzip, gzip.compress), (decode_zstd, zstd_of)])
def test_decoder_bomb_comes_in_small_chunks(
    decode: Callable[[Iterator[bytes]], Iterator[bytes]], pack: Callable[[bytes], bytes]
) -> None:
    sizes = [len(chunk) for chunk in decode(iter([pack(bytes(20 * 2**20))]))]
    assert sum(sizes) == 20 * 2**20
    assert max(sizes) <= CHUNK_BYTES


def test_decode_zstd_window_over_128_mib_is_refused() -> None:
    from backports import zstd

    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    packed = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(BundleError, match="128 MiB"):
        list(decode_zstd(iter([packed])))


@pytest.mark.parametrize(
    "text",
    [
        b"#!/bin/sh\necho hello\n",
        b"#!/bin/sh\n: @@END_HEADER@@ in the middle of a line\n",
        b"#!/bin/sh\n" + b"#" * (3 << 20) + b"\n@@END_HEADER@@\n\nAAAA\n@@END_ARCHIVE@@\n",
    ],
)
def test_decode_shell_other_script_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match="without the mark @@END_HEADER@@"):
        list(decode_shell(chunks_of(text, 1 << 20)))


@pytest.mark.parametrize(
    "body", [b"AAAA=AAA", b"AA==AAAA", b"AAA", b"A", b"AAAA====", b"AA!A", b"AAAA AAAA", "AAAé".encode(), b"===="]
)
def test_decode_shell_damaged_base64_is_refused(body: bytes) -> None:
    script = b"#!/bin/sh\n@@END_HEADER@@\n\n" + body + b"\n@@END_ARCHIVE@@\n"
    for size in (1, 4, 10**6):
        with pytest.raises(BundleError, match="base64"):
            list(decode_shell(chunks_of(script, size)))


def test_decode_shell_other_mark_is_refused() -> None:
    with pytest.raises(BundleError, match="something else stands"):
        list(decode_shell(chunks_of(b"#!/bin/sh\n@@END_HEADER@@\n\nAAAA\n@@END_OTHER@@\n")))


def test_decode_shell_takes_all_input() -> None:
    chunks = chunks_of(shell_of(TAR) + b"tail" * 1000)
    list(decode_shell(chunks))
    assert next(chunks, None) is None


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"", "empty"),
        (b"PK\x03\x04...", "zip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh91AY", "bzip2"),
        (b"hello" * 200, "no archive"),
        (b"x", "no archive"),
    ],
)
def test_detect_container_other_file_is_named(start: bytes, word: str) -> None:
    with pytest.raises(BundleError, match=word):
        detect_container(start)
