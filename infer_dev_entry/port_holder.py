"""Who holds a TCP port of this machine. Asks the kernel, and /proc only when the port is taken."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from infer_dev_entry.procaccess import read_links

_LISTEN = "0A"


def is_port_free(host: str, port: int) -> bool:
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


def describe_stranger(port: int, is_ours: Callable[[int], bool], proc: Path) -> str | None:
    """Say which process that is not ours has a socket on a local port that is taken; None when all are ours."""
    pids = [_pid_of_socket(proc, inode) for inode in _read_sockets(proc, port)]
    strangers = [pid for pid in pids if pid and not is_ours(pid)]
    if strangers:
        return f"pid {strangers[0]} ({_command_name(proc, strangers[0])})"
    return None if any(pids) else "another user's process, or one outside this container"


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
