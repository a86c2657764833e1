"""Facts of this machine for the checks of a config: files, ports, programs, packages, GPUs. Reads, never changes."""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from infer_dev_entry.config.facts import Gpu
from infer_dev_entry.config.faults import render_source
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.settings import MARK_VARIABLE

_MAX_ANCESTORS = 64
MAX_CONFIG_BYTES = 1024 * 1024
_LISTEN = "0A"


def read_config(path: str) -> str:
    """Read a config file.

    Raises:
        ConfigError: it is missing, no file, unreadable, too large, or not UTF-8.
    """
    shown = render_source(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError((f"{shown}: cannot read it: {reason}; give the path of a TOML file",)) from error
    if size > MAX_CONFIG_BYTES:
        limit = f"the limit is {MAX_CONFIG_BYTES} bytes"
        raise ConfigError((f"{shown}: is {size} bytes large, and {limit}; is it a TOML config?",))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError((f"{shown}: line {line}: not UTF-8; save the file as UTF-8",)) from error


def expand_path(path: str) -> str:
    """Return the absolute path, with a leading `~` expanded."""
    return os.path.abspath(os.path.expanduser(path))


class LiveHost:
    """The machine we run on.

    `own_mark` says whose ports are not in the way: processes whose mark begins with it ("" takes any mark, None none).
    """

    def __init__(
        self,
        own_mark: str | None = None,
        gpu_door: GpuDoor | None = None,
        *,
        is_free: Callable[[str, int], bool] | None = None,
        proc: str = "/proc",
    ) -> None:
        self._own_mark = own_mark
        self._gpu_door = gpu_door or GpuDoor()
        self._is_free = is_free or _is_free
        self._proc = Path(proc)
        self._gpus: tuple[Gpu, ...] | None = None
        self._asked_gpus = False

    def gpus(self) -> tuple[Gpu, ...] | None:
        """The GPUs, asked for once; None without a driver."""
        if not self._asked_gpus:
            self._asked_gpus = True
            self._gpus = self._gpu_door.inventory()
            self._gpu_door.close()
        return self._gpus

    def expand(self, path: str) -> str:
        """The absolute path, with a leading `~` expanded."""
        return expand_path(path)

    def port_holder(self, host: str, port: int) -> str | None:
        """Who holds a port that a server on `host` needs; our own processes do not count."""
        if self._is_free(host, port):
            return None
        pids = [_pid_of_socket(self._proc, inode) for inode in _read_sockets(self._proc, port)]
        strangers = [pid for pid in pids if pid and not self._is_ours(pid)]
        if strangers:
            return f"pid {strangers[0]} ({_command_name(self._proc, strangers[0])})"
        return None if any(pids) else "another user's process, or one outside this container"

    def _is_ours(self, pid: int) -> bool:
        """Whether the process or one above it carries our mark; one that sets its title may have lost its own."""
        for _ in range(_MAX_ANCESTORS):
            if self._own_mark is None or pid <= 1:
                return False
            if self._is_marked(pid):
                return True
            pid = _parent_of(self._proc, pid)
        return False

    def _is_marked(self, pid: int) -> bool:
        needle = f"{MARK_VARIABLE}={self._own_mark}".encode()
        try:
            variables = (self._proc / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(item.startswith(needle) for item in variables)

    def model_problem(self, path: str) -> str | None:
        """Why a model file or directory cannot be read."""
        target = Path(os.path.expanduser(path))
        try:
            if not target.exists():
                return "no such file or directory"
        except OSError as error:
            return error.strerror or str(error)
        return None if os.access(target, os.R_OK) else "no permission to read it"

    def log_dir_problem(self, path: str) -> str | None:
        """Why files cannot be made in a directory, or the directory itself not be made."""
        target = Path(path)
        try:
            while not target.exists() and target != target.parent:
                target = target.parent
            if not target.is_dir():
                return f"{target} is not a directory"
        except OSError as error:
            return error.strerror or str(error)
        return None if os.access(target, os.W_OK | os.X_OK) else f"no permission to write to {target}"

    def program_problem(self, path: str) -> str | None:
        """Why a program, by path or by name, cannot be run."""
        if "/" not in path:
            import shutil

            return None if shutil.which(path) else "not found on PATH"
        target = Path(path)
        try:
            if not target.exists():
                return "no such file"
            if target.is_dir():
                return "it is a directory"
        except OSError as error:
            return error.strerror or str(error)
        return None if os.access(target, os.X_OK) else "it is not executable"

    def package_problem(self, name: str) -> str | None:
        """Why a distribution is not there for our own interpreter."""
        from importlib import metadata  # costs 15 ms, and PID 1 imports this module

        try:
            metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            return "not installed"
        return None

    def environment_has(self, python: str, name: str) -> bool:
        """Whether a distribution lies in the environment of an interpreter, by its files; nothing of it is run."""
        stem = re.sub(r"[-_.]+", "_", name).lower()
        pattern = f"lib/python3*/site-packages/{glob.escape(stem)}-*.dist-info"
        return "/" in python and any(Path(python).absolute().parent.parent.glob(pattern))

    def sglang_args_source(self, python: str) -> tuple[str, str] | None:
        """Find the SGLang of an interpreter's environment by its files; nothing of it is run."""
        if "/" not in python:
            return None
        for package in sorted(Path(python).absolute().parent.parent.glob("lib/python3*/site-packages/sglang")):
            versions = [
                entry.name.removeprefix("sglang-").removesuffix(".dist-info")
                for entry in package.parent.glob("sglang-*.dist-info")
            ]
            try:
                return (versions[0], _read_sources(package / "srt")) if versions else None
            except (OSError, ValueError):
                return None
        return None


def _read_sources(srt: Path) -> str:
    """The modules that declare flags, as one text: from 0.5.23 on the fields are in a package of their own."""
    parts = sorted((srt / "arg_groups").glob("**/*.py"))
    return "\n".join(path.read_text("utf-8") for path in [*parts, srt / "server_args.py"])


def _is_free(host: str, port: int) -> bool:
    """Ask the kernel by binding, as the server will; reading /proc takes milliseconds. Names are not resolved."""
    host = "127.0.0.1" if host == "localhost" else host.strip("[]") or "0.0.0.0"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            socket.inet_pton(probe.family, host)
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _read_sockets(proc: Path, port: int) -> list[str]:
    """Read the inodes of the TCP sockets on a local port, listening ones first."""
    found: list[tuple[bool, str]] = []
    needle = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        found += [(row[3] != _LISTEN, row[9]) for row in rows if len(row) > 9 and row[1].endswith(needle)]
    return [inode for _, inode in sorted(found) if inode != "0"]


def _parent_of(proc: Path, pid: int) -> int:
    """Return the parent's pid, or 0 when the process is gone."""
    try:
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _pid_of_socket(proc: Path, inode: str) -> int | None:
    link = f"socket:[{inode}]"
    for process in proc.iterdir():
        if process.name.isdecimal():
            try:
                if any(os.readlink(entry) == link for entry in os.scandir(process / "fd")):
                    return int(process.name)
            except OSError:
                continue
    return None


def _command_name(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"
