"""`infer-dev logs`: the end of a server's log, and what follows."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import EntryError, UnknownServerError
from infer_dev_entry.mirror import FollowedFile
from infer_dev_entry.redact import redact_bytes
from infer_dev_entry.regular_file import open_regular
from infer_dev_entry.runlog import rotated_path

DESCRIPTION = """Print the last lines of a server's log; with -f go on with what is added, across rotations.
What looks like a key or a token is shown as ***."""
EXAMPLES = """  infer-dev logs glm
  infer-dev logs glm -n 200
  infer-dev logs glm -f

exit codes: 0 done, 14 no fleet is running, 15 no such server"""

FOLLOW_PERIOD_S = 0.2
_BLOCK_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="the server (may be left out when there is only one)")
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="how many lines (default 50)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print, and follow if asked."""
    path = _find_log(args.name, ask(environ, {"op": "status"})["servers"])
    if not args.follow and not os.path.exists(path) and not os.path.exists(rotated_path(path)):
        raise EntryError(f"cannot read {path}: the server has not logged yet")
    text, end = read_last_lines(path, max(0, args.lines))
    sys.stdout.buffer.write(redact_bytes(text))
    sys.stdout.buffer.flush()
    follower = FollowedFile(path, from_end=False, start=end)  # what is written meanwhile is printed once
    while args.follow:
        for line in follower.read_lines():
            sys.stdout.buffer.write(redact_bytes(line) + b"\n")
        sys.stdout.buffer.flush()
        time.sleep(FOLLOW_PERIOD_S)
    return 0


def _find_log(name: str | None, rows: list[dict[str, Any]]) -> str:
    if name is None and len(rows) == 1:
        return str(rows[0]["log_file"])
    names = ", ".join(row["name"] for row in rows) or "none"
    for row in rows:
        if row["name"] == name:
            return str(row["log_file"])
    if name is None:
        raise UnknownServerError(f"name one of the servers: {names}")
    raise UnknownServerError(f"no server is called {name}; there are: {names}")


def read_last_lines(path: str, count: int) -> tuple[bytes, int]:
    """Return the last `count` lines of a log and where they end, reading backwards: a huge log costs no more.

    What a log that was rotated just now lacks of them is in the file before it, with the beginning of its first line.

    Raises:
        EntryError: the file cannot be read.
    """
    data, end, inode = b"", 0, 0
    try:
        with open(open_regular(path), "rb") as file:
            data, end = _read_end(file, count)
            inode = os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        pass  # between its move and the next line
    except OSError as error:
        raise EntryError(f"cannot read {path}: {error.strerror}") from error
    if data.count(b"\n") <= count:
        with contextlib.suppress(OSError), open(open_regular(rotated_path(path), follow=False), "rb") as file:
            if os.fstat(file.fileno()).st_ino != inode:  # else it was moved while we read it
                data = _read_end(file, count)[0] + data
    lines = data.splitlines(keepends=True)
    return b"".join(lines[-count:]) if count else b"", end


def _read_end(file: BinaryIO, count: int) -> tuple[bytes, int]:
    """Return the end of a file with at least so many lines, if it has them, and its size."""
    position = end = file.seek(0, os.SEEK_END)
    data = b""
    while position > 0 and data.count(b"\n") <= count:
        step = min(_BLOCK_BYTES, position)
        position -= step
        file.seek(position)
        data = file.read(step) + data
    return data, end
