"""Logs and output: `infer-dev logs`, the mirror on stdout, and readers that do not read."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from itertools import pairwise
from pathlib import Path

from fleet import INFER_DEV, Fleet, free_port, free_ports, server

pytest_plugins = ("fleet_fixtures",)

PIPE_BYTES = 4096  # the smallest there is
# Numbered lines, 100 a second, at a steady pace.
_COUNTER = """$PYTHON -S -c '
import sys, time
for number in range(100000):
    print("count", number, flush=True)
    time.sleep(0.01)' &"""


def test_logs_prints_the_last_lines_and_nothing_else(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "for i in 1 2 3 4 5 6; do echo line $i; done")))
    fleet.start()
    fleet.wait_ready("a")
    fleet.wait(lambda: fleet.log_of("a").count("\n") == 7, what="supervisord to have written all lines")
    assert fleet.cli("logs", "a", "-n", "3").stdout.splitlines()[:2] == ["line 5", "line 6"]
    assert len(fleet.cli("logs", "a").stdout.splitlines()) == 7
    # With a single server its name may be left out.
    assert fleet.cli("logs", "-n", "1").stdout.startswith("fake server on ")
    assert fleet.cli("logs", "a", "-n", "0").stdout == ""


def test_logs_follow_goes_on_across_rotations_without_losing_a_line(fleet: Fleet) -> None:
    control = fleet.wrap("a", _COUNTER) | {"log_max_bytes": 3000, "log_backups": 2}
    fleet.write(server("a", free_port(), control=control))
    fleet.start()
    fleet.wait_ready("a")
    out = fleet.base / "followed"
    with out.open("wb") as stdout:
        follower = subprocess.Popen(
            [*fleet.inside(), *INFER_DEV, "logs", "a", "-n", "1", "-f"],
            env=fleet.environ,
            cwd=fleet.base,
            stdout=stdout,
        )
    try:
        # 3000 bytes are some 270 lines. Whoever sleeps through two rotations, at 100 lines a second, has lost some.
        numbers = fleet.wait(lambda: len(found := _numbers(out.read_text())) > 700 and found, 90, "700 lines")
    finally:
        follower.terminate()
        follower.wait(30)
    assert (fleet.log_dir / "sglang-server-a.log.2").exists()
    assert [pair for pair in pairwise(numbers) if pair[1] != pair[0] + 1] == []


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^(?:\[a\] )?count (\d+)$", text, re.MULTILINE)]


def test_log_without_limit_of_a_crashing_server_keeps_what_was_said_before(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), "--exit-after-s", "0.3", control=fleet.wrap("a", "echo run of $$")))
    fleet.start()
    fleet.wait_event("server.crashed", "a", count=3)
    assert fleet.log_of("a").count("run of ") >= 3


def test_mirror_prints_every_servers_lines_behind_its_name(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b, "--print", "hello from b"))
    fleet.start(INFER_DEV_LOG_MIRROR="1")
    fleet.wait_ready("a", "b")
    wanted = (f"[a] fake server on 127.0.0.1:{a}", "[b] hello from b", f"[b] fake server on 127.0.0.1:{b}")
    fleet.wait(lambda: set(wanted) <= set(fleet.stdout.read_text().splitlines()), what="the mirrored lines")
    # A mirror that dies is started again, and goes on with new servers.
    mirror = fleet.find_processes("infer_dev_entry.mirror")[0]
    fleet.kill(mirror.pid)
    fleet.wait(lambda: [p.pid for p in fleet.find_processes("infer_dev_entry.mirror")] not in ([], [mirror.pid]), 30)
    c = free_port()
    fleet.cli("serve", str(fleet.write(server("a", a), server("c", c), name="more.toml")))
    fleet.wait(lambda: f"[c] fake server on 127.0.0.1:{c}" in fleet.stdout.read_text(), 30, "the new server's line")
    assert fleet.stop() == 0


def test_mirror_prints_the_last_words_of_a_drain(fleet: Fleet) -> None:
    script = 'trap \'echo last words; exit 0\' TERM; echo first words; "$PYTHON" "$@" & wait; exit 1'
    fleet.write(server("a", free_port(), control=fleet.wrap("a", script)))
    fleet.start(INFER_DEV_LOG_MIRROR="1")
    fleet.wait_ready("a")
    assert fleet.stop() == 0
    assert "last words" in fleet.log_of("a")
    assert "[a] first words" in fleet.stdout.read_text()
    assert "[a] last words" in fleet.stdout.read_text()


def test_stdout_that_nobody_reads_stalls_the_mirror_and_nothing_else(fleet: Fleet) -> None:
    a = free_port()
    fleet.write(server("a", a, "--flood-lines-per-s", "20000"))
    read_end, write_end = full_pipe()
    fleet.start(stdout=write_end, INFER_DEV_LOG_MIRROR="1")
    os.close(write_end)
    fleet.wait_ready("a")
    check_lives(fleet)
    os.close(read_end)


def test_stderr_that_nobody_reads_stalls_no_supervision(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    read_end, write_end = full_pipe()
    fleet.start("sleep", "600", stderr=write_end)
    os.close(write_end)
    fleet.wait_ready("a")
    check_lives(fleet)
    # Whoever begins to read finds how much was lost, and no torn line.
    os.set_blocking(read_end, False)
    data = drain(read_end)
    assert set(data[:PIPE_BYTES]) == {ord("\n")}
    fleet.wait_again("a", fleet.kill_server("a"))
    text = (data[PIPE_BYTES:] + drain(read_end)).decode()
    assert "lines lost, as nobody read them" in text
    assert all(line.startswith(("{", "log: ")) for line in text.splitlines() if line), text
    assert fleet.stop() == 128 + 15
    os.close(read_end)


def full_pipe() -> tuple[int, int]:
    """Return a pipe that holds as much as it can."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, b"\n" * PIPE_BYTES)
    except BlockingIOError:
        os.set_blocking(write_end, True)
    return read_end, write_end


def drain(handle: int) -> bytes:
    """Read all that is in a pipe now."""
    data = b""
    try:
        while chunk := os.read(handle, 65536):
            data += chunk
    except BlockingIOError:
        pass
    return data


def check_lives(fleet: Fleet) -> None:
    """A crash is mended, status answers, and so does a stop of the server by name."""
    fleet.wait_again("a", fleet.kill_server("a"))
    began = time.monotonic()
    assert fleet.cli("status").returncode == 0
    assert fleet.cli("stop", "a").returncode == 0
    assert fleet.cli("start", "a").returncode == 0
    assert time.monotonic() - began < 45  # who stalls does so for good
    fleet.wait_ready("a")


def test_log_that_becomes_a_fifo_holds_up_its_own_server_alone(fleet: Fleet, tmp_path: Path) -> None:
    a, b = free_ports(2)
    log = tmp_path / "a.log"
    fleet.write(server("a", a, control={"log_file": str(log)}), server("b", b))
    fleet.start()
    pids = {name: row["pid"] for name, row in fleet.wait_ready("a", "b").items()}
    log.unlink()
    os.mkfifo(log)  # as anybody may in /tmp
    fleet.kill_server("a")
    reason = f"its log file {log} is a FIFO"
    fleet.wait(lambda: fleet.row("a")["reason"] == reason, what="a's reason")
    checked = fleet.cli("config", "check", str(fleet.config))
    assert '" is a FIFO; remove it, or choose another log_file' in checked.stderr
    log.unlink()
    fleet.wait_again("a", pids["a"])
    assert fleet.row("b")["pid"] == pids["b"]
    assert not fleet.events("supervisor.hung")
