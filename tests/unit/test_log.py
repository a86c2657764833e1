"""The log's output: it never blocks, whoever reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from infer_dev_entry.log import LineWriter


def test_writer_full_pipe_drops_lines_and_says_so_later() -> None:
    read_end, write_end = os.pipe()
    try:
        writer = LineWriter(write_end)
        for number in range(5000):  # a pipe holds 64 KiB; a blocking write would hang here for ever
            writer.write_line(f"line {number} " + "x" * 80)
        first = os.read(read_end, 1 << 20)
        assert first.startswith(b"line 0 ")
        writer.write_line("after")
        rest = os.read(read_end, 1 << 20)
        lost = 5000 - first.count(b"\n")
        assert f"log: {lost} lines lost".encode() in rest
        assert rest.endswith(b"after\n")
    finally:
        os.close(read_end)
        os.close(write_end)


def test_writer_leaves_the_shared_descriptor_blocking() -> None:
    read_end, write_end = os.pipe()
    try:
        LineWriter(write_end).write_line("x")
        assert os.get_blocking(write_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_writer_closed_reader_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        LineWriter(write_end).write_line("x")
    finally:
        os.close(write_end)


def test_writer_long_line_is_cut() -> None:
    read_end, write_end = os.pipe()
    try:
        LineWriter(write_end).write_line("x" * 100_000)
        data = os.read(read_end, 1 << 20)
        assert len(data) <= 4096
        assert data.endswith(b" ...\n")
    finally:
        os.close(read_end)
        os.close(write_end)


def run_logging(log_format: str) -> str:
    code = (
        "from infer_dev_entry.log import configure_log, get_log\n"
        f"configure_log({log_format!r}, 'info')\n"
        "get_log().debug('hidden')\n"
        "get_log().info('server.ready', server='a', after_s=1.5)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return run.stderr


def test_json_lines_start_with_time_level_event() -> None:
    (line,) = run_logging("json").splitlines()
    data = json.loads(line)
    assert list(data)[:3] == ["timestamp", "level", "event"]
    assert data["event"] == "server.ready"
    assert data["after_s"] == 1.5


def test_console_lines_are_for_people() -> None:
    (line,) = run_logging("console").splitlines()
    assert "server.ready" in line
    assert "server=a" in line


def test_format_without_a_terminal_is_json() -> None:
    assert json.loads(run_logging(""))["level"] == "info"
