"""What a conda package says of its files, before anything of it is linked."""

from __future__ import annotations

import pytest

from infer_dev_entry.install.rattler import find_outside, parse_paths


def test_paths_of_both_lists_are_taken() -> None:
    assert parse_paths(b'{"paths": [{"_path": "a/b"}], "paths_version": 1}', b"c\nd\n") == ["c", "d", "a/b"]


def test_paths_of_an_old_package_are_its_plain_list() -> None:
    assert parse_paths(None, b"c\n\xff\n") == ["c", "\udcff"]


@pytest.mark.parametrize("text", [b"", b"[]", b'{"paths": [3]}', b'{"paths": [{}]}', b"{"])
def test_paths_that_are_something_else_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_paths(text, None)


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "../x", "a/../../x", "a/.."])
def test_path_outside_is_found(path: str) -> None:
    assert find_outside(["bin/x", path]) == path


@pytest.mark.parametrize("path", ["a", "a..b/c", "...", ".hidden/x"])
def test_path_inside_is_fine(path: str) -> None:
    assert find_outside([path]) == ""
