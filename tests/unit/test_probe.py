"""Probes against sockets of our own on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from infer_dev_entry.probe import Page, ProbeResult, read_page, run_probe


async def probe_answering(answer: bytes, *, delay_s: float = 0.0, timeout_s: float = 30.0) -> ProbeResult:
    """Probe a server that sends `answer` to whoever connects."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay_s)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await run_probe("127.0.0.1", port, "/health", timeout_s)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "ok", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, 200),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True, 204),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False, 503),
        (b"HTTP/1.1 404\r\n\r\n", False, 404),
        (b"", False, 0),
        (b"SSH-2.0-OpenSSH\r\n", False, 0),
        (b"\x00" * 100_000, False, 0),
        (b"HTTP/1.1 2OO OK\r\n\r\n", False, 0),
    ],
)
def test_probe_judges_the_status_line(answer: bytes, ok: bool, status: int) -> None:
    result = asyncio.run(probe_answering(answer))
    assert (result.ok, result.status) == (ok, status)
    assert result.reason


def test_probe_without_answer_times_out() -> None:
    result = asyncio.run(probe_answering(b"HTTP/1.1 200 OK\r\n\r\n", delay_s=5.0, timeout_s=0.1))
    assert result == ProbeResult(ok=False, status=0, reason="no answer on /health in 0.1 s")


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that is bound but not listening: connections are refused."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_probe_refused_says_so() -> None:
    with closed_port() as port:
        result = asyncio.run(run_probe("127.0.0.1", port, "/health", 1.0))
    assert result.reason == f"port {port} refuses connections"


def test_probe_of_an_unknown_host_is_no_exception() -> None:
    assert not asyncio.run(run_probe("256.0.0.1", 1, "/health", 1.0)).ok


async def page_of(answer: bytes, *, delay_s: float = 0.0, timeout_s: float = 30.0) -> Page:
    """Read a page from a server that sends `answer` to whoever connects."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(OSError):
            writer.write(answer)
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        return await read_page("127.0.0.1", server.sockets[0].getsockname()[1], "/v1/loads", timeout_s)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "page"),
    [
        (b'HTTP/1.1 200 OK\r\nServer: x\r\n\r\n{"loads": []}', Page(status=200, text='{"loads": []}')),
        (b"HTTP/1.1 404 Not Found\r\n\r\n\xff", Page(status=404, text="\ufffd")),
        (b"HTTP/1.1 200 OK\r\n\r\n", Page(status=200)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000, Page(status=0)),
        (b"\x00" * 100, Page(status=0)),
        (b"", Page(status=0)),
    ],
)
def test_page_is_small_or_none(answer: bytes, page: Page) -> None:
    assert asyncio.run(page_of(answer)) == page


def test_page_that_does_not_come_in_time_is_none() -> None:
    assert asyncio.run(page_of(b"HTTP/1.1 200 OK\r\n\r\n", delay_s=5.0, timeout_s=0.1)) == Page(status=0)


def test_page_of_a_closed_port_is_none() -> None:
    with closed_port() as port:
        assert asyncio.run(read_page("127.0.0.1", port, "/", 1.0)) == Page(status=0)


def test_page_is_asked_for_with_a_key_where_there_is_one() -> None:
    heads: list[bytes] = []

    async def ask() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await read_page("127.0.0.1", port, "/", 2.0, api_key="k")
        await read_page("127.0.0.1", port, "/", 2.0)
        server.close()

    asyncio.run(ask())
    assert b"\r\nAuthorization: Bearer k\r\n" in heads[0]
    assert b"Authorization" not in heads[1]
