"""With all gates off the entry is what tini and dumb-init are: it forwards, reaps, and returns its command's status."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pid1 import (
    ENTRY,
    IGNORE_SIGCHLD,
    ORPHAN_MAKER,
    ZOMBIE_HOLDER,
    Running,
    foreground,
    lines_of,
    long_path,
    needs_namespaces,
    own_signals,
    private_dir,
    recorded,
    signal_set,
    spawn,
    spawn_recorder,
    state_of,
    status_field,
    wait_recorder,
)
from wait import wait_until

pytestmark = [needs_namespaces, pytest.mark.timeout(90)]

RUN = (*ENTRY, "--")
UNFORWARDED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
FORWARDED = sorted(int(number) for number in signal.valid_signals() - UNFORWARDED)
SUSPEND = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@pytest.fixture
def work_dir() -> Iterator[Path]:
    with private_dir() as path:
        yield path


def name_of(number: int) -> str:
    """SIGTERM, or RT5 for a real-time signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"RT{number - signal.SIGRTMIN}"


def command_of(running: Running) -> psutil.Process:
    """The entry's command, once it is no longer the fork of the entry itself."""

    def find() -> psutil.Process | None:
        for child in running.children():
            with contextlib.suppress(psutil.Error):
                if "infer_dev_entry" not in child.cmdline():
                    return child
        return None

    found = wait_until(find, 15, "the command")
    assert found is not None
    return found


def takes_signals(running: Running) -> bool:
    """True once the entry loses no signal any more.

    /proc shows a signal as not blocked while sigwait waits for it, but then the entry has a command or says it is idle.
    """
    with contextlib.suppress(psutil.Error):
        if psutil.Process(running.pid).cmdline()[: len(ENTRY)] == list(ENTRY):
            blocks = signal.SIGTERM in signal_set(running.pid, "SigBlk")
            return blocks or bool(running.children()) or "waiting for SIGTERM" in running.stderr()
    return False


# ---------------------------------------------------------------------------------------------------- what it costs


# Says which modules the entry has imported that the bare interpreter had not (its .pth files are not our doing).
IMPORT_SPY = """
import sys
before = set(sys.modules)
sys.argv = ["infer-dev", "entry", *sys.argv[1:]]
from infer_dev_entry.__main__ import main
status = main()
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
sys.exit(status)
"""


@pytest.mark.parametrize("command", [("true",), ()], ids=["command", "idle"])
def test_entry_gates_off_imports_standard_library_alone(work_dir: Path, command: tuple[str, ...]) -> None:
    with spawn([sys.executable, "-c", IMPORT_SPY, *command], work_dir, environ=ODD, pid1=False) as running:
        if not command:
            wait_until(lambda: "waiting for SIGTERM" in running.stderr(), what="idle")
            running.send(signal.SIGTERM)
        assert running.wait() == 0
        imported = set(running.stdout().split())
    assert imported - sys.stdlib_module_names == {"infer_dev_entry"}
    assert not imported & {"asyncio", "argparse", "subprocess", "xmlrpc", "http"}


# ------------------------------------------------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def recorder() -> Iterator[tuple[Running, Path]]:
    """One entry with a recording command, for all signals in turn."""
    with private_dir() as path, spawn_recorder(path) as running:
        wait_recorder(path)
        yield running, path


@pytest.mark.parametrize("number", FORWARDED, ids=name_of)
def test_signal_gates_off_reaches_whole_command_group_once(recorder: tuple[Running, Path], number: int) -> None:
    running, path = recorder
    before = {who: len(recorded(path, who)) for who in ("main", "child")}
    running.send(number)
    for who, count in before.items():
        wait_until(lambda who=who, count=count: len(recorded(path, who)) > count, what=f"{name_of(number)} at {who}")
        assert recorded(path, who)[count:] == [number]
    # As PID 1 it cannot be stopped from inside its namespace, and nothing is escalated.
    assert state_of(running.pid) != "T"
    assert running.is_running()


def test_signals_gates_off_all_at_once_none_is_lost(work_dir: Path) -> None:
    with spawn_recorder(work_dir) as running:
        wait_recorder(work_dir)
        # A stop signal and SIGCONT cancel each other while they are pending (signal(7)).
        numbers = [number for number in FORWARDED if number not in SUSPEND]
        for number in numbers:
            running.send(number)
        for who in ("main", "child"):
            wait_until(lambda who=who: len(recorded(work_dir, who)) >= len(numbers), what=f"all signals at {who}")
            assert sorted(recorded(work_dir, who)) == numbers


def test_sigterm_twice_command_ignores_it_nothing_escalates(work_dir: Path) -> None:
    with spawn_recorder(work_dir) as running:
        wait_recorder(work_dir)
        main = command_of(running).pid
        for count in (1, 2, 3):
            running.send(signal.SIGTERM)
            wait_until(lambda count=count: recorded(work_dir, "main") == [signal.SIGTERM] * count, what="SIGTERM")
        assert state_of(main) not in ("", "Z")
        running.send(signal.SIGUSR1)
        wait_until(lambda: recorded(work_dir, "main")[3:] == [signal.SIGUSR1], what="SIGUSR1 after three SIGTERMs")
        assert running.is_running()


@pytest.mark.parametrize("number", SUSPEND, ids=name_of)
def test_suspend_as_pid1_stops_command_and_sigcont_resumes_it(work_dir: Path, number: int) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir) as running:
        command = command_of(running).pid
        running.send(number)
        wait_until(lambda: state_of(command) == "T", what="the command stopped")
        assert state_of(running.pid) != "T"
        running.send(signal.SIGCONT)
        wait_until(lambda: state_of(command) == "S", what="the command resumed")
        running.send(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", SUSPEND, ids=name_of)
def test_suspend_not_pid1_stops_entry_too_and_sigcont_resumes_both(work_dir: Path, number: int) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir, pid1=False) as running:
        command = command_of(running).pid
        running.send(number)
        wait_until(lambda: (state_of(command), state_of(running.pid)) == ("T", "T"), what="both stopped")
        running.send(signal.SIGCONT)
        wait_until(lambda: (state_of(command), state_of(running.pid)) == ("S", "S"), what="both resumed")
        running.send(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM


def test_sigterm_while_command_is_stopped_ends_it_after_sigcont(work_dir: Path) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir) as running:
        command = command_of(running).pid
        running.send(signal.SIGTSTP)
        wait_until(lambda: state_of(command) == "T", what="the command stopped")
        running.send(signal.SIGTERM)
        running.send(signal.SIGCONT)
        assert running.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("delay_ms", range(0, 160, 10))
def test_sigterm_right_after_spawn_not_pid1_ends_it(work_dir: Path, delay_ms: int) -> None:
    """Before Python is up the default action ends it; afterwards the command gets it."""
    with spawn([*RUN, "sleep", "1000"], work_dir, pid1=False) as running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.outer.wait(delay_ms / 1000)
        running.send(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", [("sleep", "1000"), ()], ids=["command", "idle"])
def test_sigterm_as_pid1_from_the_first_blocked_moment_is_not_lost(work_dir: Path, command: tuple[str, ...]) -> None:
    """The kernel drops what PID 1 neither blocks nor handles; once it blocks, nothing is lost, command or not."""
    with spawn([*RUN, *command], work_dir) as running:
        while not takes_signals(running):  # a tight loop: the first moment is the point
            assert running.is_running()
        running.send(signal.SIGTERM)
        assert running.wait() == (128 + signal.SIGTERM if command else 0)


def test_sigterm_as_pid1_repeated_from_spawn_on_ends_it(work_dir: Path) -> None:
    """Who asks again, as a person does, is heard however early the first one was."""
    with spawn(list(RUN), work_dir) as running:

        def asked_and_ended() -> bool:
            with contextlib.suppress(ProcessLookupError):
                running.send(signal.SIGTERM)
            return not running.is_running()

        wait_until(asked_and_ended, what="the end")
        assert running.wait() == 0


@pytest.mark.parametrize("delay_ms", range(0, 160, 10))
def test_sigterm_right_after_spawn_blocked_by_parent_is_not_lost(work_dir: Path, delay_ms: int) -> None:
    """A parent that blocks SIGTERM for the start has it kept from the very first instant, and the command gets it."""
    unblocking = [sys.executable, "-c", UNBLOCKER]
    with spawn([*RUN, *unblocking], work_dir, blocked=[signal.SIGTERM]) as running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.outer.wait(delay_ms / 1000)
        running.send(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM


def test_sigterm_between_fork_and_exec_of_command_is_not_lost(work_dir: Path) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir, environ={"PATH": long_path()}) as running:
        # The command is there, but still looks for its program.
        wait_until(running.children, 15, "the fork")
        running.send(signal.SIGTERM)
        assert running.wait() == 143


# Lets through what its parent had blocked, and dies of it.
UNBLOCKER = "import signal; signal.pthread_sigmask(signal.SIG_SETMASK, ()); signal.pause()"


# ----------------------------------------------------------------------------------------------- what the command gets


def status_of_command(work_dir: Path, **options: object) -> dict[str, str]:
    # Not a Python, which itself ignores SIGPIPE.
    with spawn([*RUN, "cat", "/proc/self/status"], work_dir, **options) as running:  # type: ignore[arg-type]
        assert running.wait() == 0
        return {line.partition(":")[0]: line.partition(":")[2].strip() for line in running.stdout().splitlines()}


def test_command_gates_off_has_default_dispositions_and_empty_mask(work_dir: Path) -> None:
    status = status_of_command(work_dir)
    assert {own_signals(status[name]) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}


def test_command_parent_blocked_and_ignored_signals_inherits_both(work_dir: Path) -> None:
    """As with tini and nohup: what the parent chose is the command's."""
    status = status_of_command(work_dir, blocked=[signal.SIGUSR2], ignored=[signal.SIGHUP])
    assert int(status["SigBlk"], 16) == 1 << (signal.SIGUSR2 - 1)
    assert own_signals(status["SigIgn"]) == 1 << (signal.SIGHUP - 1)


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_command_parent_ignored_sigchld_status_is_still_returned(work_dir: Path, pid1: bool) -> None:
    """With SIGCHLD ignored the kernel reaps by itself, and waitpid has nothing to tell."""
    with spawn([*IGNORE_SIGCHLD, *RUN, "sh", "-c", "exit 3"], work_dir, pid1=pid1) as running:
        assert running.wait() == 3


def test_command_streams_are_passed_through(work_dir: Path) -> None:
    script = "read line; echo out $line; echo err $line >&2; pwd; echo $MARKER; echo $#$1"
    read_end, write_end = os.pipe()
    argv = [*RUN, "sh", "-c", script, "sh", "a b"]
    with spawn(argv, work_dir, environ={"MARKER": "here"}, stdin=read_end) as running:
        os.close(read_end)
        os.write(write_end, b"hello\n")
        assert running.wait() == 0
        assert running.stdout() == f"out hello\n{work_dir}\nhere\n1a b\n"
        assert running.stderr() == "err hello\n"
    os.close(write_end)


def test_command_arguments_after_separator_are_untouched(work_dir: Path) -> None:
    with spawn([*RUN, "printf", "%s|", "--help", "--", "-h", ""], work_dir) as running:
        assert running.wait() == 0
        assert running.stdout() == "--help|--|-h||"


def test_command_leads_its_own_group_in_entrys_session(work_dir: Path) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir) as running:
        command = command_of(running).pid
        assert (os.getpgid(command), os.getsid(command)) == (command, running.pid)
        assert os.getpgid(running.pid) == running.pid


# --------------------------------------------------------------------------------------------------------- exit status


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
@pytest.mark.parametrize("code", [0, 1, 3, 125, 255])
def test_exit_status_command_exits_is_returned(work_dir: Path, code: int, pid1: bool) -> None:
    with spawn([*RUN, "sh", "-c", f"exit {code}"], work_dir, pid1=pid1) as running:
        assert running.wait() == code


@pytest.mark.parametrize("number", [1, 2, 6, 9, 10, 11, 13, 15, 40], ids=name_of)
def test_exit_status_command_is_killed_is_128_plus_signal(work_dir: Path, number: int) -> None:
    with spawn([*RUN, "sh", "-c", f"ulimit -c 0; kill -{number} $$"], work_dir) as running:
        assert running.wait() == 128 + number


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_exit_status_forwarded_sigterm_kills_command_is_143(work_dir: Path, pid1: bool) -> None:
    with spawn([*RUN, "sleep", "1000"], work_dir, pid1=pid1) as running:
        command_of(running)
        running.send(signal.SIGTERM)
        assert running.wait() == 143


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        ("no-such-command", 127, "No such file or directory"),
        ("/no/such/command", 127, "No such file or directory"),
        ("/etc/passwd/x", 127, "Not a directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
        ("./script", 126, "Exec format error"),
    ],
)
def test_exit_status_command_cannot_run_is_126_or_127_with_reason(
    work_dir: Path, command: str, code: int, reason: str
) -> None:
    (work_dir / "script").write_text("echo no shebang\n")
    (work_dir / "script").chmod(0o755)
    with spawn([*RUN, command], work_dir) as running:
        assert running.wait() == code
        assert running.stderr() == f"infer-dev entry: cannot run {command}: {reason}\n"


# ------------------------------------------------------------------------------------------------------------ reaping


def assert_orphans_are_reaped(running: Running, pid_file: Path, signal_maker: object) -> None:
    """Half of the orphans dies at once, half later; none stays a zombie."""
    assert callable(signal_maker)
    wait_until(lambda: "made" in lines_of(pid_file), 30, "100 orphans")
    count = 100
    wait_until(lambda: len(lines_of(pid_file)) == count + 1, 30, "the orphans' pids")
    # Those that live have come to us; those that died at once are gone without a trace.
    wait_until(lambda: not running.zombies(), what="no zombie among those that died at once")
    living = [child for child in running.children() if status_field(child.pid, "PPid") == str(running.pid)]
    assert len(living) >= count // 2
    signal_maker()
    wait_until(lambda: "done" in lines_of(pid_file), what="the release of the others")
    wait_until(lambda: len(running.children()) <= 1 and not running.zombies(), what="no orphan and no zombie")


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "subreaper"])
def test_orphans_with_command_leave_no_zombie(work_dir: Path, pid1: bool) -> None:
    maker = [sys.executable, "-c", ORPHAN_MAKER, "100", str(work_dir / "pids")]
    with spawn([*RUN, *maker], work_dir, pid1=pid1) as running:
        assert_orphans_are_reaped(running, work_dir / "pids", lambda: running.send(signal.SIGUSR1))
        assert running.is_running()
        running.send(signal.SIGTERM)
        assert running.wait() == 143


def test_orphans_idle_leave_no_zombie(work_dir: Path) -> None:
    """A shell that `docker exec` started leaves its orphans to PID 1."""
    with spawn([*RUN], work_dir) as running:
        wait_until(lambda: "waiting for SIGTERM" in running.stderr(), what="idle")
        maker = [sys.executable, "-c", ORPHAN_MAKER, "100", str(work_dir / "pids")]
        enter = ["nsenter", "--target", str(running.pid), "--pid", "--mount", "--", *maker]
        with subprocess.Popen(enter, stdin=subprocess.DEVNULL) as outside:
            try:

                def signal_maker() -> None:
                    for child in psutil.Process(outside.pid).children():
                        child.send_signal(signal.SIGUSR1)

                assert_orphans_are_reaped(running, work_dir / "pids", signal_maker)
                wait_until(lambda: not running.children(), what="nobody left")
            finally:
                for child in psutil.Process(outside.pid).children():
                    child.kill()
        running.send(signal.SIGTERM)
        assert running.wait() == 0


def test_orphan_of_ended_command_group_dies_with_the_container(work_dir: Path) -> None:
    with spawn([*RUN, "sh", "-c", "setsid sleep 1000 & exit 5"], work_dir) as running:
        assert running.wait() == 5
        wait_until(lambda: not psutil.pid_exists(running.pid), what="the namespace's end")


@pytest.mark.parametrize("command", [("sleep", "1000"), ()], ids=["command", "idle"])
def test_zombie_from_before_exec_is_reaped(work_dir: Path, command: tuple[str, ...]) -> None:
    """An entrypoint that execs the entry may leave it a child that is dead already: no SIGCHLD follows."""
    with spawn([sys.executable, "-c", ZOMBIE_HOLDER, *RUN, *command], work_dir) as running:
        wait_until(lambda: takes_signals(running), what="the entry")
        if command:
            wait_until(lambda: len(running.children()) == 2 or not running.zombies(), what="the command")
        wait_until(lambda: not running.zombies(), 15, "no zombie")


def test_subreaper_not_pid1_adopts_orphans(work_dir: Path) -> None:
    with spawn([*RUN, "sh", "-c", "(sleep 1000 & echo $! >orphan) & exec sleep 999"], work_dir, pid1=False) as running:
        wait_until(lambda: lines_of(work_dir / "orphan"), what="the orphan")
        orphan = int(lines_of(work_dir / "orphan")[0])
        wait_until(lambda: status_field(orphan, "PPid") == str(running.pid), what="its adoption")
        os.kill(orphan, signal.SIGKILL)
        wait_until(lambda: state_of(orphan) == "", what="its reaping")
        assert running.is_running()


# --------------------------------------------------------------------------------------------------------- idle


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=name_of)
@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_idle_stop_signal_exits_0(work_dir: Path, number: int, pid1: bool) -> None:
    with spawn(list(ENTRY), work_dir, pid1=pid1) as running:
        wait_until(lambda: "waiting for SIGTERM" in running.stderr(), what="idle")
        for other in FORWARDED:
            if other not in (signal.SIGTERM, signal.SIGINT):
                running.send(other)
        # Signals are taken in the order of their numbers, not of their coming: wait until all the others are.
        wait_until(lambda: int(status_field(running.pid, "ShdPnd"), 16) == 0, what="all signals taken")
        assert running.is_running()
        running.send(number)
        assert running.wait() == 0


# ---------------------------------------------------------------------------------------------------- warnings


ODD = {
    "AUTO_INFER_SGLANG_ON_BOOOT": "1",
    "AUTO_INFER_SGLANG_BUNDLE_ON_BOOT": "maybe",
    "AUTO_INFER_SGLANG_ON_BOOT": "Off",
    "INFER_DEV_LOG_LEVEL": "loud",
}
WARNED = (
    "AUTO_INFER_SGLANG_BUNDLE_ON_BOOT='maybe' is neither true",
    "INFER_DEV_LOG_LEVEL='loud' is not one of",
    "AUTO_INFER_SGLANG_ON_BOOOT is not a variable that infer-dev knows; did you mean AUTO_INFER_SGLANG_ON_BOOT?",
)


def test_odd_variables_gates_off_warn_once_each_in_json(work_dir: Path) -> None:
    with spawn([*RUN, "true"], work_dir, environ=ODD) as running:
        assert running.wait() == 0
        rows = [json.loads(line) for line in running.stderr().splitlines()]
        assert [row["level"] for row in rows] == ["warning"] * len(WARNED)
        for text in WARNED:
            assert sum(row["message"].startswith(text) for row in rows) == 1
        assert running.stdout() == ""


def test_odd_variables_gates_off_warn_once_each_on_console(work_dir: Path) -> None:
    with spawn([*RUN, "true"], work_dir, environ={**ODD, "INFER_DEV_LOG_FORMAT": "console"}) as running:
        assert running.wait() == 0
        lines = running.stderr().splitlines()
        assert len(lines) == len(WARNED)
        for text in WARNED:
            assert sum(line.startswith("warning") and text in line for line in lines) == 1


def test_odd_variables_on_terminal_warn_in_console_format(work_dir: Path) -> None:
    with spawn([*RUN, "echo", "ran"], work_dir, environ=ODD, on_terminal=True) as running:
        assert running.wait() == 0
        running.terminal.expect("did you mean AUTO_INFER_SGLANG_ON_BOOT\\?")
        running.terminal.expect("ran")
        assert '"level"' not in running.terminal.shown()


def test_stderr_closed_gates_off_command_still_runs(work_dir: Path) -> None:
    script = f"exec 2>&-; exec {' '.join(RUN)} sh -c 'exit 4'"
    with spawn(["sh", "-c", script], work_dir, environ=ODD) as running:
        assert running.wait() == 4


# ------------------------------------------------------------------------------------------------------- terminals


@contextlib.contextmanager
def bash_on_terminal(work_dir: Path, pid1: bool = True) -> Iterator[Running]:
    """An interactive bash below the entry; its prompt is `$> ` with the last status before it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    environ = {"PS1": "$?:ready> ", "TERM": "dumb", "HISTFILE": ""}
    argv = [*RUN, bash, "--norc", "--noprofile", "--noediting", "-i"]
    with spawn(argv, work_dir, environ=environ, on_terminal=True, pid1=pid1) as running:
        running.terminal.expect("0:ready> ", 20)
        yield running


@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_terminal_interactive_bash_has_job_control(work_dir: Path, pid1: bool) -> None:
    with bash_on_terminal(work_dir, pid1) as running:
        terminal = running.terminal
        assert terminal.shown() == "0:ready> "  # above all not "no job control in this shell"
        terminal.type("sleep 100 &\n")
        terminal.expect(r"\[1\] \d+\r\n0:ready> ")
        terminal.type("jobs\n")
        terminal.expect(r"\[1\]\+ +Running +sleep 100 &\r\n0:ready> ")
        terminal.type("fg\n")
        terminal.expect("fg\r\nsleep 100\r\n")
        foreground(running, "sleep")
        terminal.type("\x1a")
        terminal.expect(r"Stopped +sleep 100\r\n148:ready> ")
        terminal.type("bg\n")
        terminal.expect("0:ready> ")
        terminal.type("fg\n")
        terminal.expect("fg\r\nsleep 100\r\n")
        foreground(running, "sleep")
        terminal.type("\x03")
        terminal.expect("130:ready> ")
        terminal.type("jobs; exit 7\n")
        assert running.wait() == 7


def test_terminal_ctrl_c_at_prompt_leaves_bash_and_entry_alone(work_dir: Path) -> None:
    with bash_on_terminal(work_dir) as running:
        running.terminal.type("\x03")
        running.terminal.expect("130:ready> ")
        assert running.is_running()
        running.terminal.type("exit\n")
        assert running.wait() == 130


def test_terminal_plain_command_ctrl_c_ends_it_with_130(work_dir: Path) -> None:
    with spawn([*RUN, "sh", "-c", "echo up; exec sleep 1000"], work_dir, on_terminal=True) as running:
        running.terminal.expect("up")
        foreground(running, "sleep")
        running.terminal.type("\x03")
        assert running.wait() == 130


def test_terminal_resized_command_gets_sigwinch(work_dir: Path) -> None:
    with spawn_recorder(work_dir, on_terminal=True) as running:
        wait_recorder(work_dir)
        running.terminal.resize(33, 99)
        for who in ("main", "child"):
            wait_until(lambda who=who: recorded(work_dir, who) == [signal.SIGWINCH], what=f"SIGWINCH at {who}")


def test_terminal_sigterm_to_interactive_bash_is_ignored_and_nothing_escalates(work_dir: Path) -> None:
    """What tini does as well: an interactive bash ignores SIGTERM, and SIGHUP ends it."""
    with bash_on_terminal(work_dir) as running:
        running.send(signal.SIGTERM)
        running.terminal.type("echo li''ving\n")
        running.terminal.expect("living\r\n0:ready> ")
        running.send(signal.SIGHUP)
        assert running.wait() == 128 + signal.SIGHUP


def test_terminal_stopped_entry_in_a_shell_is_a_job(work_dir: Path) -> None:
    """Not PID 1, started from an interactive shell: SIGTSTP stops entry and command, `fg` resumes both."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    environ = {"PS1": "$?:ready> ", "TERM": "dumb", "HISTFILE": ""}
    argv = [bash, "--norc", "--noprofile", "--noediting", "-i"]
    with spawn(argv, work_dir, environ=environ, on_terminal=True) as running:
        terminal = running.terminal
        terminal.expect("0:ready> ", 20)
        terminal.type(f"{' '.join(RUN)} sleep 1000\n")
        sleep = foreground(running, "sleep")
        entry = sleep.ppid()
        os.kill(entry, signal.SIGTSTP)
        terminal.expect(rf"Stopped .*\r\n{128 + signal.SIGSTOP}:ready> ")
        wait_until(lambda: (state_of(entry), state_of(sleep.pid)) == ("T", "T"), what="both stopped")
        terminal.type("fg\n")
        wait_until(lambda: (state_of(entry), state_of(sleep.pid)) == ("S", "S"), what="both resumed")
        os.kill(entry, signal.SIGTERM)
        terminal.expect("143:ready> ")


# ------------------------------------------------------------------------------------------------- beside its peers

PEERS = {"tini": ("tini", "-g", "--"), "dumb-init": ("dumb-init", "--")}
STATUS_SCENARIOS = {
    "success": ("true",),
    "failure": ("sh", "-c", "exit 3"),
    "killed": ("sh", "-c", "kill -9 $$"),
    "terminated": ("sh", "-c", "kill -15 $$"),
    "leaves orphans": ("sh", "-c", "setsid sleep 1000 & sleep 0 & exit 9"),
}
# tini leaves those that tell of a fault in itself to the kernel, and dumb-init makes SIGTSTP and its kin a SIGSTOP.
PEER_SIGNALS = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGIO,
    signal.SIGPWR,
]


def peer_argv(peer: str) -> tuple[str, ...]:
    if shutil.which(PEERS[peer][0]) is None:
        pytest.skip(f"{peer} is not installed (package {peer})")
    return PEERS[peer]


def exit_status(work_dir: Path, init: tuple[str, ...], command: tuple[str, ...]) -> int:
    with spawn([*init, *command], work_dir) as running:
        return running.wait()


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("scenario", STATUS_SCENARIOS)
def test_exit_status_beside_peer_is_the_same(work_dir: Path, peer: str, scenario: str) -> None:
    command = STATUS_SCENARIOS[scenario]
    assert exit_status(work_dir, RUN, command) == exit_status(work_dir, peer_argv(peer), command)


@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command", "/etc/passwd"])
def test_exit_status_command_cannot_run_is_tinis(work_dir: Path, command: str) -> None:
    """dumb-init has 2 for all of these; tini's are those of a shell."""
    assert exit_status(work_dir, RUN, (command,)) == exit_status(work_dir, peer_argv("tini"), (command,))


def record_all(work_dir: Path, init: tuple[str, ...]) -> dict[str, list[int]]:
    with private_dir() as path, spawn_recorder(path, init) as running:
        wait_recorder(path)
        for count, number in enumerate(PEER_SIGNALS, start=1):
            running.send(number)
            for who in ("main", "child"):
                wait_until(lambda who=who, count=count: len(recorded(path, who)) >= count, what=name_of(number))
        return {who: recorded(path, who) for who in ("main", "child")}


@pytest.mark.parametrize("peer", PEERS)
def test_signals_beside_peer_are_forwarded_alike(work_dir: Path, peer: str) -> None:
    assert record_all(work_dir, RUN) == record_all(work_dir, peer_argv(peer))


def suspend_states(work_dir: Path, init: tuple[str, ...], number: int, pid1: bool) -> list[tuple[str, str]]:
    with spawn([*init, "sleep", "1000"], work_dir, pid1=pid1) as running:
        sleep = wait_until(lambda: [child for child in running.children() if child.name() == "sleep"], 15, "sleep")[0]
        running.send(number)
        wait_until(lambda: state_of(sleep.pid) == "T", what="the command stopped")
        stopped = (wait_settled(running.pid), state_of(sleep.pid))
        running.send(signal.SIGCONT)
        wait_until(lambda: state_of(sleep.pid) == "S", what="the command resumed")
        return [stopped, (wait_settled(running.pid), state_of(sleep.pid))]


def wait_settled(pid: int) -> str:
    """The state of a process once it neither runs nor is about to."""
    return wait_until(lambda: state_of(pid) if state_of(pid) in "ST" else "", what=f"{pid} at rest")


@pytest.mark.parametrize("number", SUSPEND, ids=name_of)
@pytest.mark.parametrize("pid1", [True, False], ids=["pid1", "not-pid1"])
def test_suspend_beside_dumb_init_is_the_same(work_dir: Path, number: int, pid1: bool) -> None:
    expected = suspend_states(work_dir, peer_argv("dumb-init"), number, pid1)
    assert suspend_states(work_dir, RUN, number, pid1) == expected
