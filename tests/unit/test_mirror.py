"""The log mirror's reading, without its process."""

from __future__ import annotations

import json
from pathlib import Path

from infer_dev_entry.mirror import FollowedFile, Mirror


def test_follow_returns_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"old\n")
    followed = FollowedFile(str(path), from_end=True)
    assert followed.read_lines() == []
    with path.open("ab") as file:
        file.write(b"one\ntw")
        file.flush()
        assert followed.read_lines() == [b"one"]
        file.write(b"o\n")
    assert followed.read_lines() == [b"two"]


def test_follow_file_that_appears_later_is_read_from_its_start(tmp_path: Path) -> None:
    followed = FollowedFile(str(tmp_path / "a.log"), from_end=True)
    assert followed.read_lines() == []
    (tmp_path / "a.log").write_bytes(b"first\n")
    assert followed.read_lines() == [b"first"]


def test_follow_survives_rotation_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    followed = FollowedFile(str(path), from_end=False)
    followed.read_lines()
    path.write_bytes(b"before\n")
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(b"after\n")
    assert followed.read_lines() == [b"before", b"after"]


def test_follow_survives_truncation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"a long line\n")
    followed = FollowedFile(str(path), from_end=False)
    assert followed.read_lines() == [b"a long line"]
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(b"new\n")
    assert followed.read_lines() == [b"new"]


def test_follow_endless_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 200_000)
    assert sum(map(len, FollowedFile(str(path), from_end=False).read_lines())) == 200_000


def test_mirror_prefixes_lines_and_takes_a_new_list(tmp_path: Path) -> None:
    listing = tmp_path / "mirror.json"
    (tmp_path / "a.log").write_bytes(b"past\n")
    listing.write_text(json.dumps({"a": [str(tmp_path / "a.log"), len(b"past\n")]}))
    mirror = Mirror(str(listing))
    assert mirror.turn() == b""
    with (tmp_path / "a.log").open("ab") as file:
        file.write(b"hello\n")
    assert mirror.turn() == b"[a] hello\n"
    (tmp_path / "b.log").write_bytes(b"long ago\nfrom b\n")
    replaced = tmp_path / "new.json"
    replaced.write_text(
        json.dumps({"a": [str(tmp_path / "a.log"), 0], "b": [str(tmp_path / "b.log"), len(b"long ago\n")]})
    )
    replaced.rename(listing)
    assert mirror.turn() == b"[b] from b\n"


def test_mirror_unreadable_list_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "mirror.json").write_text("{")
    assert Mirror(str(tmp_path / "mirror.json")).turn() == b""


def test_mirror_shows_no_keys(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"args(api_key='s3cret', port=1)\n#new-token: 7\n\xff\n")
    (tmp_path / "mirror.json").write_text(json.dumps({"a": [str(tmp_path / "a.log"), 0]}))
    assert Mirror(str(tmp_path / "mirror.json")).turn() == (
        b"[a] args(api_key=***, port=1)\n[a] #new-token: 7\n[a] \xff\n"
    )
