"""The private run directory: where it is, and how it is made and locked. Standard library only; `entry` imports it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.variables import DEFAULT_RUN_DIR, PREFIX

# sockaddr_un holds 108 bytes with the final NUL (unix(7)); supervisord binds a longer temporary name beside its socket.
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = "supervisor.sock.4194304"


def default_run_dir(environ: Mapping[str, str]) -> str:
    """Return the run directory: INFER_DEV_RUN_DIR, else /run/infer-dev as root, else a private one."""
    chosen = environ.get("INFER_DEV_RUN_DIR", "").strip()
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return DEFAULT_RUN_DIR
    runtime_dir = environ.get("XDG_RUNTIME_DIR", "").strip()
    return f"{runtime_dir}/infer-dev" if runtime_dir else private_run_dir(os.geteuid())


def client_run_dir(environ: Mapping[str, str]) -> str:
    """Return the run directory of the entry that a command should ask.

    That is ours, else where only that one runs: root's, or for root that of the servers' user, who may have started a
    fleet by hand.
    """
    own = default_run_dir(environ)
    if environ.get("INFER_DEV_RUN_DIR", "").strip() or os.path.exists(control_socket(own)):
        return own
    other = _servers_user_run_dir(environ) if os.geteuid() == 0 else DEFAULT_RUN_DIR
    return other if other and os.path.exists(control_socket(other)) else own


def _servers_user_run_dir(environ: Mapping[str, str]) -> str:
    """Return the private run directory of the servers' user; "" when there is none, or it is another's."""
    import pwd

    with contextlib.suppress(KeyError, OSError):
        uid = pwd.getpwnam(environ.get(PREFIX + "USER", "").strip() or "me").pw_uid
        path = private_run_dir(uid)
        return path if os.lstat(path).st_uid == uid else ""
    return ""


def private_run_dir(uid: int) -> str:
    """Return the run directory of a user who is not root and has no XDG_RUNTIME_DIR."""
    return f"/tmp/infer-dev-{uid}"


def control_socket(run_dir: str) -> str:
    """Return the path of PID 1's control socket."""
    return f"{run_dir}/control.sock"


def supervisor_socket(run_dir: str) -> str:
    """Return the path of supervisord's socket."""
    return f"{run_dir}/supervisor.sock"


def supervisor_conf(run_dir: str) -> str:
    """Return the path of the rendered supervisord configuration."""
    return f"{run_dir}/supervisord.conf"


def prepare_run_dir(run_dir: str, *, shared: bool) -> int:
    """Make the directory (mode 0700, or 0711 when `shared` with the servers' user), lock it, and return the lock's fd.

    Raises:
        RunDirError: it cannot be made or written, is not ours, its path is too long, or another entry holds it.
    """
    if len(os.fsencode(f"{run_dir}/{_LONGEST_SOCKET}")) > _SOCKET_PATH_MAX:
        raise RunDirError(
            f"cannot use run directory {run_dir}: the path is too long for a unix socket; "
            "set INFER_DEV_RUN_DIR to a shorter one"
        )
    try:
        os.makedirs(run_dir, mode=0o755, exist_ok=True)
        info = os.lstat(run_dir)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise RunDirError(
                f"cannot use run directory {run_dir}: it is not a directory of uid {os.geteuid()}; "
                "remove it or set INFER_DEV_RUN_DIR"
            )
        os.chmod(run_dir, 0o711 if shared else 0o700)
        return _lock(run_dir)
    except OSError as error:
        raise RunDirError(
            f"cannot write run directory {run_dir}: {error.strerror}; "
            "set INFER_DEV_RUN_DIR to a writable directory or mount a tmpfs there"
        ) from error


def _lock(run_dir: str) -> int:
    import fcntl

    handle = os.open(f"{run_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = read_text(f"{run_dir}/entry.pid").strip() or "unknown"
        os.close(handle)
        raise RunDirError(
            f"cannot lock run directory {run_dir}: another infer-dev entry (pid {owner}) uses it; "
            "stop that one or set INFER_DEV_RUN_DIR"
        ) from error
    return handle


def read_fleet_id(run_dir: str) -> str:
    """Return this run directory's lasting id, made on first use; it marks every process that belongs to its fleets.

    Raises:
        RunDirError: it cannot be written.
    """
    path = f"{run_dir}/fleet-id"
    known = read_text(path).strip()
    if len(known) == 12 and known.isalnum():
        return known
    fresh = os.urandom(6).hex()
    write_private(path, fresh + "\n")
    return fresh


def instance_tmp_dir(environ: Mapping[str, str], fleet_id: str) -> str:
    """Return the directory that holds each instance's private TMPDIR; short, as sockets are made in it."""
    base = environ.get("TMPDIR", "").strip() or "/tmp"
    return f"{base.rstrip('/')}/infer-dev-{fleet_id}"


def read_text(path: str, limit_bytes: int = 65536) -> str:
    """Read a small text file; a missing or unreadable one is empty."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(limit_bytes)
    return ""


def write_private(path: str, text: str, *, owner: tuple[int, int] | None = None) -> None:
    """Write a file of mode 0600 as a whole, by rename, owned by `owner` (uid, gid) if given.

    Raises:
        RunDirError: it cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.new"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            if owner is not None:
                os.fchown(handle, *owner)
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise RunDirError(f"cannot write {path}: {error.strerror}; free space or set INFER_DEV_RUN_DIR") from error
