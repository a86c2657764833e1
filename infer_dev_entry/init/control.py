"""PID 1's control socket: one JSON line in, one JSON line out; who may ask is decided by the peer's uid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

from infer_dev_entry.errors import RunDirError

_MAX_REQUEST_BYTES = 16 * 1024 * 1024
_REQUEST_TIMEOUT_S = 10.0

Handler = Callable[[Mapping[str, Any]], dict[str, Any]]


async def serve_control(path: str, handler: Handler, allowed_uids: frozenset[int]) -> asyncio.Server:
    """Listen on a unix socket at `path`; peers outside `allowed_uids` are refused.

    The socket file is open to all, as the peer's uid is checked (unix(7), SO_PEERCRED): an unprivileged server user
    gets status without owning the socket.

    Raises:
        RunDirError: the socket cannot be made.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await asyncio.wait_for(_answer(reader, writer, handler, allowed_uids), _REQUEST_TIMEOUT_S)
            writer.write(json.dumps(reply).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), _REQUEST_TIMEOUT_S)
        except (OSError, TimeoutError, ValueError):
            return  # the peer went away, or sent more than a request
        finally:
            writer.close()

    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        server = await asyncio.start_unix_server(answer, path, limit=_MAX_REQUEST_BYTES)
        os.chmod(path, 0o666)
    except OSError as error:
        raise RunDirError(
            f"cannot listen on {path}: {error.strerror or error}; remove it, or set INFER_DEV_RUN_DIR"
        ) from error
    return server


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler, allowed_uids: frozenset[int]
) -> dict[str, Any]:
    line = await reader.readline()  # also of those who are refused: closing on them first would be all that they see
    uid = _peer_uid(writer.get_extra_info("socket"))
    if uid not in allowed_uids:
        return {"ok": False, "error": f"uid {uid} may not control this fleet; run as root or as the servers' user"}
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        return {"ok": False, "error": f"cannot parse request: {error}"}
    return handler(request)


def _peer_uid(peer: socket.socket) -> int:
    """Return the uid of the process at the other end; struct ucred is pid, uid, gid."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])
