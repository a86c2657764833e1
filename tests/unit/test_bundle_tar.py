"""The tar reader against the standard library's writer, and against archives that no honest tool writes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_bundle import member, tar_of, tar_of_members

from infer_dev_entry.bundle.tar import DIRECTORY, FILE, HARD_LINK, SYMLINK, ChunkReader, Member, read_members
from infer_dev_entry.errors import BundleError

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def chunks_of(data: bytes, size: int = 700) -> Iterator[bytes]:
    """Yield the data in pieces whose borders fit nothing."""
    return (data[at : at + size] for at in range(0, len(data), size))


def read_all(data: bytes, size: int = 700) -> list[tuple[Member, bytes]]:
    """Return every member with its data."""
    reader = ChunkReader(chunks_of(data, size))
    return [(found, reader.read_exactly(found.size)) for found in read_members(reader)]


def with_header(data: bytes, at: int, field: bytes) -> bytes:
    """Return an archive whose first header holds `field` at that offset, with the checksum made right again."""
    header = bytearray(data[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("tar_format", FORMATS)
@given(
    files=st.dictionaries(
        st.text(alphabet="abcé/", min_size=1, max_size=90).filter(lambda name: not name.endswith("/")),
        st.binary(max_size=1500),
        max_size=5,
    ),
    chunk=st.integers(1, 2000),
)
def test_read_members_honest_archive_gives_what_was_written(
    tar_format: int, files: dict[str, bytes], chunk: int
) -> None:
    found = read_all(tar_of(files, tar_format), chunk)
    assert [(entry.name, entry.kind, data) for entry, data in found] == [
        (name, FILE, data) for name, data in files.items()
    ]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_members_long_names_and_links_are_whole(tar_format: int) -> None:
    name, link = "d/" * 20 + "n" * 250, "l" * 200
    (found, _), *_ = read_all(tar_of_members([member(name, tarfile.SYMTYPE, linkname=link)], tar_format))
    assert (found.name, found.kind, found.link) == (name, SYMLINK, link)


def test_read_members_ustar_prefix_is_part_of_name() -> None:
    name = "p" * 120 + "/" + "n" * 90
    (found, _), *_ = read_all(tar_of({name: b"x"}, tarfile.USTAR_FORMAT))
    assert found.name == name


def test_read_members_kinds_and_modes_are_told() -> None:
    members = [
        member("d", tarfile.DIRTYPE),
        member("x", mode=0o4755),
        member("h", tarfile.LNKTYPE, linkname="x"),
        member("old/", tarfile.AREGTYPE),
    ]
    found = [(entry.kind, entry.executable, entry.link) for entry, _ in read_all(tar_of_members(members))]
    assert found[1] == (FILE, True, "")
    assert found[2][::2] == (HARD_LINK, "x")
    assert found[0][0] == found[3][0] == DIRECTORY


def test_read_members_data_left_unread_is_skipped() -> None:
    reader = ChunkReader(chunks_of(tar_of({"a": b"x" * 5000, "b": b"y"})))
    assert [found.name for found in read_members(reader)] == ["a", "b"]


def test_read_members_size_over_8_gib_is_understood() -> None:
    info, _ = member("big")
    info.size = 9 * 2**30
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = info.tobuf(tar_format, "utf-8", "surrogateescape")
        reader = ChunkReader(iter([header]))
        assert next(read_members(reader)).size == 9 * 2**30


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"V", "unknown type"),
    ],
)
def test_read_members_special_member_is_refused(kind: bytes, word: str) -> None:
    with pytest.raises(BundleError, match=word):
        read_all(tar_of_members([member("x", kind)]))


def test_read_members_sparse_pax_file_is_refused() -> None:
    info, data = member("x", data=b"1\n0\n0\n")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999999"}
    with pytest.raises(BundleError, match="sparse"):
        read_all(tar_of_members([(info, data)], tarfile.PAX_FORMAT))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_read_members_link_or_folder_with_data_is_refused(kind: bytes) -> None:
    with pytest.raises(BundleError, match="with data"):
        read_all(tar_of_members([member("x", kind, b"data", linkname="y")]))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_read_members_huge_extension_is_refused_before_it_is_read(kind: bytes) -> None:
    info, _ = member("x", kind)
    info.size = 8 * 2**30
    reader = ChunkReader(iter([info.tobuf(tarfile.GNU_FORMAT)]))
    with pytest.raises(BundleError, match="extension header of 8589934592 bytes"):
        next(read_members(reader))


def test_read_members_endless_extensions_are_refused() -> None:
    members = [member("././@LongLink", b"L", b"name\0")] * 20
    with pytest.raises(BundleError, match="too many extension headers"):
        read_all(tar_of_members(members))


def test_read_members_extension_without_member_is_refused() -> None:
    with pytest.raises(BundleError, match="ends behind an extension header"):
        read_all(tar_of_members([member("././@LongLink", b"L", b"name\0")]))


@pytest.mark.parametrize(
    "records",
    [b"x", b"0 a=b\n", b"3 \n", b"5 a=b\n", b"999 a=b\n", b"-6 a=b\n", b"6 a=bb", b"99999999 a=b\n", b"\xff\xff a=b\n"],
)
def test_read_members_damaged_pax_header_is_refused(records: bytes) -> None:
    with pytest.raises(BundleError, match="damaged pax header"):
        read_all(tar_of_members([member("pax", b"x", records), member("x")]))


@pytest.mark.parametrize("size", [b"-5", b"1e9", b"9" * 30, "٣".encode()])
def test_read_members_odd_pax_size_is_refused(size: bytes) -> None:
    record = b" size=" + size + b"\n"
    record = b"%d%s" % (len(record) + 2, record)
    with pytest.raises(BundleError, match="damaged pax header"):
        read_all(tar_of_members([member("pax", b"x", record), member("x")]))


def test_read_members_global_header_that_names_members_is_refused() -> None:
    with pytest.raises(BundleError, match="global header"):
        read_all(tar_of_members([member("pax", b"g", b"10 path=x\n"), member("x")]))


def test_read_members_global_comment_changes_nothing() -> None:
    found = read_all(tar_of_members([member("pax", b"g", b"13 comment=x\n"), member("x")]))
    assert [entry.name for entry, _ in found] == ["x"]


@pytest.mark.parametrize(
    ("at", "field"), [(124, b"-0000000001"), (124, b"99999999999"), (124, b"\xff" * 12), (100, b"rwxrwxr")]
)
def test_read_members_odd_number_is_refused(at: int, field: bytes) -> None:
    with pytest.raises(BundleError, match="damaged"):
        read_all(with_header(tar_of({"x": b""}), at, field))


def test_read_members_absurd_size_is_refused() -> None:
    with pytest.raises(BundleError, match="says it has"):
        read_all(with_header(tar_of({"x": b""}), 124, b"\x80" + b"\xff" * 11))


def test_read_members_wrong_checksum_is_refused() -> None:
    data = bytearray(tar_of({"x": b"1"}))
    data[0] ^= 1
    with pytest.raises(BundleError, match="checksum"):
        read_all(bytes(data))


def test_read_members_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BundleError, match="not UTF-8"):
        read_all(with_header(tar_of({"x": b""}), 0, b"\xff\xfe"))


@given(st.integers(0, 10240 - 1))
def test_read_members_archive_cut_anywhere_is_refused_or_whole(cut: int) -> None:
    files = {"a": b"x" * 3000, "b/c": b"y" * 10, "d": b""}
    whole = tar_of(files)
    needed = 512 * (3 + 6 + 1) + 1024
    try:
        found = read_all(whole[:cut])
    except BundleError:
        assert cut < needed
        return
    # What is cut off without notice is the padding of the last record, which holds nothing.
    assert cut >= needed
    assert len(found) == 3


def test_read_members_garbage_after_end_is_refused() -> None:
    with pytest.raises(BundleError, match="data after its end"):
        read_all(tar_of({"a": b"x"}) + b"\0" * 512 + b"!")


def test_read_members_second_archive_after_end_is_refused() -> None:
    with pytest.raises(BundleError, match="data after its end"):
        read_all(tar_of({"a": b"x"}) * 2)


@given(st.binary(max_size=3000))
def test_read_members_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_all(data)


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_read_members_flipped_bytes_only_raise_bundle_error(flips: list[tuple[int, int]]) -> None:
    info, content = member("é" * 120, data=b"x" * 600, pax_headers={"comment": "y"})
    data = bytearray(tar_of_members([(info, content), member("l", tarfile.SYMTYPE, linkname="x")], tarfile.PAX_FORMAT))
    for at, value in flips:
        data[at] = value
    try:
        read_all(bytes(data))
    except BundleError as error:
        assert str(error).isprintable()


def test_chunk_reader_seek_skips_without_reading() -> None:
    data = io.BytesIO(bytes(range(100)))
    reader = ChunkReader(iter(lambda: data.read(10), b""), seek=lambda size: data.seek(size, 1))
    assert reader.read_exactly(3) == b"\0\1\2"
    reader.skip(4)
    assert reader.read_exactly(1) == b"\x07"
    reader.skip(50)
    assert reader.read_exactly(3) == bytes([58, 59, 60])
    assert reader.position == 61
