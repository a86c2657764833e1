"""Facts of this machine for the checks of a config: files, ports, programs, GPUs. Reads; `keep` alone writes."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from infer_dev_entry.config.facts import Gpu, Secret
from infer_dev_entry.config.faults import render_source
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.port_holder import describe_stranger, is_port_free
from infer_dev_entry.private_log import log_file_problem
from infer_dev_entry.procaccess import marks_above
from infer_dev_entry.regular_file import read_regular
from infer_dev_entry.sglang_source import read_args_source

MAX_CONFIG_BYTES = 1024 * 1024
CACHE_NAME = ".sglang-flags.cache"  # beside the marker: it lives and dies with the environment that it describes
_MAX_CACHE_BYTES = 4 * 1024 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


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
        self._is_free = is_free or is_port_free
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
        return describe_stranger(port, self._is_ours, self._proc)

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
            data, info = read_regular(path, _MAX_SECRET_BYTES + 1)
            text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            return Secret(problem=(error.strerror or str(error)).lower())
        except ValueError:
            return Secret(problem="it is not UTF-8 text")
        if len(data) > _MAX_SECRET_BYTES:
            return Secret(problem=f"it is larger than {_MAX_SECRET_BYTES} bytes")
        return Secret(text=text, warning="can be read by every user" if info.st_mode & stat.S_IROTH else "")

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
        return read_args_source(python)

    def recall(self, key: str) -> str:
        """The text of the cache file, when it is there and was kept under this key."""
        try:
            data, _ = read_regular(f"{self._cache_dir}/{CACHE_NAME}", _MAX_CACHE_BYTES)
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
