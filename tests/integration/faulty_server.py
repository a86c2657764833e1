"""A server for what a real one does not do on demand: the first part of the path says how it misbehaves."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable

_EVENT = {"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}, "text": "a", "finish_reason": None}]}
_LAST = {"model": "m", "choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]}
_GOOD = {
    "model": "m",
    "choices": [{"index": 0, "text": "ok", "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
}
_SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LIMIT_S = 120.0  # longer than any test waits: who waits for the end of a fault fails


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def whole(status: int, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


@functools.cache
def make_bomb() -> bytes:
    """64 MiB that come as 64 KiB."""
    return gzip.compress(b"[" * (64 << 20))


class FaultyServer:
    """Listens while the block runs. `hung_up` counts the clients that left before an answer was over."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._over = threading.Event()
        self.hung_up = 0
        self.requests: list[tuple[str, dict[str, object]]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/{fault}"

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        peer.settimeout(_LIMIT_S)
        try:
            with peer, peer.makefile("rb") as stream:
                first = stream.readline().decode("latin-1")
                if not first:
                    raise ConnectionError("the client was gone before it asked")
                path = first.split(" ")[1]
                headers = {}
                for line in iter(stream.readline, b"\r\n"):
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                body = json.loads(stream.read(int(headers.get("content-length", "0"))) or b"{}")
                _, fault, *rest = path.split("/")
                self.requests.append(("/" + "/".join(rest), body))
                self._answer(peer, fault, headers.get("authorization", ""))
        except (ConnectionError, TimeoutError):
            self.hung_up += 1

    def _answer(self, peer: socket.socket, fault: str, key: str) -> None:
        if fault == "tells-the-key":
            peer.sendall(whole(200, json.dumps(_GOOD).replace('"ok"', json.dumps(key)).encode()))
            return
        if fault == "drip-chat":
            if self.requests[-1][0] == "/v1/models":
                peer.sendall(whole(200, b'{"data": [{"id": "m", "object": "model"}]}'))
            else:
                self._drip_body(peer)
            return
        if fault.isdecimal():
            words = json.dumps({"error": {"message": f"no, because of {key}", "code": int(fault)}}).encode()
            peer.sendall(whole(int(fault), words, more="Location: http://127.0.0.1:1/\r\n" if fault == "302" else ""))
            return
        found: Callable[[socket.socket], None] = getattr(self, "_" + fault.replace("-", "_"))
        found(peer)

    def _repeat(self, peer: socket.socket, part: bytes, pause_s: float) -> None:
        ends = time.monotonic() + _LIMIT_S
        while time.monotonic() < ends and not self._over.wait(pause_s):
            peer.sendall(part)

    def _good(self, peer: socket.socket) -> None:
        peer.sendall(whole(200, json.dumps(_GOOD).encode()))

    def _perfect(self, peer: socket.socket) -> None:
        """An answer that has everything at once: JSON, a tool call and thoughts."""
        call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        content = '{"color": "red", "count": 1, "sure": true}'
        message = {"role": "assistant", "content": content, "reasoning_content": "hm", "tool_calls": [call]}
        answer = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        peer.sendall(whole(200, json.dumps(answer).encode()))

    def _thinks_aloud(self, peer: socket.socket) -> None:
        message = {"role": "assistant", "content": "<think>hm</think>42"}
        answer = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        peer.sendall(whole(200, json.dumps(answer).encode()))

    def _escapes(self, peer: socket.socket) -> None:
        """A list of models, and nothing else that is asked for, in words that would write to a terminal."""
        names = {"id": "\x1b[2J\ud800evil", "object": "model", "owned_by": "\x1b]0;title\x07"}
        peer.sendall(whole(200, json.dumps({"object": "list", "data": [names]}).encode()))

    def _made_up(self, peer: socket.socket) -> None:
        """Counts that no JSON has, and an endless word."""
        usage = {"prompt_tokens": float("inf"), "completion_tokens": float("inf")}
        for number in range(12):
            last = {"finish_reason": "stop" * 1000, "delta": {}, "index": 0}
            data = json.dumps({**_EVENT, "choices": [last] if number == 11 else _EVENT["choices"], "usage": usage})
            peer.sendall((_SSE if not number else b"") + f"data: {data}\n\n".encode())
            time.sleep(0.02)
        peer.sendall(b"data: [DONE]\n\n")

    def _packed(self, peer: socket.socket) -> None:
        peer.sendall(whole(200, make_bomb(), more="Content-Encoding: gzip\r\n"))

    def _hang(self, peer: socket.socket) -> None:
        peer.recv(1)
        raise ConnectionError

    def _drip_head(self, peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        self._repeat(peer, b"a", 0.05)

    def _drip_body(self, peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        self._repeat(peer, b" ", 0.05)

    def _cut(self, peer: socket.socket) -> None:
        peer.sendall(whole(200, json.dumps(_GOOD).encode())[:-20])

    def _close(self, peer: socket.socket) -> None:
        return

    def _garbage(self, peer: socket.socket) -> None:
        peer.sendall(b"\x00\xff\x1b[2J no HTTP at all\r\n\r\n")

    def _html(self, peer: socket.socket) -> None:
        peer.sendall(whole(200, b"<html>welcome to nginx</html>", "text/html"))

    def _endless(self, peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        self._repeat(peer, b"[" * (1 << 20), 0)

    def _endless_error(self, peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\n\r\n")
        self._repeat(peer, b"e" * (1 << 20), 0)

    def _sse_good(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + event(_EVENT) * 3 + event(_LAST) + b"data: [DONE]\n\n")

    def _sse_at_once(self, peer: socket.socket) -> None:
        """So many pieces that a client which is interrupted while it takes them still gets many at each arrival."""
        time.sleep(0.1)
        peer.sendall(_SSE + event(_EVENT) * 200 + event(_LAST) + b"data: [DONE]\n\n")

    def _sse_by_size(self, peer: socket.socket) -> None:
        """What a proxy makes of 320 pieces with buffers of a fixed size."""
        peer.sendall(_SSE)
        for count in (140, 140, 40):
            time.sleep(0.1)
            peer.sendall(event(_EVENT) * count)
        peer.sendall(event(_LAST) + b"data: [DONE]\n\n")

    def _sse_cut(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + event(_EVENT) * 3)

    def _sse_broken(self, peer: socket.socket) -> None:
        data = event(_EVENT)
        peer.sendall(_CHUNKED + f"{len(data):x}\r\n".encode() + data + b"\r\n" + b"ffff\r\ndata: ")

    def _sse_silent(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + event(_EVENT) * 2)
        peer.recv(1)
        raise ConnectionError

    def _sse_garbage(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + event(_EVENT) + b"data: {oops\n\n")

    def _sse_error(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + event(_EVENT) + event({"error": {"message": "no grammar here", "code": 400}}))

    def _sse_endless(self, peer: socket.socket) -> None:
        peer.sendall(_SSE)
        self._repeat(peer, event(_EVENT), 0.01)

    def _sse_no_lines(self, peer: socket.socket) -> None:
        peer.sendall(_SSE + b"data: ")
        self._repeat(peer, b"a" * (1 << 20), 0)
