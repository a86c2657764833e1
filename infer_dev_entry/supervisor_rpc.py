"""The one door to supervisord's XML-RPC, over its unix socket, without ever blocking the caller's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xmlrpc import client as xmlrpc_client

from infer_dev_entry.errors import SupervisorError

# supervisord answers in 0.8 ms; one that takes this long is hung.
CALL_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024

# Faults that say the wish is already true (supervisor.xmlrpc.Faults), and are therefore success.
ALREADY_STARTED = 60
NOT_RUNNING = 70
# It could not be spawned, or was and has ended already.
SPAWN_ERROR = 50
BAD_NAME = 10


class RpcFaultError(SupervisorError):
    """supervisord answered with a fault; `code` is one of supervisor.xmlrpc.Faults."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"supervisord refused: {text}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One program as supervisord sees it. `wait_status` is waitpid's raw status of the last run, or None."""

    name: str
    statename: str
    pid: int
    wait_status: int | None
    spawnerr: str


class SupervisorRpc:
    """Calls supervisord. A new connection each time: supervisor's own transport stays broken after a failed connect."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path

    async def read_processes(self) -> tuple[ProcessInfo, ...]:
        """Return every program of the fleet.

        Raises:
            SupervisorError: it does not answer, or not within CALL_TIMEOUT_S.
        """
        rows = await self.call("infer_dev.status")
        return tuple(
            ProcessInfo(
                name=str(row["name"]),
                statename=str(row["statename"]),
                pid=int(row["pid"]),
                wait_status=None if int(row["wait_status"]) < 0 else int(row["wait_status"]),
                spawnerr=str(row["spawnerr"]),
            )
            for row in rows
        )

    async def call(self, method: str, *params: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call one method.

        Raises:
            RpcFaultError: supervisord answered with a fault.
            SupervisorError: it does not answer, in time or sensibly.
        """
        body = xmlrpc_client.dumps(params, method).encode()
        try:
            answer = await asyncio.wait_for(self._exchange(body), timeout_s)
            return _parse_answer(answer)
        except TimeoutError as error:
            raise SupervisorError(f"cannot call supervisord ({method}): no answer in {timeout_s:g} s") from error
        except (OSError, EOFError, ValueError) as error:
            raise SupervisorError(f"cannot call supervisord ({method}): {error}") from error
        except xmlrpc_client.Fault as fault:
            raise RpcFaultError(fault.faultCode, fault.faultString) from fault

    async def _exchange(self, body: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._socket_path)
        try:
            head = (
                "POST /RPC2 HTTP/1.0\r\nHost: supervisord\r\nContent-Type: text/xml\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            return await read_bounded(reader, _MAX_ANSWER_BYTES)
        finally:
            writer.close()


async def read_bounded(reader: asyncio.StreamReader, limit_bytes: int) -> bytes:
    """Read to the end of the stream.

    Raises:
        ValueError: there is more than `limit_bytes`.
    """
    data = bytearray()
    while chunk := await reader.read(65536):
        data += chunk
        if len(data) > limit_bytes:
            raise ValueError(f"answer larger than {limit_bytes} bytes")
    return bytes(data)


def _parse_answer(answer: bytes) -> Any:
    head, separator, body = answer.partition(b"\r\n\r\n")
    status = head.split(None, 2)[1:2]
    if not separator or status != [b"200"]:
        raise ValueError(f"unexpected answer {head[:60]!r}")
    try:
        values, _ = xmlrpc_client.loads(body)
    except xmlrpc_client.Fault:
        raise
    except Exception as error:  # expat and the unmarshaller raise many kinds; the text is foreign
        raise ValueError(f"unreadable answer: {error}") from error
    return values[0]


async def wait_for_rpc(rpc: SupervisorRpc, timeout_s: float, alive: Callable[[], bool]) -> None:
    """Wait until supervisord answers.

    Raises:
        SupervisorError: it does not within `timeout_s`, or `alive()` turned false.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await rpc.call("infer_dev.status")
            return
        except RpcFaultError:
            raise
        except SupervisorError as error:
            if not alive():
                raise SupervisorError("cannot start supervisord: it exited") from error
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.01)
