"""The managers that are compared: ours, supervisord alone and s6, each PID 1 of a namespace, with the same servers."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import Arrivals, free_ports, write_child
from benchmarks.processes import Namespace, now_s


def has_s6() -> bool:
    """True when s6 is installed."""
    return shutil.which("s6-svscan") is not None


def entry_argv() -> tuple[str, ...]:
    """Return the command that an image has as its ENTRYPOINT."""
    script = Path(sys.executable).with_name("infer-dev")
    return (str(script), "entry") if script.exists() else (sys.executable, "-m", "infer_dev_entry", "entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """A running manager: its namespace, and its servers by port with their announcements."""

    space: Namespace
    ports: tuple[int, ...]
    arrivals: Arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of our log, with the time at which it came."""

    at_s: float
    data: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Events:
    """Collects our log as it is written."""

    seen: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, handle: int) -> None:
        """Read to the end; runs in a thread."""
        with open(handle, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                at_s = now_s()
                try:
                    data = json.loads(line)
                except ValueError:
                    data = {"event": line.strip()}
                with self.changed:
                    self.seen.append(Event(at_s=at_s, data=data))
                    self.changed.notify_all()

    def wait(self, event: str, *, after_s: float = 0.0, timeout_s: float = 30.0, **fields: object) -> Event:
        """Wait for the first event of that name and those fields after a moment.

        Raises:
            TimeoutError: it does not come; the message ends with the last events.
        """

        def find() -> Event | None:
            wanted = {"event": event, **fields}
            return next(
                (item for item in self.seen if item.at_s > after_s and wanted.items() <= item.data.items()), None
            )

        with self.changed:
            found = self.changed.wait_for(find, timeout_s)
        if found is None:
            last = "; ".join(json.dumps(item.data) for item in self.seen[-3:])
            raise TimeoutError(f"no {event} within {timeout_s:g} s; the last: {last}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedByUs(Managed):
    """Our manager, with its log. The server on `ports[i]` is called `w<i>`."""

    events: Events


@contextmanager
def private_dir() -> Iterator[Path]:
    """Make a directory whose path is short enough for unix sockets, and remove it."""
    with tempfile.TemporaryDirectory(prefix="ib-", dir="/tmp") as name:
        yield Path(name)


def render_fleet(program: str, ports: Sequence[int], directory: Path, tables: str, engine: str) -> str:
    """Render the TOML of a fleet of `w0`, `w1`…; `tables` is added, with `{name}` replaced, for each."""
    key, flag = ("binary", "model") if engine == "llama_cpp" else ("python_path", "model_path")
    text = (
        f'[instance.control]\nengine = "{engine}"\n{key} = "{program}"\nlog_dir = "{directory}"\ngpu_ids = "none"\n'
        f'[instance.server]\n{flag} = "/dev/null"\n'
    )
    for index, port in enumerate(ports):
        text += f"[instance.w{index}.server]\nport = {port}\n" + tables.format(name=f"w{index}")
    return text


@contextmanager
def run_ours(
    kind: str, count: int, tables: str = "", *, engine: str = "llama_cpp", gateway: str = ""
) -> Iterator[ManagedByUs]:
    """Run `infer-dev entry` with `count` servers of a kind of child, and with the table `gateway` if it is given."""
    with private_dir() as directory:
        program, arrivals = write_child(directory, kind)
        ports = free_ports(count)
        config = directory / "fleet.toml"
        config.write_text(render_fleet(program, ports, directory, tables, engine) + gateway, encoding="utf-8")
        with run_entry(directory, config) as (space, events):
            yield ManagedByUs(space=space, ports=ports, arrivals=arrivals, events=events)


@contextmanager
def run_entry(directory: Path, config: Path) -> Iterator[tuple[Namespace, Events]]:
    """Run `infer-dev entry` with a TOML; all that it makes is in the directory."""
    foreign = ("AUTO_INFER_", "INFER_DEV_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environ = kept | {
        "AUTO_INFER_SGLANG_ON_BOOT": "1",
        "AUTO_INFER_SGLANG_CONFIG": str(config),
        "AUTO_INFER_SGLANG_ON_ERROR": "exit",
        "AUTO_INFER_SGLANG_USER": pwd.getpwuid(os.geteuid()).pw_name,
        "INFER_DEV_RUN_DIR": str(directory / "run"),
        "INFER_DEV_LOG_FORMAT": "json",
        "TMPDIR": str(directory),
    }
    events = Events()
    reader, writer = os.pipe()
    try:
        space = Namespace(entry_argv(), environ=environ, stderr=writer)
    finally:
        os.close(writer)
    listener = threading.Thread(target=events.read, args=(reader,), daemon=True)
    listener.start()
    with space:
        yield space, events


@contextmanager
def run_supervisord(
    kind: str, count: int, *, stop_wait_s: int = 10, one_group: bool = False, extra: str = ""
) -> Iterator[Managed]:
    """Run supervisord alone, which starts and restarts the servers itself; `extra` is added to every program."""
    with private_dir() as directory:
        program, arrivals = write_child(directory, kind)
        ports = free_ports(count)
        names = [f"w{index}" for index in range(count)]
        text = (
            f"[supervisord]\nnodaemon=true\nsilent=true\nlogfile={directory}/supervisord.log\n"
            f"pidfile={directory}/supervisord.pid\nchildlogdir={directory}\n"
            f"[unix_http_server]\nfile={directory}/supervisor.sock\nchmod=0700\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        )
        text += f"[group:all]\nprograms={','.join(names)}\n" if one_group else ""
        for name, port in zip(names, ports, strict=True):
            text += (
                f"[program:{name}]\ncommand={program} --port {port}\nautorestart=true\nredirect_stderr=true\n"
                f"stdout_logfile={directory}/{name}.log\nstopwaitsecs={stop_wait_s}\n{extra}"
            )
        conf = directory / "supervisord.conf"
        conf.write_text(text, encoding="utf-8")
        argv = (sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf))
        with Namespace(argv) as space:
            yield Managed(space=space, ports=ports, arrivals=arrivals)


@contextmanager
def run_s6(kind: str, count: int, *, stop_wait_s: int = 10, notify: bool = False) -> Iterator[Managed]:
    """Run s6-svscan over one service directory a server; with `notify` a server says at once that it is ready."""
    with private_dir() as directory:
        program, arrivals = write_child(directory, kind)
        ports = free_ports(count)
        for index, port in enumerate(ports):
            service = directory / "scan" / f"w{index}"
            service.mkdir(parents=True)
            run = service / "run"
            ready = "echo >&3\nexec 3>&-\n" if notify else ""
            run.write_text(f"#!/bin/sh\n{ready}exec {program} --port {port}\n", encoding="utf-8")
            run.chmod(0o755)
            if notify:
                (service / "notification-fd").write_text("3\n", encoding="utf-8")
            (service / "timeout-kill").write_text(f"{stop_wait_s * 1000}\n", encoding="utf-8")
        with Namespace(("s6-svscan", str(directory / "scan"))) as space:
            yield Managed(space=space, ports=ports, arrivals=arrivals)


def is_unshare_allowed() -> bool:
    """True when we may make PID namespaces, which every benchmark of a running manager needs."""
    from benchmarks.processes import UNSHARE

    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
