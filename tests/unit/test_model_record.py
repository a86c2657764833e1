"""The record in a model's directory survives its text, and nothing hostile in it is believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from infer_dev_entry.models.listing import SHA256, RemoteFile
from infer_dev_entry.models.record import KeptFile, ModelRecord, parse_record, render_record
from infer_dev_entry.models.wish import ModelWish

FILE = KeptFile(remote=RemoteFile(path="a/b.bin", size=3, algorithm=SHA256, digest="a" * 64), mtime_ns=5)
RECORD = ModelRecord(
    source="huggingface",
    repo_id="org/m",
    revision="main",
    commit="c" * 40,
    allow_patterns=("*.bin",),
    ignore_patterns=(),
    files=(FILE,),
    downloaded_at_unix=7,
)
WISH = ModelWish(
    source="huggingface", repo_id="org/m", target="/m", revision="main", allow_patterns=("*.bin",), names=("a",)
)


def test_record_survives_its_text() -> None:
    assert parse_record(render_record(RECORD)) == RECORD
    assert RECORD.size_bytes == 3


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"source": "elsewhere"},
        {"files": []},
        {"files": {}},
        {"files": [1]},
        {"repo_id": 3},
        {"downloaded_at_unix": -1},
        {"files": [{"path": "../x", "size": 1, "algorithm": "", "digest": "", "mtime_ns": 1}]},
        {"files": [{"path": "x", "size": True, "algorithm": "", "digest": "", "mtime_ns": 1}]},
        {"files": [{"path": "x", "size": 1, "algorithm": "sha256", "digest": "", "mtime_ns": 1}]},
        {"files": [{"path": "x", "size": 1, "algorithm": "md5", "digest": "a", "mtime_ns": 1}]},
    ],
)
def test_record_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_record(json.dumps(json.loads(render_record(RECORD)) | change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_record(text)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (WISH, True),
        (replace(WISH, revision="c" * 40), True),
        (replace(WISH, revision=""), False),
        (replace(WISH, revision="v2"), False),
        (replace(WISH, repo_id="org/n"), False),
        (replace(WISH, source="modelscope"), False),
        (replace(WISH, allow_patterns=()), False),
        (replace(WISH, ignore_patterns=("x",)), False),
        (replace(WISH, needed=("a/b.bin",)), True),
        (replace(WISH, needed=("other.bin",)), False),
    ],
)
def test_record_fulfils_a_wish(wish: ModelWish, expected: bool) -> None:
    assert RECORD.fulfils(wish) is expected


def test_record_without_a_commit_fulfils_no_empty_one() -> None:
    assert not replace(RECORD, commit="").fulfils(replace(WISH, revision=""))
