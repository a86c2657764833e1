"""Deal ports: replicas count up from their instance's, and every SGLang gets a port of its own for NCCL."""

from __future__ import annotations

from collections.abc import Iterable

LOWEST_PORT = 1024
HIGHEST_PORT = 65535
NCCL_OFFSET = 10_000


def replica_port(first: int, number: int) -> int | None:
    """Return the port of a replica; None past the last port."""
    port = first + number
    return port if port <= HIGHEST_PORT else None


class NcclPorts:
    """Hands out NCCL ports that no server and no other NCCL uses. The same config always gets the same ports."""

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = set(taken)

    def deal(self, http_port: int) -> int:
        """Return the first free port from `http_port` + 10000 on, wrapped into 1024…65535."""
        span = HIGHEST_PORT - LOWEST_PORT + 1
        offset = (http_port + NCCL_OFFSET - LOWEST_PORT) % span
        for step in range(span):
            port = LOWEST_PORT + (offset + step) % span
            if port not in self._taken:
                self._taken.add(port)
                return port
        raise AssertionError("more servers than ports")  # a config has at most 1 MiB
