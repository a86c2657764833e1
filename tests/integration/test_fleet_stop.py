"""Stops: of the container, of servers by infer-dev and by supervisorctl; drains, deadlines, and who may start again."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleet import Fleet, free_port, free_ports, get, server

pytest_plugins = ("fleet_fixtures",)

STUBBORN = 8
DRAIN_S = 2.0


class Request:
    """A chat request under way: the server has read it, and answers with its words when `finish` lets it."""

    def __init__(self, fleet: Fleet, port: int) -> None:
        self._hold = Path(fleet.base / "hold")
        self._hold.touch()
        self.words = f"until {self._hold}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"messages": [{"role": "user", "content": self.words}]})
        self._connection.request("POST", "/v1/chat/completions", body)
        ports = f":{port:04X}", f":{self._connection.sock.getsockname()[1]:04X}"
        fleet.wait(lambda: _is_read(*ports), what="the server to read the request")

    def finish(self) -> str:
        """Let the server answer, and return what it says."""
        self._hold.unlink()
        try:
            return str(json.load(self._connection.getresponse())["choices"][0]["message"]["content"])
        except (OSError, ValueError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            self._connection.close()


def _is_read(local: str, remote: str) -> bool:
    """Whether a connection was accepted (it has an inode then) and nothing waits in its receive queue (proc(5))."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table][1:]
    ends = [row for row in rows if row[1].endswith(local) and row[2].endswith(remote)]
    return any(row[9] != "0" and row[4].endswith(":00000000") for row in ends)


def test_request_in_flight_is_completed_when_the_container_is_stopped(fleet: Fleet) -> None:
    port = free_port()
    fleet.write(server("a", port, "--drain-s", "0", control={"drain_timeout_s": 20}))
    fleet.start()
    fleet.wait_ready("a")
    request = Request(fleet, port)
    fleet.kill(fleet.pid, signal.SIGTERM)
    fleet.wait_event("server.draining", "a")
    assert request.finish() == request.words
    assert fleet.wait_exit() == 0
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []


def test_request_in_flight_is_completed_when_its_server_is_stopped_by_name(fleet: Fleet) -> None:
    port = free_port()
    fleet.write(server("a", port, "--drain-s", "0", control={"drain_timeout_s": 20}))
    fleet.start()
    fleet.wait_ready("a")
    request = Request(fleet, port)
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(fleet.cli, "stop", "a")
        fleet.wait_event("server.draining", "a")
        assert request.finish() == request.words
        done = stop.result()
    assert (done.returncode, done.stdout) == (0, "stopped: a\n")
    assert not fleet.events("server.killed")


def test_eight_servers_that_ignore_sigterm_stop_within_one_deadline_and_are_all_named(fleet: Fleet) -> None:
    names = [f"deaf{number}" for number in range(STUBBORN)]
    control = {"drain_timeout_s": DRAIN_S}
    ports = free_ports(STUBBORN)
    fleet.write(
        *(server(name, port, "--ignore-sigterm") for name, port in zip(names, ports, strict=True)), control=control
    )
    fleet.start()
    fleet.wait_ready(*names)
    began = time.monotonic()
    assert fleet.stop() == 0
    took_s = time.monotonic() - began
    assert took_s < STUBBORN * DRAIN_S / 2  # one after another would take twice as long
    stopped = fleet.wait_event("entry.stopped")
    assert sorted(stopped["had_to_kill"]) == names
    assert {event["server"] for event in fleet.events("server.killed")} == set(names)
    assert not fleet.members()


def test_server_that_ignores_sigterm_is_killed_at_its_deadline_and_the_other_goes_on(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("deaf", a, "--ignore-sigterm", control={"drain_timeout_s": 1}), server("b", b))
    fleet.start()
    before = fleet.wait_ready("deaf", "b")
    assert fleet.cli("stop", "deaf").returncode == 0
    row = fleet.row("deaf")
    assert (row["state"], row["pid"], row["reason"]) == ("stopped", None, "stopped by request")
    assert fleet.wait_event("server.killed", "deaf")["reason"] == "it did not stop within 1 s"
    assert [fleet.row("b")[key] for key in ("pid", "restarts")] == [before["b"][key] for key in ("pid", "restarts")]


def test_server_stopped_by_name_stays_stopped_until_it_is_started(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    assert fleet.cli("stop", "a").returncode == 0
    assert get(a)[0] == 0
    # A server that the user stopped does not count, and a server that is not wanted is not started by a crash's rules.
    assert fleet.cli("health").returncode == 0
    assert_stays(fleet, lambda: fleet.row("a")["state"] == "stopped")
    assert fleet.cli("start", "a").returncode == 0
    row = fleet.wait_again("a", before["a"]["pid"])
    assert row["restarts"] == 1
    assert not fleet.events("server.crashed")
    assert fleet.row("b")["pid"] == before["b"]["pid"]


def test_server_started_again_while_it_drains_comes_back_after_the_drain(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start()
    fleet.wait_ready("a")
    old_pid = fleet.kill_server("a", signal.SIGSTOP)  # until it is told to go on, it hears no SIGTERM
    fleet.ask("stop", names=["a"])
    fleet.wait_state("a", "draining")
    assert fleet.cli("start", "a").returncode == 0
    assert fleet.row("a")["state"] == "draining"
    fleet.kill(fleet.host_pid(old_pid), signal.SIGCONT)
    assert fleet.wait_again("a", old_pid)["restarts"] == 1
    assert not fleet.events("server.killed")
    assert not fleet.events("server.crashed")


def test_unknown_name_to_stop_start_or_show_is_refused_with_the_names_there_are(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start()
    fleet.wait_ready("a")
    for command in (("stop", "b"), ("start", "b"), ("logs", "b"), ("stop", "a", "b")):
        done = fleet.cli(*command)
        assert done.returncode == 15
        assert done.stderr == f"infer-dev {command[0]}: no server is called b; there are: a\n"
        assert done.stdout == ""
    fleet.wait_state("a", "ready")


def test_supervisorctl_stop_is_respected_and_start_hands_the_server_back(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    assert "sglang:a: stopped" in fleet.cli("ctl", "stop", "sglang:a").stdout
    assert fleet.wait_state("a", "stopped")["reason"] == "stopped by supervisorctl"
    assert_stays(fleet, lambda: fleet.row("a")["state"] == "stopped")
    assert fleet.cli("health").returncode == 0
    assert "sglang:a: started" in fleet.cli("ctl", "start", "sglang:a").stdout
    row = fleet.wait_again("a", before["a"]["pid"])
    assert row["reason"] == ""
    # Handed back: a crash is mended again.
    fleet.wait_again("a", fleet.kill_server("a"))
    assert len(fleet.events("server.crashed")) == 1
    assert fleet.row("b")["pid"] == before["b"]["pid"]


def test_supervisorctl_restart_gives_one_new_process_and_no_crash(fleet: Fleet) -> None:
    port = free_port()
    fleet.write(server("a", port, "--fork-grandchild", "setsid"))
    fleet.start()
    old_pid = fleet.wait_ready("a")["a"]["pid"]
    assert "sglang:a: started" in fleet.cli("ctl", "restart", "sglang:a").stdout
    row = fleet.wait_again("a", old_pid)
    assert row["restarts"] == 1
    assert_stays(fleet, lambda: fleet.row("a")["pid"] == row["pid"])
    assert not fleet.events("server.crashed")
    assert not fleet.events("server.killed")
    # The first one's grandchild is gone, the second's is there.
    fleet.wait(lambda: len(fleet.find_processes("fake-grandchild")) == 1, what="one grandchild alone")


def test_supervisorctl_start_of_a_server_in_its_backoff_starts_it_once(fleet: Fleet) -> None:
    restart = {"backoff_initial_s": 10.0, "backoff_max_s": 10.0}
    fleet.write(server("a", free_port(), restart=restart))
    fleet.start()
    fleet.wait_ready("a")
    old_pid = fleet.kill_server("a")
    fleet.wait_state("a", "backoff")
    ends_at = time.monotonic() + 10.0
    assert fleet.cli("ctl", "start", "sglang:a").returncode == 0
    row = fleet.wait_again("a", old_pid)
    assert time.monotonic() < ends_at - 1.0  # a tenth of it is jitter
    # Its back-off ends meanwhile, and changes nothing.
    assert_stays(fleet, lambda: fleet.row("a")["pid"] == row["pid"], ends_at + 0.5 - time.monotonic())
    assert row["restarts"] == 1


def test_stop_during_a_backoff_ends_at_once(fleet: Fleet) -> None:
    restart = {"backoff_initial_s": 60, "backoff_max_s": 60}
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "exit 1"), restart=restart))
    fleet.start()
    fleet.wait_state("a", "backoff")
    began = time.monotonic()
    assert fleet.stop() == 0
    assert time.monotonic() - began < 25


def test_stop_while_servers_load_ends_them_gracefully(fleet: Fleet) -> None:
    ports = free_ports(2)
    fleet.write(
        server("late", ports[0], "--load-s", "600"), server("waiting", ports[1], control={"depends_on": ["late"]})
    )
    fleet.start()
    fleet.wait_state("late", "loading")
    assert fleet.stop(signal.SIGINT) == 0
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []
    assert not fleet.events("server.started", "waiting")


def assert_stays(fleet: Fleet, holds: Callable[[], bool], for_s: float = 3.0) -> None:
    """Look at something longer than the period (2 s) in which supervisord is asked what it is at."""
    until = time.monotonic() + for_s
    fleet.wait(lambda: not holds() or time.monotonic() > until, for_s + 10, "the time to pass")
    assert holds(), fleet.tail()
