"""Run a program as PID 1 of a PID namespace of its own (or as a plain process), and look at it from outside.

Signals are sent from the host's side, as a container engine sends them. Killing `unshare` ends its whole namespace.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from fleet import skip_reason
from wait import wait_until

ENTRY = (sys.executable, "-m", "infer_dev_entry", "entry")

_SKIP_REASON = skip_reason()
needs_namespaces = pytest.mark.skipif(bool(_SKIP_REASON), reason=_SKIP_REASON)

# Takes every signal, one by one, and appends its number to the file argv[1]; argv[2] names the file of a child of it,
# in the same process group, that does the same. It ends on none of them. Both lines "ready" come last.
RECORDER = """
import os, signal, sys
every = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, every)
path = sys.argv[1]
if sys.argv[2:] and os.fork() == 0:
    path = sys.argv[2]
with open(path, "a", buffering=1) as file:
    print("ready", file=file)
    while True:
        number = int(signal.sigwait(every))
        if number != signal.SIGCHLD:
            print(number, file=file)
"""

# Makes argv[1] orphans (double forks), whose pids go to the file argv[2]. Every second one dies at once, the others
# when SIGUSR1 comes; then `done` is appended, and it waits for more signals.
ORPHAN_MAKER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
hold, release = os.pipe()
with open(sys.argv[2], "a", buffering=1) as file:
    for number in range(int(sys.argv[1])):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                print(os.getpid(), file=file)
                os.close(release)
                if number % 2:
                    os.read(hold, 1)
            os._exit(0)
        os.waitpid(middle, 0)
    print("made", file=file)
    signal.sigwait({signal.SIGUSR1})
    os.close(release)
    print("done", file=file)
signal.pause()
"""

# Execs argv[1:] with a child that is dead already and was never waited for.
ZOMBIE_HOLDER = """
import os, sys
child = os.fork()
if child == 0:
    os._exit(0)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
os.execv(sys.argv[1], sys.argv[1:])
"""

# A command line's prefix that has SIGCHLD ignored. Not the harness' own `ignored`: unshare(1) sets SIGCHLD back.
IGNORE_SIGCHLD = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])",
)


class Running:
    """A started program. `pid` is the host's pid of the program itself, not of the `unshare` around it."""

    def __init__(self, outer: subprocess.Popen[bytes], pid: int, work_dir: Path, terminal: Terminal | None) -> None:
        self.outer = outer
        self.pid = pid
        self.work_dir = work_dir
        self._terminal = terminal

    @property
    def terminal(self) -> Terminal:
        """The terminal that it runs on."""
        assert self._terminal is not None, "it was started without a terminal"
        return self._terminal

    def send(self, number: int) -> None:
        """Send a signal to the program from outside its namespace."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Return the exit code, as a container engine would see it."""
        try:
            status = self.outer.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tree = [(process.pid, process.name(), process.status()) for process in self.tree()]
            raise AssertionError(f"still running after {timeout_s:g} s: {tree}; stderr: {self.stderr()}") from None
        return status if status >= 0 else 128 - status

    def is_running(self) -> bool:
        """True while the program has not ended."""
        return self.outer.poll() is None

    def stdout(self) -> str:
        """What it has written to stdout so far; without a terminal only."""
        return (self.work_dir / "stdout").read_text(errors="replace")

    def stderr(self) -> str:
        """What it has written to stderr so far; without a terminal only."""
        return (self.work_dir / "stderr").read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        """The program's descendants. As PID 1 every process of its namespace descends from it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def children(self) -> list[psutil.Process]:
        """The program's own children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children()
        return []

    def zombies(self) -> list[int]:
        """The pids of dead descendants that nobody has waited for."""
        return [process.pid for process in self.tree() if state_of(process.pid) == "Z"]

    def find(self, word: str) -> list[psutil.Process]:
        """The living descendants whose command line holds `word`."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                if any(word in argument for argument in process.cmdline()):
                    found.append(process)
        return found

    def run_inside(self, argv: Sequence[str], timeout_s: float = 20.0) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside the namespaces of this PID 1, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--", *argv]
        return subprocess.run(enter, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)


class Terminal:
    """The far end of a pseudo terminal: what a person types, and all that was shown."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._shown = b""
        self._seen = 0
        self._over, self._end = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._master, select.POLLIN)
        poller.register(self._over, select.POLLIN)
        with contextlib.suppress(OSError):  # EIO: the last process that had it open is gone
            while self._over not in dict(poller.poll()) and (data := os.read(self._master, 65536)):
                self._shown += data

    def type(self, text: str) -> None:
        """Type; "\\x03" is Ctrl-C, "\\x1a" Ctrl-Z."""
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        """Wait until something new that matches is shown, and go on behind it."""

        def search() -> re.Match[str] | None:
            return re.search(pattern, self._shown[self._seen :].decode(errors="replace"))

        try:
            found = wait_until(search, timeout_s, f"{pattern!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; shown: {self.shown()!r}") from None
        assert found is not None
        # The text shown is ASCII but for what a test types itself, so that characters are bytes.
        self._seen += found.end()
        return found

    def shown(self) -> str:
        """All that was shown so far."""
        return self._shown.decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel sends SIGWINCH to the foreground process group."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def close(self) -> None:
        """Hang up."""
        if self._master >= 0:
            os.close(self._end)
            self._reader.join(5)  # while it reads, closing would not hang up
            os.close(self._over)
            os.close(self._master)
            self._master = -1


@contextlib.contextmanager
def private_dir() -> Iterator[Path]:
    """A short private directory: a unix socket's path holds at most 107 bytes, and pytest's own are longer."""
    path = Path(tempfile.mkdtemp(prefix="ide-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def clean_environ(work_dir: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without variables of the product, with a run directory below `work_dir`."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("AUTO_INFER_", "INFER_DEV_", "LC_"))
    }
    return environ | {"INFER_DEV_RUN_DIR": str(work_dir / "run"), "LANG": "C.UTF-8"} | dict(extra or {})


@contextlib.contextmanager
def spawn(
    argv: Sequence[str],
    work_dir: Path,
    *,
    environ: Mapping[str, str] | None = None,
    pid1: bool = True,
    on_terminal: bool = False,
    stdin: int = subprocess.DEVNULL,
    blocked: Sequence[int] = (),
    ignored: Sequence[int] = (),
) -> Iterator[Running]:
    """Run `argv` as a container's PID 1 (or, without `pid1`, as a session leader), and end all of it afterwards.

    `environ` is added to a clean environment. `blocked` and `ignored` are the signals that it inherits in that state.
    """
    # The program leads a session, as a container's first process does; with a terminal it is that session's.
    # setsid(1) forks only when it leads a process group, which it does not here.
    session = ["setsid", *(["--ctty"] if on_terminal else [])]
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *session] if pid1 else []
    if not pid1 and on_terminal:
        prefix = session
    with contextlib.ExitStack() as stack:
        terminal = None
        if on_terminal:
            master, slave = pty.openpty()
            terminal = Terminal(master)
            stack.callback(terminal.close)
            stack.callback(_close_quietly, slave)
            streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        else:
            out = stack.enter_context(open(work_dir / "stdout", "wb"))
            err = stack.enter_context(open(work_dir / "stderr", "wb"))
            streams = {"stdin": stdin, "stdout": out.fileno(), "stderr": err.fileno()}
        outer = subprocess.Popen(
            [*prefix, *argv],
            env=clean_environ(work_dir, environ),
            cwd=work_dir,
            start_new_session=not pid1 and not on_terminal,
            preexec_fn=lambda: _set_signals(blocked, ignored),
            **streams,
        )
        stack.callback(_end, outer, pid1)
        if terminal is not None:
            _close_quietly(slave)
        pid = _find_program(outer) if pid1 else outer.pid
        yield Running(outer, pid, work_dir, terminal)


def _set_signals(blocked: Sequence[int], ignored: Sequence[int]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by the Python that runs the tests
        signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _find_program(outer: subprocess.Popen[bytes]) -> int:
    """Return the pid of the one child of `unshare`."""

    def child() -> int:
        try:
            found = psutil.Process(outer.pid).children()
        except psutil.NoSuchProcess:
            found = []
        return found[0].pid if found else -1 if outer.poll() is not None else 0

    return wait_until(child, 10, "the child of unshare")


def _end(outer: subprocess.Popen[bytes], pid1: bool) -> None:
    """Kill the program with everything below it, and wait until it is gone."""
    below = []
    if not pid1:
        outer.send_signal(signal.SIGSTOP)  # a supervisor that lives on would start anew what is killed
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(outer.pid).children(recursive=True)
    if not pid1:
        outer.kill()
    # With PID 1 its namespace dies, and `unshare`, which is killed last, reaps it.
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        outer.wait(5 if below else 0)
    outer.kill()
    outer.wait(10)
    # A zombie is gone for our purpose: those below a program that was not PID 1 are reaped by the machine's own init.
    wait_until(lambda: all(state_of(process.pid) in ("", "Z") for process in below), what="the end of the program")


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def state_of(pid: int) -> str:
    """The state letter of a process (proc_pid_stat(5)), or "" when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def status_field(pid: int, name: str) -> str:
    """A field of /proc/PID/status, or "" when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""


def signal_set(pid: int, name: str) -> set[int]:
    """The signals in SigBlk, SigIgn or SigCgt of a process."""
    bits = int(status_field(pid, name) or "0", 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def foreground(running: Running, word: str) -> psutil.Process:
    """Wait until the process whose command line holds `word` is the terminal's foreground."""

    def find() -> psutil.Process | None:
        for process in running.find(word):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if fields[2] == fields[5] and process.name() == word:
                return process
        return None

    found = wait_until(find, what=f"{word} in the foreground")
    assert found is not None
    return found


def long_path() -> str:
    """A PATH so long that the search for a program takes a good while between fork and exec."""
    return ":".join(["/no"] * 30_000 + [os.environ.get("PATH", os.defpath)])


def lines_of(path: Path) -> list[str]:
    """The whole lines of a file that may not be there yet."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").split("\n")[:-1]
    return []


def spawn_recorder(
    work_dir: Path, init: Sequence[str] = (*ENTRY, "--"), **options: object
) -> contextlib.AbstractContextManager[Running]:
    """Run the recorder as the command of `init`; see `recorded` for what it got."""
    argv = [*init, sys.executable, "-c", RECORDER, str(work_dir / "main"), str(work_dir / "child")]
    return spawn(argv, work_dir, **options)  # type: ignore[arg-type]


def recorded(work_dir: Path, who: str) -> list[int]:
    """The signals that the recorder (`main`) or its child (`child`) has got so far."""
    return [int(line) for line in lines_of(work_dir / who) if line != "ready"]


def wait_recorder(work_dir: Path) -> None:
    """Wait until the recorder and its child take signals."""
    for who in ("main", "child"):
        wait_until(lambda who=who: "ready" in lines_of(work_dir / who), 15, f"the recorder's {who}")


def own_signals(mask: str) -> int:
    """Return a hexadecimal signal mask of /proc without 32 and 33, which are glibc's: no program can set them."""
    return int(mask, 16) & ~(3 << 31)
