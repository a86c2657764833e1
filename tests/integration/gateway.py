"""A gateway in front of fake servers, and clients that look closely: times, headers, raw bytes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, free_ports, render_toml, server
from wait import wait_until

ALICE = "sk-alice-0123456789.AbC+d"
BOB = "sk-bob-0123456789-xYz"
NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))

# A probe that is late takes its server out of the pool, so that a busy machine needs more time for one.
PATIENT = {"period_s": 5.0, "timeout_s": 4.5}

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed; tools/programs.sh installs it as root")


@dataclass
class Answer:
    """One answer; `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stream:
    """A streamed answer as it came: when each piece arrived, and how it ended."""

    status: int = 0
    times: list[float] = field(default_factory=list)
    text: bytes = b""
    error: str = ""

    @property
    def complete(self) -> bool:
        return self.text.endswith(b"data: [DONE]\n\n")

    @property
    def tokens(self) -> int:
        return self.text.count(b'"delta"')

    @property
    def spread_s(self) -> float:
        """The time from the first arrival to the last."""
        return self.times[-1] - self.times[0]


class Client:
    """Talks to a gateway with one key ("": none)."""

    def __init__(self, port: int, key: str = ALICE, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.key = key
        self._tls = tls

    def ask(
        self, path: str = "/v1/models", method: str = "GET", body: object = None, timeout_s: float = 10, **headers: str
    ) -> Answer:
        """Ask once; header names are given with underscores."""
        connection = self._connect(timeout_s)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connection.request("POST" if data is not None else method, path, data, own | given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=found, body=answer.read())
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def stream(
        self, tokens: int, pause_s: float, path: str = "/v1", timeout_s: float = 30, into: Stream | None = None
    ) -> Stream:
        """Stream a chat to its end; `into` can be looked at meanwhile."""
        seen = Stream() if into is None else into
        connection = self._connect(timeout_s)
        body = json.dumps({"stream": True, "tokens": tokens, "pause_s": pause_s})
        try:
            connection.request("POST", f"{path}/chat/completions", body, {"Authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            seen.status = answer.status
            while piece := answer.read1(65536):
                seen.times.append(time.monotonic())
                seen.text += piece
        except (OSError, http.client.HTTPException) as error:
            seen.error = repr(error)
        finally:
            connection.close()
        return seen

    def start_stream(self, tokens: int, pause_s: float, path: str = "/v1") -> Running:
        """Stream in a thread."""
        return Running(self, tokens, pause_s, path)

    def raw(self, data: bytes, timeout_s: float = 15) -> bytes:
        """Send bytes as they are, and read until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as peer:
            peer.sendall(data)
            answer = b""
            while piece := peer.recv(65536):
                answer += piece
            return answer


class Running:
    """A stream under way; `result` waits for its end."""

    def __init__(self, client: Client, tokens: int, pause_s: float, path: str) -> None:
        self._seen = Stream()
        self._thread = threading.Thread(target=self._run, args=(client, tokens, pause_s, path), daemon=True)
        self._thread.start()

    def _run(self, client: Client, tokens: int, pause_s: float, path: str) -> None:
        client.stream(tokens, pause_s, path, into=self._seen)

    @property
    def has_begun(self) -> bool:
        """True once a piece has come."""
        return bool(self._seen.times)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout_s: float = 30) -> Stream:
        self._thread.join(timeout_s)
        assert self.is_over, "the stream did not end"
        return self._seen


class Site:
    """A fleet with a gateway. `ports` are those of the servers by name; `keys` is its file of keys."""

    def __init__(self, fleet: Fleet, *names: str) -> None:
        self.fleet = fleet
        self.names = names
        *ports, self.port = free_ports(len(names) + 1)
        self.ports = dict(zip(names, ports, strict=True))
        self.keys = fleet.base / "keys"
        self.client = Client(self.port)
        self.worker_count = 2

    def write(
        self,
        *extra: str,
        name: str = "fleet.toml",
        flags: Mapping[str, tuple[str, ...]] = {},
        probes: Mapping[str, Mapping[str, object]] = {},
        **gateway: object,
    ) -> Path:
        """Write the TOML; `flags` are words for a fake server, `probes` its timing, `gateway` keys of the gateway."""
        table = {"port": self.port, "workers": self.worker_count, **gateway}
        lines = "\n".join(f"{key} = {render_toml(value)}" for key, value in table.items())
        servers = [
            server(f'"{name}"', port, *flags.get(name, ()), probe=probes.get(name, PATIENT))
            for name, port in self.ports.items()
        ]
        return self.fleet.write(*servers, f"[gateway]\n{lines}\n", *extra, name=name)

    def with_keys(self, text: str = f"alice: {ALICE}\nbob: {BOB}\n") -> str:
        """Write the file of keys as a whole, and return its path for the TOML."""
        fresh = self.keys.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o600)
        fresh.replace(self.keys)
        return str(self.keys)

    def start(self, **environ: str) -> None:
        """Start and wait until the gateway hands requests to every server."""
        self.fleet.start(**environ)
        self.fleet.wait_ready(*self.names, "gateway")
        self.wait_pool(*self.names)

    def wait_pool(self, *names: str, timeout_s: float = 30) -> None:
        """Wait until nginx by its own word hands requests to just these servers, and all its workers do.

        For a tenth of a second after a reload it lets old and new workers take requests.
        """
        expected = {f'server="{name}"}} {int(name in names)}' for name in self.names}
        self.fleet.wait(
            lambda: all(line in self.metrics() for line in expected) and len(self.workers()) <= self.worker_count,
            timeout_s,
            f"the pool to be {names or 'empty'}",
        )

    def workers(self) -> list[int]:
        """The workers that take requests."""
        return [member.pid for member in self.fleet.members() if "nginx: worker process" in member.argv]

    def metrics(self) -> str:
        try:
            return self.client.ask("/metrics").body.decode()
        except OSError:
            return ""

    def access_log(self) -> list[dict[str, Any]]:
        """What the gateway has logged of requests so far."""
        path = self.fleet.log_dir / "sglang-server-gateway-access.log"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def wait_logged(self, **fields: object) -> dict[str, Any]:
        """Wait until a request with these fields was logged."""
        return wait_until(
            lambda: next((row for row in self.access_log() if fields.items() <= row.items()), {}),
            15,
            f"log of {fields}",
        )
