"""Headers and indexes of safetensors: what is whole, and every way in which foreign bytes can lie."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_model import safetensors_header

from infer_dev_entry.doctor.safetensors import HeaderError, parse_header, parse_index, parse_length

TENSORS = {"a": ("BF16", (2, 3)), "b": ("F32", (4,))}


def header_of(table: object) -> bytes:
    return json.dumps(table).encode()


def test_header_of_a_whole_file_gives_names_and_bytes() -> None:
    text, used = safetensors_header(TENSORS)
    header = parse_header(text, 8 + len(text) + used)
    assert (header.names, header.tensor_bytes) == ({"a", "b"}, 28)


@pytest.mark.parametrize(
    ("change", "clause"), [(-1, "it is cut short: {have} of {whole} bytes are here"), (3, "it has 3 bytes more")]
)
def test_header_that_does_not_fit_the_file_is_refused(change: int, clause: str) -> None:
    text, used = safetensors_header(TENSORS)
    whole = 8 + len(text) + used
    with pytest.raises(HeaderError, match=clause.format(have=whole + change, whole=whole)):
        parse_header(text, whole + change)


@pytest.mark.parametrize(
    ("table", "clause"),
    [
        ([], "is no JSON object"),
        ({"a": 1}, "lacks dtype, shape or data_offsets"),
        ({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0]}}, "lacks dtype"),
        ({"a": {"dtype": "BF16", "shape": [True], "data_offsets": [0, 2]}}, "impossible shape"),
        ({"a": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 2]}}, "impossible shape"),
        ({"a": {"dtype": "BF16", "shape": [2] * 65, "data_offsets": [0, 2]}}, "impossible shape"),
        ({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [4, 2]}}, "impossible shape"),
        ({"a": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 2]}}, "which its shape and dtype are not"),
        (
            {
                "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
                "b": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
            },
            "overlap or leave holes",
        ),
    ],
)
def test_header_that_contradicts_itself_is_refused(table: object, clause: str) -> None:
    text = header_of(table)
    with pytest.raises(HeaderError, match=clause):
        parse_header(text, 8 + len(text) + 2)


def test_unknown_kind_of_number_is_taken_on_trust() -> None:
    text = header_of({"a": {"dtype": "F2_NEW", "shape": [8], "data_offsets": [0, 2]}})
    assert parse_header(text, 8 + len(text) + 2).tensor_bytes == 2


@pytest.mark.parametrize("text", [b"\xff", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"", b'{"a": NaN'])
def test_header_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(HeaderError, match="no JSON"):
        parse_header(text, 10**6)


@pytest.mark.parametrize(
    ("prefix", "size", "clause"),
    [
        (b"abc", 3, "only 3 bytes"),
        ((2**63).to_bytes(8, "little"), 10**12, "claims a header of 9223372036854775808 bytes"),
        ((100).to_bytes(8, "little"), 50, "ends inside its header: 50 of at least 108 bytes"),
    ],
)
def test_length_that_cannot_be_is_refused(prefix: bytes, size: int, clause: str) -> None:
    with pytest.raises(HeaderError, match=clause):
        parse_length(prefix, size)


def test_index_gives_the_tensors_of_each_file() -> None:
    text = header_of({"weight_map": {"x": "2.safetensors", "y": "1.safetensors", "z": "2.safetensors"}})
    assert parse_index(text) == {"1.safetensors": {"y"}, "2.safetensors": {"x", "z"}}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".", "..", "a\0b", 7, None, ["x"]])
def test_index_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(HeaderError, match="no file of this directory"):
        parse_index(header_of({"weight_map": {"x": name}}))


@pytest.mark.parametrize("table", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_index_without_a_map_is_refused(table: object) -> None:
    with pytest.raises(HeaderError, match="has no weight_map"):
        parse_index(header_of(table))


KEYS = st.sampled_from(["a", "dtype", "shape", "data_offsets", "weight_map"]) | st.text()
LEAVES = st.none() | st.integers() | st.text() | st.floats()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_any_json_is_read_or_refused(value: object) -> None:
    text = json.dumps(value).encode()
    for parse in (lambda: parse_header(text, 100), lambda: parse_index(text)):
        try:
            parse()
        except HeaderError:
            continue
