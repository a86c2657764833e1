"""Ask the running entry through its control socket."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.config.facts import Placed
from infer_dev_entry.errors import NotRunningError, RequestError, UnknownServerError
from infer_dev_entry.rundir import client_run_dir, control_socket

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
STATUS_S = 2.0  # for those who go on without an answer


def ask(environ: Mapping[str, str], request: Mapping[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """Send one request and return the answer.

    Raises:
        NotRunningError: nobody answers on the control socket.
        UnknownServerError: the request names a server that does not exist.
        RequestError: the entry refused.
    """
    path = control_socket(client_run_dir(environ))
    answer = _exchange(path, json.dumps(request).encode() + b"\n", timeout_s)
    if answer.get("ok"):
        return answer
    text = str(answer.get("error", "no reason given"))
    raise UnknownServerError(text) if answer.get("kind") == "unknown-server" else RequestError(text)


def _exchange(path: str, request: bytes, timeout_s: float) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout_s)
            peer.connect(path)
            peer.sendall(request)
            with peer.makefile("rb") as stream:
                line = stream.readline(_MAX_ANSWER_BYTES)
        answer = json.loads(line)
        if isinstance(answer, dict):
            return answer
        raise ValueError("not an object")
    except TimeoutError as error:
        raise NotRunningError(f"no answer from infer-dev entry on {path} in {timeout_s:g} s; is it stopped?") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunningError(f"no fleet is running (nobody listens on {path}); {_find_mend(path)}") from error
    except PermissionError as error:
        raise NotRunningError(f"cannot reach {path}: permission denied; run as root or as the servers' user") from error
    except (OSError, ValueError) as error:
        raise NotRunningError(f"cannot talk to infer-dev entry on {path}: {error}") from error


def _find_mend(path: str) -> str:
    """Say how to get a fleet; an entry that could make no socket has told its log alone why."""
    folder = os.path.dirname(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if os.access(folder, os.W_OK | os.X_OK):
        return "start one with: infer-dev serve CONFIG.toml"
    return f"{folder} cannot be written: set INFER_DEV_RUN_DIR to a writable directory or mount a tmpfs there"


def is_running(environ: Mapping[str, str]) -> bool:
    """True when an entry with a fleet answers."""
    try:
        ask(environ, {"op": "status"})
    except (NotRunningError, RequestError):
        return False
    return True


def find_placed(status: Mapping[str, Any], *, all_but_waiting: bool = False) -> dict[str, Placed]:
    """Return where the servers that have a process run, by name, from the answer to `status`.

    With `all_but_waiting` also where those without one will, unless they wait for their GPUs.
    """
    return {
        row["name"]: Placed(
            gpu_ids=None if row["gpu_ids"] is None else tuple(row["gpu_ids"]),
            engine=row["engine"],
            leaving=row["state"] == "draining",
        )
        for row in status["servers"]
        if row["pid"] or (all_but_waiting and row["state"] != "waiting-gpu")
    }


def read_placed(environ: Mapping[str, str]) -> dict[str, Placed]:
    """Return the same of the entry that runs here; nothing when none answers."""
    try:
        return find_placed(ask(environ, {"op": "status"}, STATUS_S))
    except (NotRunningError, RequestError):
        return {}
