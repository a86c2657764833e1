"""A request in flight: real tokens that come through a published port while a test does something to the container."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from engine import Container
from wait import wait_until

# More tokens than any machine here generates before it is told to stop; a slot holds 2048.
MANY_TOKENS = 1900
# Lines, as llama.cpp looks at its time limit only where a line has ended.
PROMPT = "Count:\none\ntwo\nthree\n"


class Stream:
    """A streamed completion of real tokens for `limit_s` seconds, however fast the machine; read in the background."""

    def __init__(self, port: int, limit_s: float, max_tokens: int = MANY_TOKENS, key: str = "") -> None:
        self.tokens = 0
        self.finish_reason = ""
        self.done_at = 0.0
        self.fault = ""
        self.times: list[float] = []
        self._port = port
        self._key = key
        self._body = {
            **{"prompt": PROMPT, "max_tokens": max_tokens, "stream": True},
            **{"ignore_eos": True, "t_max_predict_ms": round(limit_s * 1000)},
        }
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_until(lambda: self.tokens or self.fault, 120, "the first token")

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=200)
        try:
            headers = {"Content-Type": "application/json"}
            headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
            connection.request("POST", "/v1/completions", json.dumps(self._body), headers)
            for line in connection.getresponse():
                self._take(line.decode().removeprefix("data: ").strip())
        except (OSError, http.client.HTTPException) as error:
            self.fault = repr(error)
        finally:
            connection.close()

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.done_at = time.time()
        elif data:
            self.tokens += 1
            self.times.append(time.monotonic())
            self.finish_reason = json.loads(data)["choices"][0]["finish_reason"] or self.finish_reason

    def join(self, timeout_s: float = 120) -> None:
        """Wait for its end, good or bad."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the stream still runs after {self.tokens} tokens"


@contextlib.contextmanager
def standing_still(container: Container, server: str) -> Iterator[None]:
    """Have the server's process stand still meanwhile, so that its requests stay in flight however slow the machine."""
    pid = str(container.row(server)["pid"])
    container.exec("kill", "-STOP", pid, check=True)
    try:
        yield
    finally:
        container.exec("kill", "-CONT", pid)


def stop_in_flight(container: Container, server: str, stream: Stream, grace_s: int) -> float:
    """Stop the container while the server has the stream in flight for sure; return how long it took, in seconds."""
    with ThreadPoolExecutor(1) as pool:
        with standing_still(container, server):
            stop = pool.submit(container.stop, grace_s)
            container.wait_event("server.draining")
            assert not stream.fault and not stream.done_at
        return stop.result()
