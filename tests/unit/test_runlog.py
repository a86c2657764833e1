"""What one run has logged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_dev_entry.runlog import mark_log, read_run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def test_run_is_read_from_its_mark_on(log: Path) -> None:
    log.write_text("of the run before: CUDA out of memory\n")
    mark = mark_log(str(log))
    assert read_run(str(log), mark) == ""
    with log.open("a") as file:
        file.write("of this run\n")
    assert read_run(str(log), mark) == "of this run\n"
    assert read_run(str(log), None).startswith("of the run before")


def test_run_without_a_file_at_its_start_is_read_whole(log: Path) -> None:
    mark = mark_log(str(log))
    assert read_run(str(log), mark) == ""
    log.write_text("first line\n")
    assert read_run(str(log), mark) == "first line\n"


def test_run_is_read_across_a_rotation(log: Path) -> None:
    log.write_text("old\n")
    mark = mark_log(str(log))
    with log.open("a") as file:
        file.write("before it\n")
    log.rename(f"{log}.1")
    log.write_text("after it\n")
    assert read_run(str(log), mark) == "before it\nafter it\n"


def test_log_that_was_cut_is_read_from_its_start(log: Path) -> None:
    log.write_text("a long line that is gone\n")
    mark = mark_log(str(log))
    log.write_text("new\n")
    assert read_run(str(log), mark) == "new\n"


def test_only_the_end_of_a_huge_log_is_read(log: Path) -> None:
    with log.open("wb") as file:
        file.seek(10_000_000_000)  # a hole: it takes no space
        file.write(b"\xff\xfethe end\n")
    text = read_run(str(log), None, 100)
    assert len(text) == 100
    assert text.endswith("��the end\n")


def test_fifo_and_directory_are_not_read(log: Path, tmp_path: Path) -> None:
    os.mkfifo(log)
    assert read_run(str(log), None) == ""
    assert read_run(str(tmp_path), mark_log(str(tmp_path))) == ""
