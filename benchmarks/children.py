"""The servers under the managers: tiny programs that announce their own start through a FIFO."""

from __future__ import annotations

import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import now_s

# Shell, not Python: its own start takes about a millisecond, so that what is measured is the manager.
_QUIET = """#!/bin/sh
while [ "$1" != --port ]; do shift; done
echo "$2 $$" > {fifo}
exec sleep 1000000
"""
# The shell's ignored signals stay ignored in the program that it executes.
_STUBBORN = """#!/bin/sh
while [ "$1" != --port ]; do shift; done
trap '' TERM INT HUP
echo "$2 $$" > {fifo}
exec sleep 1000000
"""
# Every request is answered with 200, as a ready server's /health is.
_HTTP = """#!{python} -S
import os, socket, sys
port = sys.argv[sys.argv.index("--port") + 1]
listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
with open("{fifo}", "w") as fifo:
    fifo.write(f"{{port}} {{os.getpid()}}\\n")
while True:
    peer, _ = listener.accept()
    with peer:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
"""
# What matters of SGLang: /health makes an idle server generate, POST stands for a request, /v1/loads counts. GET /count
# tells how often it generated for a probe alone.
_LOADS = """#!{python} -S
import json, socket, sys, os, time
port = sys.argv[sys.argv.index("--port") + 1]
listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
with open("{fifo}", "w") as fifo:
    fifo.write(f"{{port}} {{os.getpid()}}\\n")
probed = served = 0
while True:
    peer, _ = listener.accept()
    with peer:
        request = peer.recv(4096)
        probed += request.startswith(b"GET /health")
        served += request.startswith(b"POST")
        load = {{"timestamp": time.time(), "num_running_reqs": 0, "total_prefill_uncached_tokens": served}}
        body = json.dumps(probed if request.startswith(b"GET /count") else {{"loads": [load]}}).encode()
        peer.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + body)
"""
# As fast as Python answers chats, over connections that stay open as those of a real server do: what stands before it
# is measured. A body with "stream" gets four events in chunks.
_CHAT = """#!{python} -S
import asyncio, sys, os
port = int(sys.argv[sys.argv.index("--port") + 1])
whole = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}"
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
event = b"f\\r\\ndata: token 1\\n\\n\\r\\n"
class Chat(asyncio.Protocol):
    rest = b""
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.rest += data
        while b"\\r\\n\\r\\n" in self.rest:
            top, _, body = self.rest.partition(b"\\r\\n\\r\\n")
            length = int(top.lower().partition(b"content-length:")[2].split(b"\\r")[0] or 0)
            if len(body) < length:
                return
            self.rest = body[length:]
            streams = b"stream" in body[:length]
            self.transport.write(head + event * 4 + b"0\\r\\n\\r\\n" if streams else whole)
async def main():
    server = await asyncio.get_running_loop().create_server(Chat, "127.0.0.1", port, backlog=256)
    with open("{fifo}", "w") as fifo:
        fifo.write(f"{{port}} {{os.getpid()}}\\n")
    await server.serve_forever()
asyncio.run(main())
"""
_TEXTS = {"quiet": _QUIET, "stubborn": _STUBBORN, "http": _HTTP, "loads": _LOADS, "chat": _CHAT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A server's announcement: when it came, the server's port, which names it, and its pid inside its namespace."""

    at_s: float
    port: int
    pid: int


class Arrivals:
    """Collects the announcements of one manager's servers with the time at which each came."""

    def __init__(self, fifo: Path) -> None:
        os.mkfifo(fifo)
        # Open for writing as well, so that the end of one writer is not the end of the file.
        self._handle = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        self._seen: list[Arrival] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while line := os.read(self._handle, 4096):
            at_s = now_s()
            with self._changed:
                for text in line.decode().splitlines():
                    port, pid = text.split()
                    self._seen.append(Arrival(at_s=at_s, port=int(port), pid=int(pid)))
                self._changed.notify_all()

    def last(self, port: int) -> Arrival:
        """Return the newest announcement of a server; StopIteration when there is none."""
        with self._changed:
            return next(arrival for arrival in reversed(self._seen) if arrival.port == port)

    def wait_count(self, count: int, timeout_s: float) -> list[Arrival]:
        """Wait until `count` servers in all have announced themselves, and return them all.

        Raises:
            TimeoutError: fewer have.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._seen) >= count, timeout_s):
                raise TimeoutError(f"{len(self._seen)} of {count} servers started within {timeout_s:g} s")
            return list(self._seen)

    def wait_new(self, port: int, after_s: float, timeout_s: float) -> Arrival:
        """Wait for a server's first announcement after a moment.

        Raises:
            TimeoutError: none came.
        """

        def find() -> Arrival | None:
            return next((item for item in self._seen if item.port == port and item.at_s > after_s), None)

        with self._changed:
            found = self._changed.wait_for(find, timeout_s)
        if found is None:
            raise TimeoutError(f"the server on port {port} did not start again within {timeout_s:g} s")
        return found


def write_child(directory: Path, kind: str) -> tuple[str, Arrivals]:
    """Write the program of a server of some kind (`_TEXTS`), called with `… --port N …`; return it and its news."""
    fifo = directory / "arrivals"
    program = directory / "server"
    program.write_text(_TEXTS[kind].format(fifo=fifo, python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    return str(program), Arrivals(fifo)


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that nobody listens on, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(int(item.getsockname()[1]) for item in sockets)
    for item in sockets:
        item.close()
    return ports
