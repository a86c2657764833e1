"""A fleet and a command under one PID 1: whose signals are whose, what ends the container, and with which status."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fleet import free_port, get, render_toml, server
from pid1 import (
    ENTRY,
    IGNORE_SIGCHLD,
    ORPHAN_MAKER,
    RECORDER,
    ZOMBIE_HOLDER,
    Running,
    clean_environ,
    foreground,
    lines_of,
    long_path,
    needs_namespaces,
    own_signals,
    private_dir,
    recorded,
    signal_set,
    spawn,
    state_of,
    wait_recorder,
)
from wait import wait_until

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import NotRunningError

pytestmark = [needs_namespaces, pytest.mark.timeout(120)]

PREFIX = "AUTO_INFER_SGLANG_"
# Where `server_module = "fake_server"` is found.
PYTHONPATH = os.pathsep.join(
    filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")))
)
BASH = (shutil.which("bash") or "bash", "--norc", "--noprofile", "--noediting", "-i")
BASH_ENVIRON = {"PS1": "$?:ready> ", "TERM": "dumb", "HISTFILE": ""}
# Python's own start takes a while on a loaded machine; no test needs more.
READY_S = 30

# In fleet mode the stop signals are the entry's, and those of a fault the kernel's.
FLEET_OWN = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP}
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
FOR_COMMAND = sorted(int(number) for number in signal.valid_signals() - FLEET_OWN - FAULTS)


class Booted:
    """An entry with its gates on: what it says in its log and on its control socket."""

    def __init__(self, running: Running, on_terminal: bool) -> None:
        self.running = running
        self._on_terminal = on_terminal
        self.environ = clean_environ(running.work_dir)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The events logged so far, of one kind if given."""
        text = self.running.terminal.shown() if self._on_terminal else self.running.stderr()
        found = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line[line.find("{") :])  # a terminal shows "^C" before it
                if isinstance(row, dict) and row.get("event") and name in ("", row["event"]):
                    found.append(row)
        return found

    def wait_event(self, name: str, timeout_s: float = 15) -> dict[str, Any]:
        """Wait for an event and return its first occurrence."""
        try:
            return wait_until(lambda: self.events(name), timeout_s, name)[0]
        except AssertionError as error:
            raise AssertionError(f"{error}; there were {self.events()}") from None

    def status(self) -> dict[str, Any]:
        """The whole status, or {} while nobody answers."""
        with contextlib.suppress(NotRunningError):
            return ask(self.environ, {"op": "status"})
        return {}

    def row(self, name: str = "a") -> dict[str, Any]:
        """One server's row, or {}."""
        return next((row for row in self.status().get("servers", ()) if row["name"] == name), {})

    def wait_ready(self, *names: str) -> None:
        """Wait until these servers serve."""
        for name in names or ("a",):
            try:
                wait_until(lambda name=name: self.row(name).get("state") == "ready", READY_S, f"{name} to be ready")
            except AssertionError as error:
                raise AssertionError(f"{error}; events: {self.events()}") from None


@pytest.fixture
def work_dir() -> Iterator[Path]:
    with private_dir() as path:
        yield path


def write_config(work_dir: Path, *servers: str) -> Path:
    """Write a TOML whose servers are fake ones."""
    path = work_dir / "fleet.toml"
    head = (
        f'[master]\npython_path = {render_toml(sys.executable)}\nserver_module = "fake_server"\n'
        f'[instance.control]\nlog_dir = {render_toml(str(work_dir))}\ngpu_ids = "none"\n'
    )
    path.write_text("\n".join([head, *servers]))
    return path


@contextlib.contextmanager
def boot(
    work_dir: Path,
    *servers: str,
    command: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    config: str | None = None,
    on_terminal: bool = False,
    prefix: Sequence[str] = (),
    **options: Any,
) -> Iterator[Booted]:
    """Boot an entry with ON_BOOT set and a config of these servers; the program `prefix` execs it."""
    gates = {
        PREFIX + "ON_BOOT": "1",
        PREFIX + "CONFIG": str(write_config(work_dir, *servers)) if config is None else config,
        "PYTHONPATH": PYTHONPATH,
        "INFER_DEV_LOG_FORMAT": "json",
    }
    argv = [*prefix, *ENTRY, *(("--", *command) if command else ())]
    with spawn(argv, work_dir, environ={**gates, **(environ or {})}, on_terminal=on_terminal, **options) as running:
        yield Booted(running, on_terminal)


def one(*extra_args: str, drain_timeout_s: float = 20, port: int = 0, name: str = "a") -> str:
    """One fake server; a busy machine has time for its probes, so that it stays ready."""
    tables = {"control": {"drain_timeout_s": drain_timeout_s}, "probe": {"period_s": 5.0, "timeout_s": 4.5}}
    return server(name, port or free_port(), *extra_args, **tables)


def marked(work_dir: Path) -> list[int]:
    """The living processes whose environment names our run directory."""
    needle = f"INFER_DEV_RUN_DIR={work_dir}/run".encode()
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return [pid for pid in found if state_of(pid) not in ("", "Z")]


# A command that writes what it got, and ends with the status that is asked for.
TRAPPING = "trap 'echo TERM >>got; exit 5' TERM; echo up >>got; while :; do sleep 0.05; done"


def start_request(port: int, delay_s: float) -> socket.socket:
    """Send a request that the server answers only after a while, and return when the server has it."""
    peer = socket.create_connection(("127.0.0.1", port), 10)
    peer.settimeout(30)
    body = json.dumps({"messages": [{"role": "user", "content": "in flight"}]}).encode()
    head = f"POST /v1/chat/completions?delay={delay_s:g} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    peer.sendall(head.encode() + body)
    wait_until(lambda: json.loads(get(port, "/v1/fake/streams", 10)[1])["running"], 10, "the request at the server")
    return peer


def read_answer(peer: socket.socket) -> bytes:
    with peer, peer.makefile("rb") as stream:
        return stream.read()


# --------------------------------------------------------------------------------------- what ends the container


def test_command_exits_fleet_drains_and_its_status_is_returned(work_dir: Path) -> None:
    port = free_port()
    with boot(work_dir, one("--drain-s", "0.5", port=port), command=["sh", "-c", "read line; exit 7"]) as booted:
        assert booted.running.wait(READY_S) == 7  # stdin is /dev/null
        order = [event["event"] for event in booted.events()]
        assert order.index("command.ended") < order.index("entry.stopped")
        assert booted.events("entry.stopped")[0]["exit_code"] == 7


def test_command_exits_request_in_flight_is_answered(work_dir: Path) -> None:
    port = free_port()
    command = ["sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.05; done"]
    with boot(work_dir, one("--drain-s", "0.5", port=port), command=command) as booted:
        booted.wait_ready()
        peer = start_request(port, 2)
        booted.running.send(signal.SIGUSR1)
        answer = read_answer(peer)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"in flight" in answer
        assert booted.running.wait() == 7
        order = [event["event"] for event in booted.events()]
        steps = ["command.ended", "server.draining", "server.stopped", "entry.stopped"]
        assert [step for step in order if step in steps] == steps
        assert booted.events("entry.stopped")[0]["had_to_kill"] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_command_killed_by_signal_status_is_128_plus_it(work_dir: Path, number: signal.Signals) -> None:
    with boot(work_dir, one(), command=["sleep", "1000"]) as booted:
        sleep = wait_until(lambda: booted.running.find("sleep"), READY_S, "the command")[0]
        os.kill(sleep.pid, number)
        assert booted.running.wait(20) == 128 + number
        assert booted.events("command.ended")[0]["how"] == f"was killed by {number.name}"


def test_sigterm_command_gets_it_and_fleet_drains(work_dir: Path) -> None:
    port = free_port()
    with boot(work_dir, one("--drain-s", "0.5", port=port), command=["sh", "-c", TRAPPING]) as booted:
        booted.wait_ready()
        wait_until(lambda: lines_of(work_dir / "got") == ["up"], what="the command")
        peer = start_request(port, 1)
        booted.running.send(signal.SIGTERM)
        assert read_answer(peer).startswith(b"HTTP/1.1 200 ")
        assert booted.running.wait() == 5
        assert lines_of(work_dir / "got") == ["up", "TERM"]
        assert [event["server"] for event in booted.events("server.stopped")] == ["a"]
        assert not booted.events("server.crashed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stop_signal_command_with_default_actions_status_is_128_plus_it(work_dir: Path, number: signal.Signals) -> None:
    with boot(work_dir, one(), command=["sleep", "1000"]) as booted:
        booted.wait_ready()
        booted.running.send(number)
        assert booted.running.wait(20) == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_stop_signal_without_command_drains_and_exits_0(work_dir: Path, number: signal.Signals, pid1: bool) -> None:
    port = free_port()
    with boot(work_dir, one("--drain-s", "0.5", port=port), pid1=pid1) as booted:
        booted.wait_ready()
        peer = start_request(port, 1)
        booted.running.send(number)
        assert read_answer(peer).startswith(b"HTTP/1.1 200 ")
        assert booted.running.wait() == 0
        assert booted.events("entry.stopping")[0]["signal"] == number.name
        assert booted.events("entry.stopped")[0]["had_to_kill"] == []
        wait_until(lambda: not marked(work_dir), what="no process left")


@pytest.mark.parametrize("command", [(), ("sleep", "1000")], ids=["alone", "command"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_second_stop_signal_cuts_drain_short_and_report_names_the_killed(
    work_dir: Path, command: tuple[str, ...], second: signal.Signals
) -> None:
    slow = one("--drain-s", "60", drain_timeout_s=60)
    quick = one(name="b")
    with boot(work_dir, slow, quick, command=command) as booted:
        booted.wait_ready("a", "b")
        booted.running.send(signal.SIGTERM)
        wait_until(lambda: booted.row("a").get("state") == "draining" and not booted.row("b")["pid"], what="the drain")
        assert booted.running.is_running()
        booted.running.send(second)
        # Far less than the drain of 60 s; a loaded machine is given its time.
        assert booted.running.wait(20) == (128 + signal.SIGTERM if command else 0)
        assert booted.wait_event("entry.stopped")["had_to_kill"] == ["a"]
        assert booted.wait_event("server.killed")["reason"] == "the stop was cut short"


def test_two_stop_signals_at_once_end_at_once(work_dir: Path) -> None:
    with boot(work_dir, one("--drain-s", "60", drain_timeout_s=60), command=["sh", "-c", "trap '' TERM INT; read x; "
        "while :; do sleep 0.05; done"]) as booted:  # fmt: skip
        booted.wait_ready()
        booted.running.send(signal.SIGTERM)
        booted.running.send(signal.SIGINT)
        assert booted.running.wait(20) == 128 + signal.SIGKILL
        assert booted.wait_event("entry.stopped")["had_to_kill"] == ["a"]


def test_command_exits_while_servers_load_they_are_stopped(work_dir: Path) -> None:
    with boot(work_dir, one("--load-s", "60", drain_timeout_s=60), command=["sh", "-c", "exec sleep 1"]) as booted:
        assert booted.running.wait(READY_S) == 0
        assert booted.events("entry.stopped")[0]["had_to_kill"] == []


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_command_cannot_run_ends_container_with_127_or_126(work_dir: Path, command: str, code: int) -> None:
    with boot(work_dir, one(), command=[command]) as booted:
        assert booted.running.wait(READY_S) == code
        assert f"infer-dev entry: cannot run {command}: " in booted.running.stderr()


# ------------------------------------------------------------------------------------------------- whose signals


def test_signals_with_command_reach_its_group_and_no_server(work_dir: Path) -> None:
    recorder = [sys.executable, "-c", RECORDER, str(work_dir / "main"), str(work_dir / "child")]
    with boot(work_dir, one(), command=recorder) as booted:
        booted.wait_ready()
        wait_recorder(work_dir)
        pid = booted.row()["pid"]
        for count, number in enumerate(FOR_COMMAND, start=1):
            booted.running.send(number)
            for who in ("main", "child"):
                wait_until(lambda who=who, n=count: len(recorded(work_dir, who)) >= n, what=f"{number} at {who}")
        assert recorded(work_dir, "main") == recorded(work_dir, "child") == FOR_COMMAND
        # SIGHUP alone would have ended a fake server, and SIGTSTP stopped the entry.
        assert (booted.row()["pid"], booted.row()["state"]) == (pid, "ready")
        assert state_of(booted.running.pid) != "T"
        assert not booted.events("entry.stopping")


def test_signals_without_command_are_ignored(work_dir: Path) -> None:
    with boot(work_dir, one()) as booted:
        booted.wait_ready()
        pid = booted.row()["pid"]
        for number in FOR_COMMAND:
            booted.running.send(number)
        wait_until(lambda: booted.row().get("state") == "ready", what="an answer after all signals")
        assert booted.row()["pid"] == pid
        assert not booted.events("entry.stopping")
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait() == 0


def test_command_with_fleet_has_default_dispositions_and_standard_descriptors_alone(work_dir: Path) -> None:
    script = "cat /proc/self/status; echo fds:; cd /proc/self/fd; echo *"
    with boot(work_dir, one(), command=["sh", "-c", script]) as booted:
        assert booted.running.wait(READY_S) == 0
        status, _, descriptors = booted.running.stdout().partition("fds:\n")
        rows = {line.partition(":")[0]: line.partition(":")[2].strip() for line in status.splitlines()}
        assert {own_signals(rows[name]) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}
        # The shell's own directory of the glob is the fourth.
        assert descriptors.split() == ["0", "1", "2", "3"]


def test_command_with_fleet_streams_are_its_own(work_dir: Path) -> None:
    read_end, write_end = os.pipe()
    with boot(work_dir, one(), command=["sh", "-c", "read line; echo $line"], stdin=read_end) as booted:
        os.close(read_end)
        booted.wait_ready()
        os.write(write_end, b"typed\n")
        assert booted.running.wait() == 0
        assert booted.running.stdout() == "typed\n"
    os.close(write_end)


def test_stderr_plain_file_shared_with_command_keeps_every_line_of_both(work_dir: Path) -> None:
    """`infer-dev entry … 2>log` without append: one offset for all who write, or they overwrite each other."""
    command = ["sh", "-c", "echo said early >&2; sleep 1; echo said late >&2"]
    with boot(work_dir, one(), command=command) as booted:  # the harness opens such a file
        assert booted.running.wait(READY_S) == 0
        lines = booted.running.stderr().splitlines()
        assert [line for line in lines if not line.startswith("{")] == ["said early", "said late"]
        assert json.loads(lines[0])["event"] == "entry.started"
        assert json.loads(lines[-1])["event"] == "entry.stopped"


def test_orphans_with_fleet_leave_no_zombie(work_dir: Path) -> None:
    maker = [sys.executable, "-c", ORPHAN_MAKER, "100", str(work_dir / "pids")]
    with boot(work_dir, one(), command=maker) as booted:
        booted.wait_ready()
        wait_until(lambda: len(lines_of(work_dir / "pids")) == 101, 30, "100 orphans")
        wait_until(lambda: not booted.running.zombies(), what="no zombie among those that died at once")
        assert len(booted.running.children()) >= 50
        booted.running.send(signal.SIGUSR1)
        wait_until(lambda: "done" in lines_of(work_dir / "pids"), what="the release of the others")
        # supervisord and the command are all that is left.
        wait_until(lambda: len(booted.running.children()) == 2 and not booted.running.zombies(), what="no orphan")
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait() == 143


def test_odd_variables_with_fleet_warn_once_each(work_dir: Path) -> None:
    odd = {PREFIX + "ON_BOOOT": "1", PREFIX + "BUNDLE_ON_BOOT": "maybe"}
    with boot(work_dir, one(), command=["true"], environ=odd) as booted:
        assert booted.running.wait(READY_S) == 0
        messages = [event["message"] for event in booted.events("settings.odd")]
        assert len(messages) == 2
        assert "did you mean AUTO_INFER_SGLANG_ON_BOOT?" in messages[1]


def test_sigchld_ignored_by_parent_fleet_and_command_still_work(work_dir: Path) -> None:
    with boot(work_dir, one(), command=["sh", "-c", "exit 3"], prefix=IGNORE_SIGCHLD) as booted:
        assert booted.running.wait(READY_S) == 3


def test_zombie_from_before_exec_with_fleet_is_reaped(work_dir: Path) -> None:
    with boot(work_dir, config="", prefix=(sys.executable, "-c", ZOMBIE_HOLDER)) as booted:
        booted.wait_event("boot.staying", READY_S)
        wait_until(lambda: not booted.running.zombies(), 15, "no zombie")


def test_signals_blocked_by_parent_fleet_takes_them_and_command_has_the_mask(work_dir: Path) -> None:
    """The mask is the command's; an entry that kept it for itself could neither be stopped nor reap."""
    blocked = [int(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD)]
    show = "import signal; print(*sorted(map(int, signal.pthread_sigmask(0, ()))), flush=True); signal.pause()"
    with boot(work_dir, one(), command=[sys.executable, "-c", show], blocked=blocked) as booted:
        booted.wait_ready()
        wait_until(booted.running.stdout, what="the command's mask")
        assert [int(word) for word in booted.running.stdout().split()] == blocked
        command = booted.running.find(show)[0].pid
        booted.running.send(signal.SIGTERM)
        booted.wait_event("entry.stopping")
        os.kill(command, signal.SIGKILL)  # it was told, but has SIGTERM blocked
        assert booted.running.wait(20) == 137


def test_stderr_closed_with_fleet_command_still_runs(work_dir: Path) -> None:
    closing = ("sh", "-c", 'exec 2>&-; exec "$@"', "sh")
    with boot(work_dir, one(), command=["sh", "-c", "exit 4"], prefix=closing) as booted:
        assert booted.running.wait(READY_S) == 4


# ------------------------------------------------------------------------------------------------------- terminals

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@needs_bash
def test_terminal_bash_with_fleet_has_job_control_and_ctrl_c_is_its_jobs(work_dir: Path) -> None:
    with boot(work_dir, one(), command=BASH, environ=BASH_ENVIRON, on_terminal=True) as booted:
        booted.wait_ready()
        terminal = booted.running.terminal
        pid = booted.row()["pid"]
        terminal.type("\n")
        terminal.expect("0:ready> ")
        assert "job control" not in terminal.shown()
        terminal.type("sleep 100\n")
        foreground(booted.running, "sleep")
        terminal.type("\x1a")
        terminal.expect("148:ready> ")
        terminal.type("fg\n")
        foreground(booted.running, "sleep")
        terminal.type("\x03")
        terminal.expect("130:ready> ")
        # Neither the entry nor supervisord nor the server has noticed.
        assert not booted.events("entry.stopping")
        assert (booted.row()["pid"], booted.row()["state"]) == (pid, "ready")
        terminal.type("exit 9\n")
        assert booted.running.wait(20) == 9
        assert booted.events("entry.stopped")[0]["had_to_kill"] == []


def test_terminal_ctrl_c_plain_command_ends_with_130_and_servers_drain(work_dir: Path) -> None:
    with boot(work_dir, one("--drain-s", "0.5"), command=["sleep", "1000"], on_terminal=True) as booted:
        booted.wait_ready()
        foreground(booted.running, "sleep")
        booted.running.terminal.type("\x03")
        assert booted.running.wait(20) == 130
        assert booted.events("server.stopped")
        assert not booted.events("entry.stopping")


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_terminal_ctrl_c_without_command_drains_and_exits_0(work_dir: Path, pid1: bool) -> None:
    with boot(work_dir, one("--drain-s", "0.5"), on_terminal=True, pid1=pid1) as booted:
        booted.wait_ready()
        booted.running.terminal.type("\x03")
        assert booted.running.wait(20) == 0
        assert booted.events("entry.stopping")[0]["signal"] == "SIGINT"
        assert booted.events("server.stopped")
        assert not booted.events("server.crashed")


def test_terminal_ctrl_c_twice_during_drain_after_command_cuts_it_short(work_dir: Path) -> None:
    """When the command is gone the terminal is the entry's again."""
    slow = one("--drain-s", "60", drain_timeout_s=60)
    with boot(work_dir, slow, command=["sleep", "1000"], on_terminal=True) as booted:
        booted.wait_ready()
        foreground(booted.running, "sleep")
        booted.running.terminal.type("\x03")
        wait_until(lambda: booted.row().get("state") == "draining", what="the drain")
        booted.running.terminal.type("\x03")
        wait_until(lambda: booted.events("entry.stopping"), what="the first Ctrl-C at the entry")
        booted.running.terminal.type("\x03")
        assert booted.running.wait(20) == 130
        assert booted.events("entry.stopped")[0]["had_to_kill"] == ["a"]


def test_terminal_hung_up_fleet_by_hand_drains(work_dir: Path) -> None:
    """`infer-dev entry` in a terminal that is closed: nobody could stop it any more."""
    with boot(work_dir, one("--write-env", str(work_dir / "env")), on_terminal=True, pid1=False) as booted:
        booted.wait_ready()
        booted.running.terminal.close()
        assert booted.running.wait(20) == 0
        wait_until(lambda: not marked(work_dir), what="no process left")


@needs_bash
def test_terminal_interactive_bash_ignores_sigterm_is_ended_within_one_deadline(work_dir: Path) -> None:
    """Fleet and command have one deadline together: the longest drain, or 9 s, counted from the signal."""
    stubborn = one("--ignore-sigterm", drain_timeout_s=8)
    with boot(work_dir, stubborn, command=BASH, environ=BASH_ENVIRON, on_terminal=True) as booted:
        booted.wait_ready()
        booted.running.send(signal.SIGTERM)
        began = time.monotonic()
        assert booted.running.wait(40) == 128 + signal.SIGKILL
        took_s = time.monotonic() - began
        assert booted.events("command.killed")
        assert booted.events("entry.stopped")[0]["had_to_kill"][0] == "a"
        assert took_s < 15  # one after the other takes 17 s


@needs_bash
def test_terminal_interactive_bash_second_sigterm_ends_it_at_once(work_dir: Path) -> None:
    # Its deadline is that of the fleet, which it has to itself once the server is gone.
    with boot(work_dir, one(drain_timeout_s=60), command=BASH, environ=BASH_ENVIRON, on_terminal=True) as booted:
        booted.wait_ready()
        booted.running.send(signal.SIGTERM)
        wait_until(lambda: booted.events("server.stopped"), what="the fleet's drain")
        assert booted.running.is_running()
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait(20) == 128 + signal.SIGKILL


@needs_bash
def test_terminal_tostop_entry_in_background_logs_without_stopping_command(work_dir: Path) -> None:
    """`stty tostop` sends SIGTTOU to who writes from the background; the entry's log must not stop the command."""
    with boot(work_dir, one(), command=BASH, environ=BASH_ENVIRON, on_terminal=True) as booted:
        booted.wait_ready()
        terminal = booted.running.terminal
        terminal.type("stty tostop\n")
        terminal.expect("stty tostop\r\n0:ready> ")
        server_pid = booted.running.find("fake_server")[0].pid
        os.kill(server_pid, signal.SIGKILL)  # makes the entry log
        wait_until(lambda: booted.row().get("restarts") == 1, what="the restart")
        terminal.type("echo li''ving\n")
        terminal.expect("living\r\n0:ready> ")
        terminal.type("stty -tostop; exit 4\n")
        assert booted.running.wait(20) == 4


# ------------------------------------------------------------------------------------------------ stops at any moment


@pytest.mark.parametrize("command", [(), ("sh", "-c", "echo started; sleep 1000")], ids=["alone", "command"])
def test_sigterm_while_planner_is_slow_ends_at_once(work_dir: Path, command: tuple[str, ...]) -> None:
    fifo = work_dir / "config.toml"
    os.mkfifo(fifo)  # nobody ever writes it, so that opening it blocks
    with boot(work_dir, config=str(fifo), command=command) as booted:
        wait_until(lambda: booted.running.find("infer_dev_entry.planner"), READY_S, "the planner")
        assert booted.status()["stage"] == "planning"
        booted.running.send(signal.SIGTERM)
        began = time.monotonic()
        assert booted.running.wait(20) == 0
        assert time.monotonic() - began < 9  # within the grace of a container's stop; planning would never end
        assert booted.running.stdout() == ""
        assert not booted.events("boot.failed")
        assert not booted.events("entry.bug")


@pytest.mark.parametrize("delay_ms", [0, 50, 100, 200, 300, 400, 500, 650, 800, 1000, 1300])
def test_sigterm_at_any_moment_of_boot_ends_it_wholly(work_dir: Path, delay_ms: int) -> None:
    with boot(work_dir, one(), one(name="b"), command=["sleep", "1000"], pid1=False) as booted:
        wait_until(lambda: signal.SIGTERM in takes(booted.running.pid), READY_S, "the entry")
        with contextlib.suppress(Exception):
            booted.running.outer.wait(delay_ms / 1000)
        booted.running.send(signal.SIGTERM)
        # 0 before the command is there, else what the command ends with.
        assert booted.running.wait(20) in (0, 143)
        assert_ended_cleanly(booted)


@pytest.mark.parametrize("delay_ms", [0, 60, 120, 180, 240, 300, 360, 420, 480, 600, 900])
def test_command_exits_at_any_moment_of_fleets_start_all_ends(work_dir: Path, delay_ms: int) -> None:
    command = ["sh", "-c", f"sleep {delay_ms / 1000}; exit 6"]
    with boot(work_dir, one(), one(name="b"), command=command, pid1=False) as booted:
        assert booted.running.wait(READY_S) == 6
        assert_ended_cleanly(booted)


def assert_ended_cleanly(booted: Booted) -> None:
    """Nothing was killed by force, nothing was left, and nothing alarms the reader of the log."""
    assert not booted.events("entry.bug")
    assert "Traceback" not in booted.running.stderr()
    assert not booted.events("entry.stopped") or booted.events("entry.stopped")[-1]["had_to_kill"] == []
    wait_until(lambda: not marked(booted.running.work_dir), what="no process left")


def test_sigterm_between_fork_and_exec_of_command_ends_it_and_counts_once(work_dir: Path) -> None:
    """The fork shares the entry's handlers and their pipe: its signals must neither be lost nor count for the entry."""
    with boot(work_dir, command=["sleep", "1000"], config="", environ={"PATH": long_path()}) as booted:
        # Boot stays without a config; the command is there, but still looks for its program.
        booted.wait_event("boot.staying", READY_S)
        wait_until(booted.running.children, READY_S, "the fork")
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait(20) == 143
        assert [event["cut_short"] for event in booted.events("entry.stopping")] == [False]


def test_sigterm_after_boot_error_returns_commands_status_every_time(work_dir: Path) -> None:
    """With nothing to drain the command's end and ours meet closely; its status must not get lost in between."""
    for number in range(8):
        directory = work_dir / str(number)
        directory.mkdir()
        with boot(directory, command=["sh", "-c", "echo up; sleep 1000"], config="") as booted:
            wait_until(lambda booted=booted: booted.running.stdout() == "up\n", READY_S, "the command")
            booted.running.send(signal.SIGTERM)
            assert booted.running.wait() == 143, f"round {number}"


def takes(pid: int) -> set[int]:
    """The signals that a process has blocked or handles: none of these is lost."""
    return signal_set(pid, "SigBlk") | signal_set(pid, "SigCgt")


# ---------------------------------------------------------------------------------------------------- boot errors

NOT_TOML = "[instance.a\n"


def bad_config(work_dir: Path) -> dict[str, Any]:
    (work_dir / "bad.toml").write_text(NOT_TOML)
    return {"config": str(work_dir / "bad.toml")}


def no_config(work_dir: Path) -> dict[str, Any]:
    return {"config": ""}


def no_user(work_dir: Path) -> dict[str, Any]:
    return {"config": str(write_config(work_dir, one())), "environ": {PREFIX + "USER": "no-such-user"}}


def file_as_run_dir(work_dir: Path) -> dict[str, Any]:
    (work_dir / "file").write_text("")
    return {"config": str(write_config(work_dir, one())), "environ": {"INFER_DEV_RUN_DIR": str(work_dir / "file")}}


def directory_as_control_socket(work_dir: Path) -> dict[str, Any]:
    (work_dir / "run" / "control.sock").mkdir(parents=True)
    return {"config": str(write_config(work_dir, one()))}


def long_run_dir(work_dir: Path) -> dict[str, Any]:
    return {
        "config": str(write_config(work_dir, one())),
        "environ": {"INFER_DEV_RUN_DIR": str(work_dir / ("long" * 30))},
    }


BOOT_ERRORS = [
    pytest.param(bad_config, 10, ("bad.toml", "line 1"), id="bad-config"),
    pytest.param(no_config, 11, (PREFIX + "CONFIG",), id="no-config"),
    pytest.param(no_user, 11, (PREFIX + "USER", "no-such-user"), id="no-user"),
    pytest.param(file_as_run_dir, 12, ("/file", "INFER_DEV_RUN_DIR"), id="run-dir-is-a-file"),
    pytest.param(directory_as_control_socket, 12, ("control.sock", "INFER_DEV_RUN_DIR"), id="socket-is-a-directory"),
    pytest.param(long_run_dir, 12, ("too long", "INFER_DEV_RUN_DIR"), id="run-dir-too-long"),
]
PROOF = ("sh", "-c", "echo command ran; sleep 1000")


@pytest.mark.parametrize(("make", "code", "words"), BOOT_ERRORS)
def test_boot_error_on_error_exit_ends_with_its_code_and_no_command(
    work_dir: Path, make: Any, code: int, words: tuple[str, ...]
) -> None:
    options = make(work_dir)
    environ = {**options.pop("environ", {}), PREFIX + "ON_ERROR": "exit"}
    with boot(work_dir, command=PROOF, environ=environ, **options) as booted:
        assert booted.running.wait(READY_S) == code
        assert booted.running.stdout() == ""
        failed = booted.wait_event("boot.failed")
        assert failed["exit_code"] == code
        assert all(word in failed["error"] for word in words), failed
        assert "\n" not in failed["error"]


@pytest.mark.parametrize(("make", "code", "words"), BOOT_ERRORS)
def test_boot_error_on_error_stay_runs_command_and_returns_its_status(
    work_dir: Path, make: Any, code: int, words: tuple[str, ...]
) -> None:
    options = make(work_dir)
    with boot(work_dir, command=("sh", "-c", "echo command ran; sleep 1000"), **options) as booted:
        wait_until(lambda: booted.running.stdout() == "command ran\n", READY_S, "the command")
        failed = booted.wait_event("boot.failed")
        assert all(word in failed["error"] for word in words), failed
        assert "infer-dev serve" in booted.wait_event("boot.staying")["mend"]
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait() == 143


def test_boot_error_on_error_stay_status_and_health_say_why(work_dir: Path) -> None:
    with boot(work_dir, **bad_config(work_dir)) as booted:
        booted.wait_event("boot.staying", READY_S)
        status = booted.status()
        assert (status["stage"], status["healthy"], status["exit_code"]) == ("failed", False, 10)
        assert "bad.toml" in status["boot_error"]
        assert "line 1" in status["boot_error"]
        for name in ("status", "health"):
            done = booted.running.run_inside(["env", f"INFER_DEV_RUN_DIR={work_dir}/run", *ENTRY[:-1], name])
            assert done.returncode == 1
            assert b"bad.toml" in done.stderr
        assert booted.running.is_running()
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait() == 0


def test_boot_error_on_error_stay_serve_mends_it(work_dir: Path) -> None:
    with boot(work_dir, command=["sleep", "1000"], **bad_config(work_dir)) as booted:
        booted.wait_event("boot.staying", READY_S)
        good = write_config(work_dir, one())
        environ = [f"INFER_DEV_RUN_DIR={work_dir}/run", f"PYTHONPATH={PYTHONPATH}"]
        done = booted.running.run_inside(["env", *environ, *ENTRY[:-1], "serve", "--wait", "20", str(good)], 60)
        assert done.returncode == 0, done.stderr
        assert booted.status()["healthy"]
        assert booted.status()["boot_error"] is None
        booted.running.send(signal.SIGTERM)
        assert booted.running.wait() == 143
        assert booted.events("server.stopped")


def test_bundle_gate_without_installer_on_error_exit_is_11(work_dir: Path) -> None:
    environ = {PREFIX + "BUNDLE_ON_BOOT": "1", PREFIX + "ON_ERROR": "exit"}
    with boot(work_dir, one(), command=PROOF, environ=environ) as booted:
        assert booted.running.wait(READY_S) == 11
        assert PREFIX + "BUNDLE" in booted.wait_event("boot.failed")["error"]


# ---------------------------------------------------------------------------------- a fleet started by hand meanwhile


@pytest.mark.parametrize("cut_short", [False, True], ids=["one-signal", "two-signals"])
def test_idle_pid1_with_hand_started_fleet_waits_for_its_drain(work_dir: Path, cut_short: bool) -> None:
    port = free_port()
    slow = one("--drain-s", "60" if cut_short else "0.5", drain_timeout_s=60, port=port)
    config = write_config(work_dir, slow)
    with spawn(list(ENTRY), work_dir) as running:
        wait_until(lambda: "waiting for SIGTERM" in running.stderr(), what="idle")
        environ = [f"INFER_DEV_RUN_DIR={work_dir}/run", f"PYTHONPATH={PYTHONPATH}", "INFER_DEV_LOG_FORMAT=json"]
        done = running.run_inside(["env", *environ, *ENTRY[:-1], "serve", "--wait", "30", str(config)], 60)
        assert done.returncode == 0, done.stderr
        log = work_dir / "run" / "entry.log"
        peer = start_request(port, 1)
        running.send(signal.SIGTERM)
        if cut_short:
            wait_until(lambda: "server.draining" in log.read_text(), what="the drain")
            running.send(signal.SIGTERM)
            peer.close()
        else:
            assert read_answer(peer).startswith(b"HTTP/1.1 200 ")
        assert running.wait(20) == 0
        stopped = [json.loads(line) for line in lines_of(log) if '"entry.stopped"' in line][-1]
        assert stopped["had_to_kill"] == (["a"] if cut_short else [])
