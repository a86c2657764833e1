"""Facts of this machine for the checks of a config: files, ports, programs, GPUs. Reads; `keep` alone writes."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import socket
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from infer_dev_entry.config.facts import Gpu, Secret
from infer_dev_entry.config.faults import render_source
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.private_log import log_file_problem
from infer_dev_entry.procaccess import marks_above, read_links

MAX_CONFIG_BYTES = 1024 * 1024
CACHE_NAME = ".sglang-flags.cache"  # beside the marker: it lives and dies with the environment that it describes
_MAX_CACHE_BYTES = 4 * 1024 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_LISTEN = "0A"
_SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_DECLARES_FLAGS = (" A[", " Annotated[", ".add_argument(", "_CHOICES = ")
_PARSER_LISTS = (
    ("function_call/parser_names.py", "function_call/function_call_parser.py"),
    ("parser/reasoning_parser_names.py", "parser/reasoning_parser.py"),
)


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
        environ: Mapping[str, str] | None = None,
        cache_dir: str = "",
    ) -> None:
        self._own_mark = own_mark
        self._gpu_door = gpu_door or GpuDoor()
        self._is_free = is_free or _is_free
        self._proc = Path(proc)
        self._environ = environ or {}
        self._cache_dir = cache_dir
        self._gpus: tuple[Gpu, ...] | None = None
        self._asked_gpus = False

    def gpus(self) -> tuple[Gpu, ...] | None:
        """The GPUs, asked for once; None without a driver."""
        if not self._asked_gpus:
            self._asked_gpus = True
            self._gpus = self._gpu_door.inventory()
        return self._gpus

    def close(self) -> None:
        """Close the connection to the driver, if one was opened; the next question opens it again."""
        self._gpu_door.close()

    def held_bytes(self, units: Sequence[str], running: Collection[str]) -> Mapping[str, int]:
        """How many bytes others hold of GPUs; the driver hides the processes of other containers, not their bytes.

        Where it shows one process of ours it shows them all, and what no process accounts for is others'.
        """
        from infer_dev_entry.gpu_look import describe_holder

        gpus = self._gpu_door.look(tuple(units), describe_holder).gpus
        ours = {holder.pid for gpu in gpus for holder in gpu.holders if self._is_ours(holder.pid)}
        may_hide = () if ours else running
        held: dict[str, int] = {}
        for gpu in gpus:
            unit = gpu.label.removeprefix("GPU ")
            foreign = sum(holder.used_bytes for holder in gpu.holders if holder.pid not in ours)
            held[unit] = foreign + (0 if unit in may_hide else gpu.unaccounted_bytes)
        return held

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
        own = self._own_mark
        return own is not None and any(mark.startswith(own) for mark in marks_above(pid, self._proc))

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
        if os.access(target, os.W_OK | os.X_OK):
            return None
        is_read_only = os.statvfs(target).f_flag & os.ST_RDONLY
        return f"{target} is on a read-only filesystem" if is_read_only else f"no permission to write to {target}"

    def log_file_problem(self, path: str) -> str | None:
        """Why what lies at this path cannot be a log file."""
        return log_file_problem(path)

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

    file_problem = model_problem

    def find_program(self, name: str) -> str:
        """The absolute path of a program; PATH of a user who is not root often lacks where daemons are."""
        import shutil

        path = os.pathsep.join((self._environ.get("PATH", os.defpath), *_SYSTEM_PATHS))
        return shutil.which(name, path=path) or name

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

    def secret_file(self, path: str) -> Secret:
        """Read a key from a small regular file."""
        try:
            data, mode = _read_regular(path, _MAX_SECRET_BYTES + 1)
            text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            return Secret(problem=(error.strerror or str(error)).lower())
        except ValueError:
            return Secret(problem="it is not UTF-8 text")
        if len(data) > _MAX_SECRET_BYTES:
            return Secret(problem=f"it is larger than {_MAX_SECRET_BYTES} bytes")
        return Secret(text=text, warning="can be read by every user" if mode & stat.S_IROTH else "")

    def secret_variable(self, name: str) -> Secret:
        """Take a key from the environment that was given."""
        text = self._environ.get(name)
        return Secret(problem="it is not set") if text is None else Secret(text=text)

    def variable(self, name: str) -> str | None:
        """What a variable holds in the environment that was given."""
        return self._environ.get(name)

    def knows_variables(self) -> bool:
        """True: it is this machine's."""
        return True

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

    def recall(self, key: str) -> str:
        """The text of the cache file, when it is there and was kept under this key."""
        try:
            data, _ = _read_regular(f"{self._cache_dir}/{CACHE_NAME}", _MAX_CACHE_BYTES)
            head, _, text = data.decode("utf-8").partition("\n")
        except (OSError, ValueError):
            return ""
        return text if head == key else ""

    def keep(self, key: str, text: str) -> None:
        """Replace the cache file. Where that is not possible (a read-only mount) the next run works it out again."""
        if not self._cache_dir:
            return
        import tempfile  # costs 10 ms, and PID 1 imports this module

        path = f"{self._cache_dir}/{CACHE_NAME}"
        with contextlib.suppress(OSError):
            # A new file of our own: the servers' user owns the directory, and we may be root.
            handle, temporary = tempfile.mkstemp(prefix=f"{CACHE_NAME}.", dir=self._cache_dir)
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(f"{key}\n{text}")
                os.replace(temporary, path)
            except OSError:
                os.unlink(temporary)


def _read_regular(path: str, limit: int) -> tuple[bytes, int]:
    """Read the beginning of a regular file, with its mode. A FIFO that somebody has put there must not hang us.

    Raises:
        OSError: it cannot be read, or is something else.
        ValueError: the path holds a NUL.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a file")
        parts = []
        while limit > 0 and (part := os.read(file, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts), mode
    finally:
        os.close(file)


def _read_sources(srt: Path) -> str:
    """The modules that declare flags and list their choices, as one text; that of other modules would cost time."""
    texts = [path.read_text("utf-8") for path in sorted((srt / "arg_groups").glob("**/*.py"))]
    texts = [text for text in texts if any(mark in text for mark in _DECLARES_FLAGS)]
    for names, registry in _PARSER_LISTS:  # newer versions keep the names in a small module of their own
        path = next((path for name in (names, registry) if (path := srt / name).exists()), None)
        texts += [path.read_text("utf-8")] if path else []
    return "\n".join([*texts, (srt / "server_args.py").read_text("utf-8")])


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


def _pid_of_socket(proc: Path, inode: str) -> int | None:
    link = f"socket:[{inode}]"
    for process in proc.iterdir():
        if process.name.isdecimal():
            try:
                if link in read_links(process):
                    return int(process.name)
            except OSError:
                continue
    return None


def _command_name(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"
