"""Heads of GGUF files: whole ones, ones that were cut, and foreign bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_model import gguf_head, gguf_text

from infer_dev_entry.doctor.gguf import GgufError, ShortError, parse_gguf
from infer_dev_entry.doctor.vram import llama_kv_bytes


def test_head_of_a_whole_file_gives_its_numbers() -> None:
    head, used = gguf_head(words=1000)
    found = parse_gguf(head, len(head) + used)
    assert (found.architecture, found.tensors, found.number("block_count")) == ("llama", 2, 2)
    assert found.number("no_such_key") == 0
    # 2 (keys and values) × 2 bytes × 2 layers × 2 heads × 64/4 wide × 100 tokens
    assert llama_kv_bytes(found, 100) == 2 * 2 * 2 * 2 * 16 * 100


def test_file_that_ends_before_its_last_tensor_is_cut_short() -> None:
    head, used = gguf_head()
    with pytest.raises(GgufError, match=r"cut short: .* its last tensor begins at"):
        parse_gguf(head, len(head) + used // 2)


def test_head_that_goes_on_asks_for_more() -> None:
    head, used = gguf_head(words=1000)
    for cut in (5, 30, 100, len(head) // 2, len(head) - 40):
        with pytest.raises(ShortError):
            parse_gguf(head[:cut], len(head) + used)


@pytest.mark.parametrize(
    ("data", "clause"),
    [
        (b"", "begins with b''"),
        (b"GGML....", "begins with b'GGML'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1, and 2 and 3 are known"),
        (b"GGUF" + struct.pack("<IQQ", 3 << 24, 0, 0), "version 50331648"),  # big endian
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50), "a name in it claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("k") + struct.pack("<I", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("k") + struct.pack("<IIQ", 9, 8, 2**40), "a list in it"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("k") + struct.pack("<IIQ", 9, 9, 2**20), "a list in it"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + gguf_text("t") + struct.pack("<I", 2**31), "2147483648 dimensions"),
    ],
)
def test_head_that_cannot_be_is_refused(data: bytes, clause: str) -> None:
    with pytest.raises(GgufError, match=clause):
        parse_gguf(data, 10**9)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_read_or_refused(tail: bytes, tensors: int) -> None:
    try:
        parse_gguf(b"GGUF" + struct.pack("<IQQ", 3, tensors, 2) + tail, 1000)
    except GgufError:
        return
