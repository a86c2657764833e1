"""The one door for HTTP probes: a bounded GET that never blocks and never raises."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass

_MAX_HEAD_BYTES = 16 * 1024


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


async def _get_status(host: str, port: int, path: str) -> int:
    """Plain socket calls: asyncio's streams take twice the CPU time, and probes are most of an idle PID 1's work."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, (host, port))
        await loop.sock_sendall(
            peer, f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        head = b""
        while b"\n" not in head and len(head) < _MAX_HEAD_BYTES:
            chunk = await loop.sock_recv(peer, 4096)
            if not chunk:
                break
            head += chunk
        return _parse_status_line(head.partition(b"\n")[0])


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
