"""Reading files in places that others may write to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from infer_dev_entry.regular_file import open_regular, read_regular


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(os.mkdir, id="directory"),
        pytest.param(lambda path: os.symlink("/dev/zero", path), id="device"),
    ],
)
def test_what_is_no_file_is_refused_at_once_and_left_closed(make: Callable[[Path], None], path: Path) -> None:
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    for read in (lambda: open_regular(str(path)), lambda: read_regular(str(path), 10)):
        with pytest.raises(OSError, match="it is not a file") as refused:
            read()
        assert refused.value.errno == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_more_than_the_limit_is_read(path: Path) -> None:
    path.write_bytes(b"0123456789")
    path.chmod(0o640)
    data, info = read_regular(str(path), 4)
    assert (data, info.st_size, info.st_mode & 0o777) == (b"0123", 10, 0o640)


def test_link_is_followed_only_where_it_may_be(tmp_path: Path, path: Path) -> None:
    (tmp_path / "target").write_bytes(b"text")
    path.symlink_to("target")
    assert read_regular(str(path), 10)[0] == b"text"
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read_regular(str(path), 10, follow=False)


def test_path_with_a_nul_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="null byte"):
        open_regular("a\0b")
