"""Deal ports: replicas count up from their instance's, and every SGLang gets its own for NCCL and dist-init."""

from __future__ import annotations

from collections.abc import Iterable

HIGHEST_PORT = 65535
LOWEST_DEALT = 1024
# Linux gives 32768 and above to outgoing connections: there a port that was free when it was dealt may not stay so.
HIGHEST_DEALT = 32767
NCCL_OFFSET = -10_000
# With attention that is data-parallel SGLang binds the dist-init port, the six after it, and the 13th after it.
DIST_INIT_RUN = 14


def replica_port(first: int, number: int) -> int | None:
    """Return the port of a replica; None past the last port."""
    port = first + number
    return port if port <= HIGHEST_PORT else None


class PortDealer:
    """Hands out ports that no server of the config uses. The same config always gets the same ports."""

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = set(taken)

    def deal(self, http_port: int, count: int = 1) -> int | None:
        """Return the first of `count` free ports in a row, from `http_port` - 10000 on; None when there are none."""
        span = HIGHEST_DEALT - LOWEST_DEALT + 2 - count
        offset = (http_port + NCCL_OFFSET - LOWEST_DEALT) % span
        for step in range(span):
            first = LOWEST_DEALT + (offset + step) % span
            run = range(first, first + count)
            if self._taken.isdisjoint(run):
                self._taken.update(run)
                return first
        return None
