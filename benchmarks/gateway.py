"""What the gateway costs a request: time to its first byte, and requests a second, against the same server directly."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

from benchmarks.children import free_ports
from benchmarks.managers import ManagedByUs, run_ours
from benchmarks.processes import wait_until
from benchmarks.tables import Row, Table

ROUNDS = 300
CLIENTS = 32
WINDOW_S = 1.5
WINDOWS = 4
MANY_KEYS = 1000
ADDED_LIMIT_MS = 5.0
KEY = "sk-benchmark-0123456789"
_BODY = b'{"stream": true}'
_MISSING = "skipped: install with tools/programs.sh"


def run() -> tuple[Table, ...]:
    """Ask one server by turns directly, through a gateway with one key, and through one with a thousand."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        return (
            Table(name="gateway", title="nginx", unit="ms", rows=(Row(who="gateway", ours=True, remark=_MISSING),)),
        )
    with ExitStack() as stack:
        one, many = (stack.enter_context(_fleet(stack, count)) for count in (1, MANY_KEYS))
        ports = {"gateway": one[1], "gateway, 1000 keys": many[1], "direct": one[0].ports[0]}
        clients = {name: _Client(port) for name, port in ports.items()}
        first = _first_bytes(clients)
        rates = _rates(ports)
    return (_first_table(first), _rate_table(rates))


def _fleet(stack: ExitStack, keys: int) -> _Fleet:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ib-", dir="/tmp")))
    path = directory / "keys"
    others = "".join(f"other-{number}: sk-{number:040d}\n" for number in range(keys - 1))
    path.write_text(f"{others}me: {KEY}\n")  # the last one: nginx compares with all before it
    path.chmod(0o600)
    return _Fleet(path)


class _Fleet:
    """One server behind a gateway, for the life of a `with` block: the fleet and the gateway's port."""

    def __init__(self, keys: Path) -> None:
        (self._port,) = free_ports(1)
        tables = f'[gateway]\nport = {self._port}\napi_keys_file = "{keys}"\n'
        self._ours = run_ours("chat", 1, tables)

    def __enter__(self) -> tuple[ManagedByUs, int]:
        ours = self._ours.__enter__()
        ours.events.wait("fleet.ready", timeout_s=60)
        wait_until(lambda: _is_routed(self._port), 20, "the gateway to know its server")
        return ours, self._port

    def __exit__(self, *error: object) -> None:
        self._ours.__exit__(None, None, None)


def _is_routed(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            return b'{server="w0"} 1' in answer.read()
    except OSError:
        return False


class _Client:
    """One connection that stays open, as the openai client keeps it; a new one where the other side has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._peer: socket.socket | None = None
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        self._request = f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY

    def first_byte_ms(self) -> float:
        """Stream one answer to its end; return the time to its first byte."""
        if self._peer is None:
            self._peer = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        self._peer.sendall(self._request)
        answer = self._peer.recv(65536)
        took = 1000 * (time.perf_counter() - began)
        if not answer:  # the other side has ended a connection that was open for long
            self._peer.close()
            self._peer = None
            return self.first_byte_ms()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"port {self._port} answered {answer[:60]!r}")
        while not answer.endswith(b"0\r\n\r\n"):
            answer += self._peer.recv(65536)
        return took


def _first_bytes(clients: dict[str, _Client]) -> dict[str, tuple[float, ...]]:
    for client in clients.values():
        for _ in range(20):
            client.first_byte_ms()  # connections, and whatever is done once
    found: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            found[name].append(client.first_byte_ms())
    return {name: tuple(times) for name, times in found.items()}


def _rates(ports: dict[str, int]) -> dict[str, tuple[float, ...]]:
    """Return requests a second of many clients at once, in windows by turns."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(WINDOWS):
        for name, port in ports.items():
            found[name].append(_rate(lambda port=port: _Client(port)))  # type: ignore[misc]
    return {name: tuple(rates) for name, rates in found.items()}


def _rate(connect: Callable[[], _Client]) -> float:
    until = time.monotonic() + WINDOW_S
    counts = [0] * CLIENTS

    def ask(number: int) -> None:
        client = connect()
        while time.monotonic() < until:
            client.first_byte_ms()
            counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WINDOW_S + 10)
    return sum(counts) / WINDOW_S


def _first_table(found: dict[str, tuple[float, ...]]) -> Table:
    added = tuple(ours - direct for ours, direct in zip(found["gateway"], found["direct"], strict=True))
    rows = [Row(who=name, samples=times, ours=name.startswith("gateway")) for name, times in found.items()]
    rows.append(Row(who="added by the gateway", samples=added, ours=True, limit=ADDED_LIMIT_MS))
    return Table(
        name="gateway",
        title=f"time to the first byte of a stream, one client, {ROUNDS} rounds by turns",
        unit="ms",
        rows=tuple(rows),
        notes=("the server answers at once: of a model that takes 100 ms to its first token this is what is added",),
    )


def _rate_table(found: dict[str, tuple[float, ...]]) -> Table:
    return Table(
        name="gateway",
        title=f"streams of four tokens, {CLIENTS} clients at once, windows of {WINDOW_S:g} s by turns",
        unit="requests/s",
        rows=tuple(Row(who=name, samples=rates, ours=name.startswith("gateway")) for name, rates in found.items()),
        notes=("clients, gateway and server share the machine's cores; a ratio of 1 would be a gateway for nothing",),
    )
