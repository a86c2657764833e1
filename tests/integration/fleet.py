"""A real fleet under `infer-dev entry`, as PID 1 of a PID namespace of its own, watched and hurt from outside.

Everything of a fleet is below one short directory in /tmp: a unix socket's path has room for 107 bytes. Pids in its
status are those of the namespace; `host_pid` finds the process behind one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from wait import wait_until

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import NotRunningError

T = TypeVar("T")

TESTS_DIR = Path(__file__).resolve().parent.parent
INFER_DEV = (sys.executable, "-m", "infer_dev_entry")
PREFIX = "AUTO_INFER_SGLANG_"
SYSTEM_PYTHON = "/usr/bin/python3"

# A loaded machine stalls a healthy server for seconds, and one answer too late makes it unhealthy. Readiness is probed
# every second all the same, a death is seen at once, and hangs are tested with a timing of their own.
PROBE = {"startup_deadline_s": 60, "period_s": 5.0, "timeout_s": 4.5, "failure_threshold": 5}
RESTART = {"backoff_initial_s": 0.2, "backoff_max_s": 1.0, "reset_after_s": 60, "max_restarts": 20}

# The holder of a namespace in which entries are not PID 1: it only reaps, as a container's init does.
_HOLDER = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
while True:
    signal.sigwait([signal.SIGCHLD])
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


@lru_cache
def skip_reason() -> str:
    """Say why no namespace can be had here, or ""."""
    if os.geteuid() != 0:
        return "PID and mount namespaces need root"
    missing = [program for program in ("unshare", "nsenter", "mount") if not shutil.which(program)]
    if missing:
        return f"util-linux is not installed: {', '.join(missing)} is missing"
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, timeout=30)
    return "" if probe.returncode == 0 else f"unshare fails: {probe.stderr.decode().strip()}"


def free_ports(count: int = 1) -> list[int]:
    """Return consecutive ports that nobody uses now."""
    for _ in range(100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(_bound(0)).getsockname()[1]
            for port in range(first + 1, first + count):
                stack.enter_context(_bound(port))
            return list(range(first, first + count))
    raise AssertionError(f"found no {count} free ports in a row")


def free_port() -> int:
    """Return a port that nobody uses now."""
    return free_ports()[0]


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


# ------------------------------------------------------------------------------------------------------- the TOML


def render_toml(value: object) -> str:
    """Render a scalar or list as a TOML value; JSON's strings are TOML's but for DEL."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def server(
    name: str,
    port: int,
    *extra_args: str,
    flags: Mapping[str, object] = {},
    **tables: Mapping[str, object],
) -> str:
    """Render one instance of the fake server: its own words, further SGLang flags, and other tables by name."""
    given: dict[str, Mapping[str, object]] = {
        "server": {"model_path": "fake/model", "port": port, **flags, "extra_args": list(extra_args)},
        "probe": {**PROBE, **tables.pop("probe", {})},
        "restart": {**RESTART, **tables.pop("restart", {})},
        **tables,
    }
    lines = []
    for table, keys in given.items():
        lines.append(f"[instance.{name}.{table}]")
        lines += [f"{key} = {render_toml(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a namespace: `pid` as we see it, `inner_pid` as the namespace does."""

    pid: int
    inner_pid: int
    parent: int
    state: str
    uid: int
    argv: tuple[str, ...]


def read_namespace(pid: int) -> str:
    """Return the PID namespace of a process, or "" when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def read_process(pid: int) -> Process | None:
    """Read a process, or None when it is gone."""
    try:
        rows = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines())
        status = {key: value.split() for key, _, value in rows}
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return None
    return Process(
        pid=pid,
        inner_pid=int(status["NSpid"][-1]),
        parent=int(status["PPid"][0]),
        state=status["State"][0],
        uid=int(status["Uid"][0]),
        argv=tuple(argv),
    )


def read_members(namespace: str) -> list[Process]:
    """Return every process of a PID namespace."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    found = [read_process(pid) for pid in pids if namespace and read_namespace(pid) == namespace]
    return [process for process in found if process is not None]


def only_child(pid: int) -> int:
    """Return the one child of a process, or 0."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return 0


# ---------------------------------------------------------------------------------------------------------- fleets


class Fleet:
    """One fleet with its directory. `pid` is PID 1's pid out here; `root` is a prefix that sees its mounts."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.run_dir = base / "run"
        self.log_dir = base / "log"
        self.config = base / "fleet.toml"
        self.event_log = base / "events"
        self.stdout = base / "stdout"
        self.pid = 0
        self.init_pid = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.namespace = ""
        self._holder: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        (base / "tmp").mkdir(mode=0o1777)
        (base / "tmp").chmod(0o1777)
        foreign = ("AUTO_INFER_", "INFER_DEV_", "PYTEST", "COV_")
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {
            "INFER_DEV_RUN_DIR": str(self.run_dir),
            "INFER_DEV_LOG_FORMAT": "json",
            "TMPDIR": str(base / "tmp"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS_DIR), os.environ.get("PYTHONPATH", "")))),
        }

    # -- its life

    def write(
        self,
        *servers: str,
        control: Mapping[str, object] = {},
        master: Mapping[str, object] = {},
        name: str = "fleet.toml",
    ) -> Path:
        """Write a TOML of these servers and return its path; `fleet.toml` is what the entry is started with."""
        tables = {
            "master": {"python_path": sys.executable, "server_module": "fake_server", **master},
            "instance.control": {"log_dir": str(self.log_dir), "gpu_ids": "none", **control},
        }
        head = [
            f"[{table}]\n" + "\n".join(f"{key} = {render_toml(value)}" for key, value in keys.items()) + "\n"
            for table, keys in tables.items()
        ]
        path = self.base / name
        path.write_text("\n".join([*head, *servers]), encoding="utf-8")
        return path

    def wrap(self, name: str, script: str) -> dict[str, str]:
        """Write an interpreter that runs some shell before it becomes Python; returns the control key that uses it."""
        path = self.base / f"python-{name}"
        path.write_text(f'#!/bin/sh\nPYTHON={sys.executable}\n{script}\nexec "$PYTHON" "$@"\n')
        path.chmod(0o755)
        return {"python_path": str(path)}

    def start(
        self,
        *command: str,
        prelude: str = "",
        stderr: int | None = None,
        stdout: int | None = None,
        **environ: str,
    ) -> None:
        """Start an entry as PID 1 with the TOML written before; `prelude` is shell that runs first, in its mounts."""
        shell = ("sh", "-ec", f'{prelude}\nexec "$@"', "sh") if prelude else ()
        unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        words = (*unshare, *shell, *INFER_DEV, "entry", *command)
        self.pid = self._enter(self.spawn(words, stderr=stderr, stdout=stdout, **environ))

    def start_inside(self, *command: str, **environ: str) -> None:
        """Start an entry that is not PID 1: the namespace has a reaper of its own, which outlives it."""
        self.hold()
        nsenter = self.spawn((*self.inside(), *INFER_DEV, "entry", *command), **environ)
        self.pid = self.wait(lambda: only_child(nsenter.pid), 30, "the entry's process")

    def hold(self) -> None:
        """Make a namespace in which commands can be run with `inside`."""
        if self._holder is None:
            command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", _HOLDER)
            holder = self._holder = subprocess.Popen(command, env=self.environ, start_new_session=True)
            self._enter(holder)

    def _enter(self, unshare: subprocess.Popen[bytes]) -> int:
        """Learn the first process of a new namespace."""
        self.init_pid = self.wait(lambda: only_child(unshare.pid), 30, "the namespace's first process")
        self.namespace = self.wait(lambda: read_namespace(self.init_pid), 30, "the namespace")
        return self.init_pid

    def inside(self) -> tuple[str, ...]:
        """Return the words that run a command in the namespace, as `docker exec` does."""
        return ("nsenter", "-t", str(self.init_pid), "--pid", "--mount", "--")

    def spawn(
        self, command: Sequence[str], *, stderr: int | None = None, stdout: int | None = None, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Spawn a process that is ended with the fleet; its stderr is the event log."""
        gates = {PREFIX + "ON_BOOT": "1", PREFIX + "CONFIG": str(self.config)}
        with open(self.event_log, "ab") as events, open(self.stdout, "ab") as output:
            self.process = subprocess.Popen(
                command,
                env=self.environ | gates | environ,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=events if stderr is None else stderr,
                cwd=self.base,  # not the source tree: what is installed is tested
                start_new_session=True,
            )
        self._others.append(self.process)
        return self.process

    def spawn_inside(self, *words: str) -> subprocess.Popen[bytes]:
        """Run Python with these words in the namespace, as a process that the fleet knows nothing of."""
        command = [*self.inside(), sys.executable, *words]
        process = subprocess.Popen(command, env=self.environ, cwd=self.base, stdin=subprocess.DEVNULL)
        self._others.append(process)
        return process

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal a process of the namespace by its pid out here.

        Raises:
            ProcessLookupError: it is gone.
        """
        namespace = read_namespace(pid)
        if not namespace:
            raise ProcessLookupError(f"{pid} is gone")
        assert namespace == self.namespace, f"{pid} is none of ours"
        os.kill(pid, number)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Signal the entry and return its exit code."""
        os.kill(self.pid, number)
        return self.wait_exit(timeout_s)

    def wait_exit(self, timeout_s: float = 30) -> int:
        """Return the entry's exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the entry did not end within {timeout_s:g} s\n{self.tail()}") from error

    def close(self) -> None:
        """End whatever is left of it: with its PID 1 a namespace dies."""
        for process in (*self._others, *([self._holder] if self._holder else [])):
            if process.poll() is None:
                process.kill()
            process.wait(30)
        wait_until(lambda: not self.members(), 30, "the namespace to be gone")

    # -- its view of itself

    def ask(self, op: str = "status", **request: Any) -> dict[str, Any]:
        """Ask through the control socket; an entry that does not answer (yet) gives {}."""
        try:
            return ask(self.environ, {"op": op, **request})
        except NotRunningError:
            return {}

    def look_at(self, run_dir: Path) -> None:
        """Find the control socket elsewhere: the fleet has mounts that are not ours."""
        self.environ["INFER_DEV_RUN_DIR"] = str(run_dir)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return every server's row of `status` by name."""
        return {row["name"]: row for row in self.ask().get("servers", ())}

    def row(self, name: str) -> dict[str, Any]:
        """Return one server's row, or {}."""
        return self.rows().get(name, {})

    def cli(self, *args: str, timeout_s: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run an `infer-dev` command in the namespace, to its end."""
        return subprocess.run(
            [*self.inside(), *INFER_DEV, *args],
            env=self.environ | environ,
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def events(self, event: str = "", server: str = "") -> list[dict[str, Any]]:
        """Return the events that were logged so far, of one kind and of one server if given."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.event_log.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return [
            item
            for item in found
            if isinstance(item, dict)
            and (not event or item.get("event") == event)
            and (not server or item.get("server") == server)
        ]

    def log_of(self, name: str) -> str:
        """Return a server's log."""
        with contextlib.suppress(FileNotFoundError):
            return (self.log_dir / f"sglang-server-{name}.log").read_text(errors="replace")
        return ""

    def tail(self) -> str:
        """Return what a person needs to understand a failed wait."""
        with contextlib.suppress(OSError):
            return "\n".join(self.event_log.read_text(errors="replace").splitlines()[-40:])
        return ""

    # -- waiting

    def wait(self, predicate: Callable[[], T], timeout_s: float = 30, what: str = "") -> T:
        """Wait as `wait_until` does; a failure shows the last events."""
        try:
            return wait_until(predicate, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from error

    def wait_state(self, name: str, *states: str, reason: str = "", timeout_s: float = 30) -> dict[str, Any]:
        """Wait until a server is in one of these states with this in its reason, and return its row."""
        return self.wait(
            lambda: (row := self.row(name)) and row["state"] in states and reason in row["reason"] and row,
            timeout_s,
            f"{name} to be {states} {reason}",
        )

    def wait_ready(self, *names: str, timeout_s: float = 60) -> dict[str, dict[str, Any]]:
        """Wait until these servers, or all there are, are ready; return the rows."""

        def ready() -> dict[str, dict[str, Any]]:
            rows = self.rows()
            chosen = [rows.get(name, {}) for name in names or rows]
            return rows if chosen and all(row.get("state") == "ready" for row in chosen) else {}

        return self.wait(ready, timeout_s, f"{names or 'all'} to be ready")

    def wait_again(self, name: str, old_pid: int, timeout_s: float = 40) -> dict[str, Any]:
        """Wait until a server is ready in a new process, and return its row."""
        return self.wait(
            lambda: (row := self.row(name)) and row["pid"] not in (None, old_pid) and row["state"] == "ready" and row,
            timeout_s,
            f"{name} to be ready anew",
        )

    def wait_event(
        self, event: str, server: str = "", *, count: int = 1, timeout_s: float = 30, **fields: Any
    ) -> dict[str, Any]:
        """Wait until such an event was logged `count` times, and return the last of them."""

        def find() -> dict[str, Any]:
            found = [item for item in self.events(event, server) if fields.items() <= item.items()]
            return found[-1] if len(found) >= count else {}

        return self.wait(find, timeout_s, f"event {event} of {server or 'any'} {fields or ''}")

    # -- its processes, from out here

    def members(self, *, zombies: bool = False) -> list[Process]:
        """Return every process of the namespace."""
        return [member for member in read_members(self.namespace) if zombies or member.state not in "ZX"]

    def host_pid(self, inner_pid: int) -> int:
        """Return the pid out here of a process that the namespace knows as `inner_pid`, or 0."""
        return next((member.pid for member in self.members() if member.inner_pid == inner_pid), 0)

    def kill_server(self, name: str, number: int = signal.SIGKILL) -> int:
        """Signal a server's main process, and return the pid that the namespace knows it by."""
        inner_pid = int(self.row(name)["pid"])
        self.kill(self.host_pid(inner_pid), number)
        return inner_pid

    def find_processes(self, *words: str) -> list[Process]:
        """Return the processes of the namespace whose command line holds all these words."""
        return [member for member in self.members() if all(word in member.argv for word in words)]

    def supervisor(self) -> Process:
        """Return the running supervisord."""
        return self.wait(
            lambda: next(iter(self.find_processes("supervisor.supervisord")), None), 30, "supervisord to run"
        )


def get(port: int, path: str = "/health", timeout_s: float = 10.0) -> tuple[int, bytes]:
    """GET from a server here; (0, why) when there is no HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


class Watcher:
    """Asks a server all the time, from a thread, while the block runs; `failures` says what it answered instead."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.good = 0
        self.failures: list[tuple[int, bytes]] = []

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            status, body = get(self._port, timeout_s=10)
            if status == 200:
                self.good += 1
            else:
                self.failures.append((status, body))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(15)

    @property
    def never_failed(self) -> bool:
        """True when it answered, and always well."""
        return self.good > 0 and not self.failures
