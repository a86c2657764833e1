"""The end of a log, bounded and redacted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.logtail import clean_line, read_last_line, read_tail


def test_tail_returns_last_non_empty_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\n\nthree\n\n")
    assert read_tail(str(log), 2) == ["two", "three"]
    assert read_last_line(str(log)) == "three"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_tail_of_nothing_is_empty(tmp_path: Path, make) -> None:
    make(tmp_path / "x")
    assert read_tail(str(tmp_path / "x"), 5) == []
    assert read_last_line(str(tmp_path / "x")) == ""


def test_tail_of_huge_file_reads_its_end_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("wb") as file:
        file.truncate(10 * 1024**3)  # sparse: no disk is used
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    assert read_last_line(str(log)) == "the end"


@pytest.mark.parametrize(
    "line",
    [
        "ServerArgs(api_key='s3cr3t', port=1)",
        'admin_api_key="s3cr3t"',
        "Authorization: Bearer s3cr3t",
        "HF_TOKEN=s3cr3t",
        "password: s3cr3t, user: x",
    ],
)
def test_line_secrets_are_blotted_out(line: str) -> None:
    assert "s3cr3t" not in clean_line(line)
    assert "***" in clean_line(line)


def test_line_ordinary_text_is_kept() -> None:
    assert clean_line("CUDA out of memory. Tried to allocate 2 GiB") == "CUDA out of memory. Tried to allocate 2 GiB"


@given(line=st.text(max_size=2000))
def test_line_is_always_one_short_printable_line(line: str) -> None:
    cleaned = clean_line(line)
    assert len(cleaned) <= 300
    assert "\n" not in cleaned
    assert "\x1b" not in cleaned


def test_known_secret_is_blotted_out_wherever_it_stands(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("Traceback: bad header x-y-z\n")
    assert read_last_line(str(log), ("x-y-z",)) == "Traceback: bad header ***"
