"""The one door for HTTP probes: bounded requests that never block and never raise."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

_MAX_HEAD_BYTES = 16 * 1024
# A page of counters that is longer is refused: half of it would compare unlike another half.
MAX_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The outcome of one probe. `status` is the HTTP status, or 0 when none came; `reason` is for people."""

    ok: bool
    status: int
    reason: str


async def run_probe(host: str, port: int, path: str, timeout_s: float) -> ProbeResult:
    """GET `path` and judge its status line; 2xx is success. Takes at most `timeout_s` seconds."""
    try:
        status = await asyncio.wait_for(_get_status(host, port, path), timeout_s)
    except TimeoutError:
        return ProbeResult(ok=False, status=0, reason=f"no answer on {path} in {timeout_s:g} s")
    except OSError as error:
        return ProbeResult(ok=False, status=0, reason=_os_reason(error, port))
    except (ValueError, EOFError) as error:
        return ProbeResult(ok=False, status=0, reason=f"{path} did not speak HTTP: {error}")
    return ProbeResult(ok=200 <= status < 300, status=status, reason=f"{path} answered {status}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a GET brought. `status` is 0 without an answer; `text` is "" unless a whole page came."""

    status: int
    text: str = ""


async def read_page(host: str, port: int, path: str, timeout_s: float, *, api_key: str = "") -> Page:
    """GET a small page, at most 256 KiB, in at most `timeout_s` seconds; never raises."""
    try:
        return await asyncio.wait_for(_get_page(host, port, path, api_key), timeout_s)
    except (OSError, ValueError, EOFError):  # TimeoutError is an OSError
        return Page(status=0)


async def request_page(
    host: str, port: int, method: str, path: str, timeout_s: float, *, body: str = "", api_key: str = ""
) -> Page:
    """Send a request with a JSON body ("": none), and take the answer as `read_page` does; never raises."""
    try:
        return await asyncio.wait_for(_get_page(host, port, path, api_key, method=method, body=body), timeout_s)
    except (OSError, ValueError, EOFError):
        return Page(status=0)


async def _get_status(host: str, port: int, path: str) -> int:
    # A first line of 16 KiB is none; what follows it is not waited for.
    head = await _get(host, port, path, "HTTP/1.1", lambda answer: b"\n" in answer or len(answer) >= _MAX_HEAD_BYTES)
    return _parse_status_line(head.partition(b"\n")[0])


async def _get_page(host: str, port: int, path: str, api_key: str, method: str = "GET", body: str = "") -> Page:
    # A server may not answer HTTP/1.0 in chunks.
    def is_enough(answer: bytearray) -> bool:
        return len(answer) > MAX_PAGE_BYTES

    answer = await _get(host, port, path, "HTTP/1.0", is_enough, api_key, method=method, body=body)
    if len(answer) > MAX_PAGE_BYTES:
        raise ValueError("the page is too long")
    head, _, content = answer.partition(b"\r\n\r\n")
    return Page(status=_parse_status_line(head.partition(b"\n")[0]), text=content.decode("utf-8", errors="replace"))


async def _get(
    host: str,
    port: int,
    path: str,
    version: str,
    is_enough: Callable[[bytearray], bool],
    api_key: str = "",
    *,
    method: str = "GET",
    body: str = "",
) -> bytes:
    """Read the answer to its end or until it is enough.

    Plain socket calls: asyncio's streams take twice the CPU time, and probes are most of an idle PID 1's work.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, (host, port))
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        data = body.encode()
        form = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        head = f"{method} {path} {version}\r\nHost: {host}:{port}\r\n{key}{form}Connection: close\r\n\r\n"
        await loop.sock_sendall(peer, head.encode() + data)
        answer = bytearray()
        while not is_enough(answer) and (chunk := await loop.sock_recv(peer, 16384)):
            answer += chunk
        return bytes(answer)


def _parse_status_line(line: bytes) -> int:
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError(f"status line {line[:40]!r}")
    return int(words[1][:3])


def _os_reason(error: OSError, port: int) -> str:
    if error.errno == errno.ECONNREFUSED:
        return f"port {port} refuses connections"
    if error.errno is not None:
        return f"port {port}: {os.strerror(error.errno)}"
    return f"port {port}: {error}"
