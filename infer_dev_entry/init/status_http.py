"""The optional read-only HTTP endpoint (INFER_DEV_STATUS_ADDR): /status as JSON and /health for probes."""

from __future__ import annotations

import asyncio
import json

from infer_dev_entry.errors import SettingsError
from infer_dev_entry.init.requests import Requests

_TIMEOUT_S = 5.0


def parse_address(text: str) -> tuple[str, int]:
    """Parse `host:port`.

    Raises:
        SettingsError: it is not one.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"INFER_DEV_STATUS_ADDR={text!r} is not host:port, such as 127.0.0.1:9000")
    return host.strip("[]"), int(port)


async def serve_status(host: str, port: int, requests: Requests) -> asyncio.Server:
    """Listen on `host:port`.

    Raises:
        SettingsError: the address cannot be bound.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            writer.write(_respond(line, requests))
            await asyncio.wait_for(writer.drain(), _TIMEOUT_S)
        except (OSError, TimeoutError, ValueError):
            return
        finally:
            writer.close()

    try:
        return await asyncio.start_server(answer, host, port, limit=8192)
    except OSError as error:
        raise SettingsError(f"cannot listen on INFER_DEV_STATUS_ADDR={host}:{port}: {error.strerror}") from error


def _respond(request_line: bytes, requests: Requests) -> bytes:
    words = request_line.split()
    path = words[1].decode(errors="replace") if len(words) == 3 and words[0] == b"GET" else ""
    status = requests.status()
    match path:
        case "/status":
            code, body = "200 OK", status
        case "/health":
            code = "200 OK" if status["healthy"] else "503 Service Unavailable"
            body = {"healthy": status["healthy"], "boot_error": status["boot_error"]}
        case _:
            code, body = "404 Not Found", {"paths": ["/status", "/health"]}
    text = json.dumps(body).encode() + b"\n"
    head = (
        f"HTTP/1.0 {code}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
