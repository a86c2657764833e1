"""CMD under the entry: with all gates off it runs as under tini; beside a fleet its end is the container's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, mounts
from serving import serve
from wait import wait_until

ROWS, COLUMNS = 41, 137
PROMPT = "ready> "


class Terminal:
    """A person at a terminal with `docker run -it`: types, reads, and sees the exit status."""

    def __init__(self, engine: Engine, name: str, *command: str) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        self.resize(ROWS, COLUMNS, announce=False)
        self.process = subprocess.Popen(
            ["docker", "run", "-it", "--name", name, "-e", f"PS1={PROMPT}", engine.image, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=engine.environ,
        )
        os.close(slave)

    def resize(self, rows: int, columns: int, *, announce: bool = True) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if announce:
            self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        """Type; the terminal makes signals of ^C and ^Z."""
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout_s: float = 60) -> str:
        """Read until this is on the screen; what was read before does not count twice."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"waited {timeout_s:g} s in vain for {pattern!r}; on the screen: {self.seen!r}"
            if select.select([self._master], [], [], left)[0]:
                with contextlib.suppress(OSError):  # EIO: the other side has closed
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found.group()

    def run(self, line: str, answer: str) -> None:
        """Run a line until what it prints and the next prompt are there."""
        self.type(line + "\n")
        self.expect(answer)
        self.expect(PROMPT)

    def close(self) -> None:
        """End the client, not the container."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._master)


@contextlib.contextmanager
def open_terminal(engine: Engine, *command: str) -> Iterator[Terminal]:
    """A container with a terminal, removed at the end."""
    name = engine.name("tty")
    terminal = Terminal(engine, name, *command)
    try:
        yield terminal
    finally:
        terminal.close()
        engine.docker("rm", "-f", name, check=False)


@pytest.mark.parametrize("command", [("bash", "--norc"), ("env", "-i", "PATH=/bin:/usr/bin", f"PS1={PROMPT}", "sh")])
def test_shell_has_the_terminal_and_its_exit_status_is_docker_runs(engine: Engine, command: tuple[str, ...]) -> None:
    with open_terminal(engine, *command) as terminal:
        terminal.expect(PROMPT)
        # What is waited for is computed, so that the echo of the line is not taken for it. It need not begin a line: a
        # shell that hears of a new size draws its line again.
        terminal.run("echo $((6 * 7))", r"42\r\n")
        # The client tells the size a moment after the start.
        terminal.run("until stty size | grep -q '^41 137$'; do sleep 0.1; done; echo size-$((40 + 1))", r"size-41\r\n")
        # ^C goes to the foreground program, and not to the shell or to PID 1. A program that speaks has the terminal.
        terminal.type("sh -c 'echo on-$((1 + 1)); exec sleep 1000'\n")
        terminal.expect(r"on-2\r\n")
        terminal.type("\x03")
        terminal.expect(PROMPT)
        terminal.run("echo status-$?", r"status-130\r\n")
        # ^Z suspends it, and the shell goes on with it. It forks nothing: a vfork in progress could not be suspended.
        terminal.type("""sh -c 'trap "echo back-\\$((1 + 1)); exit" CONT; echo on-$((1 + 1)); read line'\n""")
        terminal.expect(r"on-2\r\n")
        terminal.type("\x1a")
        terminal.expect("(?i)stopped")
        terminal.expect(PROMPT)
        terminal.type("fg\n")
        terminal.expect(r"back-2\r\n")
        terminal.expect(PROMPT)
        terminal.resize(30, 90)
        terminal.run("until stty size | grep -q '^30 90$'; do sleep 0.1; done; echo size-$((29 + 1))", r"size-30\r\n")
        terminal.type("exit 7\n")
        assert terminal.process.wait(60) == 7


def test_sleep_infinity_is_stopped_as_quickly_as_under_tini(engine: Engine) -> None:
    with engine.container("sleep", "infinity") as container:
        # Nothing but the command runs: no supervisord, and a health check that has nothing to ask for.
        wait_until(lambda: container.exec("pgrep", "-x", "sleep").returncode == 0, 60, "sleep to run")
        assert container.exec("pgrep", "-f", "supervisor").returncode == 1
        assert container.exec("infer-dev", "health").returncode == 0
        took_s = container.stop(grace_s=90)
        assert container.exit_code == 128 + signal.SIGTERM  # sleep's own end, and not Docker's SIGKILL (137)
        assert took_s < 25  # less than any deadline of ours


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -USR1 $$"), 128 + signal.SIGUSR1),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_exit_status_of_the_command_is_docker_runs(engine: Engine, command: tuple[str, ...], status: int) -> None:
    run = engine.docker("run", "--rm", engine.image, *command, check=False)
    assert run.returncode == status, run.stderr


def test_command_beside_a_fleet_takes_signals_and_its_end_drains_the_fleet(engine: Engine, installed: Path) -> None:
    traps = "trap 'echo got-HUP' HUP; trap 'echo got-USR2' USR2; trap 'exit 7' USR1"
    script = f"{traps}; echo trapped; while :; do sleep 0.1; done"
    with engine.container("sh", "-c", script, options=mounts(installed), environ=serve()) as container:
        before = container.wait_ready("gemma")
        wait_until(lambda: "trapped" in container.logs().split(), 60, "the command to have its traps")
        for name in ("HUP", "USR2"):
            engine.docker("kill", "-s", name, container.name)
            wait_until(lambda word=f"got-{name}": word in container.logs().split(), 60, f"the command to see {name}")
        assert container.row("gemma")["pid"] == before["gemma"]["pid"]
        engine.docker("kill", "-s", "USR1", container.name)
        assert container.wait_exit() == 7
        told = [event["event"] for event in container.events()]
        order = ["command.ended", "server.draining", "server.stopped", "entry.stopped"]
        assert [event for event in told if event in order] == order
        assert container.events("entry.stopped")[0]["had_to_kill"] == []


def test_stop_ends_the_command_beside_a_fleet_with_its_own_status(engine: Engine, installed: Path) -> None:
    environ = serve(control={"drain_timeout_s": 100})
    with engine.container("sleep", "infinity", options=mounts(installed), environ=environ) as container:
        container.wait_ready("gemma")
        took_s = container.stop(grace_s=150)
        assert container.exit_code == 128 + signal.SIGTERM
        assert container.events("entry.stopped")[0]["had_to_kill"] == []
        assert took_s < 90  # nothing was in flight: not the drain deadline
