"""Stop signals and the drain: the first closes the port and requests in flight complete, the second ends at once."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from infer_dev_entry.llama_server.messages import say

DRAIN_POLL_S = 0.1
# A request is parsed and tokenized before the counters see it, and its last bytes leave after they forget it.
DRAIN_IDLE_POLLS = 3
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def catch_stop_signals() -> int:
    """Catch the stop signals from now on; return the descriptor from which their numbers can be read."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    return wake_read


def wait_for_stop(wake: int) -> str:
    """Wait for a stop signal, or for the log's reader (the supervisor) to go away; return which.

    From then on, a second signal ends the process at once.
    """
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    for fd in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                poller.register(fd, 0)  # a pipe without a reader reports POLLERR, asked for or not
    ready = {fd for fd, _ in poller.poll()}
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return signal.Signals(os.read(wake, 1)[0]).name if wake in ready else "the log's reader has gone"


def drain(server: Any, port: int, *, metrics: bool) -> None:
    """Close the port, then return when no request is left; waits without limit, as the supervisor has one.

    The library cannot answer 503 while draining: new connections (and `/health`) are refused, and an HTTP connection
    that was open before goes on being served.
    """
    if not close_port(port):
        say(f"port {port} cannot be closed; new requests are still accepted")
    idle_polls = 0
    while idle_polls < DRAIN_IDLE_POLLS:
        pending = [has_bytes_waiting(connection) for connection in _connections(port)]
        if not pending:
            return
        # Idle keep-alive connections remain. Without the counters, the library's own timeout (5 s) must close them.
        idle = metrics and not any(pending) and parse_busy(server.handle_metrics()) == 0
        idle_polls = idle_polls + 1 if idle else 0
        time.sleep(DRAIN_POLL_S)


def parse_busy(metrics: str) -> int:
    """Return the number of requests that the server's metrics count as running or queued."""
    rows = dict(line.split()[:2] for line in metrics.splitlines() if line.startswith("llamacpp:"))
    return int(float(rows["llamacpp:requests_processing"]) + float(rows["llamacpp:requests_deferred"]))


def close_port(port: int) -> bool:
    """Close the library's listening sockets behind its back; False when there are none.

    Shutting one down would end the library's accept loop, and it then cuts its streams. So its descriptor gets another
    listener that nobody can find (an abstract unix socket), and one last connection takes the loop over to that.
    """
    found = False
    for fd, listener in _own_sockets():
        with listener:
            if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or _port_of(listener) != port:
                continue
            found = True
            with socket.socket(socket.AF_UNIX) as decoy:
                decoy.bind("")
                decoy.listen(1)
                os.dup2(decoy.fileno(), fd, inheritable=False)
            with suppress(OSError), socket.socket(listener.family) as last:
                last.settimeout(1)
                last.connect(listener.getsockname())
    return found


def has_bytes_waiting(connection: socket.socket) -> bool:
    """Tell whether a connection holds an unread request or an unsent answer; closes this handle of it."""
    with connection:
        counts = (fcntl.ioctl(connection, kind, b"\0" * 4) for kind in (termios.FIONREAD, termios.TIOCOUTQ))
        return any(struct.unpack("i", count)[0] for count in counts)


def _connections(port: int) -> Iterator[socket.socket]:
    for _, found in _own_sockets():
        if _port_of(found) == port:
            yield found
        else:
            found.close()


def _own_sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield every descriptor of this process that is a socket, with a duplicate; the C++ side keeps its own."""
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        # One that the C++ side closed in the meantime is no loss.
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd, socket.socket(fileno=os.dup(fd))


def _port_of(found: socket.socket) -> int | None:
    if found.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return int(found.getsockname()[1])
