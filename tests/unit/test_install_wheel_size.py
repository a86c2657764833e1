"""The sizes in a zip's directory, also of hostile ones, held to the standard library's own reader."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_dev_entry.install import wheel_size
from infer_dev_entry.install.wheel_size import read_installed_bytes, sum_sizes


def blocks(size: int) -> int:
    return -(-size // 4096) * 4096


def make_zip(sizes: list[int], comment: bytes = b"", before: bytes = b"") -> bytes:
    buffer = io.BytesIO(before)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for number, size in enumerate(sizes):
            archive.writestr(f"folder/file-{number}", bytes(size))
    return buffer.getvalue()


def write(folder: Path, data: bytes) -> str:
    path = folder / "a.whl"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("sizes", [[], [0], [1], [4096], [4097, 0, 12345]])
@pytest.mark.parametrize("comment", [b"", b"built with care", bytes(65535)])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
def test_sum_is_that_of_the_files_in_blocks(tmp_path: Path, sizes: list[int], comment: bytes, before: bytes) -> None:
    assert read_installed_bytes(write(tmp_path, make_zip(sizes, comment, before))) == sum(map(blocks, sizes))


def test_file_over_four_gigabytes_has_its_size_in_the_extra_field(tmp_path: Path) -> None:
    size = 5 * 1000**3
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("large", b"x")
        archive.filelist[0].file_size = size  # in the directory, which is written at the end
    assert read_installed_bytes(write(tmp_path, buffer.getvalue())) == blocks(size)


def test_more_files_than_sixteen_bits_count(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one", b"x")
        archive.filelist *= 70_000  # writes the zip64 end and its locator
    assert b"PK\6\6" in buffer.getvalue()
    assert read_installed_bytes(write(tmp_path, buffer.getvalue())) == 70_000 * 4096


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\5\6", b"PK\5\6" + bytes(17), bytes(100_000)])
def test_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="no zip directory"):
        read_installed_bytes(write(tmp_path, data))


@pytest.mark.parametrize("size", [10**6, 0xFFFFFFFF])
def test_directory_that_says_more_than_there_is_is_refused_unread(tmp_path: Path, size: int) -> None:
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)
    with pytest.raises(ValueError, match="larger than the file"):
        read_installed_bytes(write(tmp_path, b"PK\1\2" + bytes(100) + end))


def test_directory_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_size, "MAX_DIRECTORY_BYTES", 40)
    with pytest.raises(ValueError, match="larger than"):
        read_installed_bytes(write(tmp_path, make_zip([1])))


@pytest.mark.parametrize("cut", [1, 40, 60])
def test_directory_with_a_part_missing_is_refused(cut: int) -> None:
    data = make_zip([1, 2])
    directory = data[data.index(b"PK\1\2") : data.index(b"PK\5\6")]
    assert sum_sizes(directory) == 8192
    with pytest.raises(ValueError, match="damaged"):
        sum_sizes(directory[:-cut])


@settings(deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_any_damage_is_a_number_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes) -> None:
    data = bytearray(make_zip([1, 5000], b"comment"))
    at %= len(data)
    data[at : at + len(new)] = new
    with contextlib.suppress(ValueError):
        assert read_installed_bytes(write(tmp_path_factory.getbasetemp(), bytes(data))) >= 0
