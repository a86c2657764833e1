"""`docker stop` and `docker kill` on a serving container: requests complete, the stubborn are killed and named."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from engine import Container, Engine, mounts
from serving import serve
from stream import Stream, stop_in_flight

REQUEST_S = 10.0
# Where no line ends in time this does: 4 to 10 s of an idle machine, 100 s of a busy one.
REQUEST_TOKENS = 600


def stopped(container: Container) -> dict[str, Any]:
    """The last word of the entry."""
    return container.events("entry.stopped")[-1]


def test_stop_inside_the_grace_completes_the_request_in_flight_and_exits_0(engine: Engine, installed: Path) -> None:
    with engine.container(
        options=[*mounts(installed), "-p", "127.0.0.1::30000"], environ=serve(control={"drain_timeout_s": 200})
    ) as container:
        before = container.wait_ready("gemma")
        # Without a command nobody is there to take a hang-up: the servers go on.
        engine.docker("kill", "-s", "HUP", container.name)
        assert container.row("gemma")["pid"] == before["gemma"]["pid"]
        stream = Stream(container.port(), REQUEST_S, REQUEST_TOKENS)
        took_s = stop_in_flight(container, "gemma", stream, grace_s=240)
        stream.join()
        assert (stream.fault, stream.finish_reason in ("length", "stop")) == ("", True)
        draining_at = datetime.fromisoformat(container.events("server.draining")[0]["timestamp"]).timestamp()
        assert stream.done_at > draining_at  # it was in flight: completed after the stop
        assert container.exit_code == 0
        assert stopped(container)["had_to_kill"] == []
        assert not container.events("server.killed")
        assert took_s < 190  # not the drain deadline, not the grace: it went when the request was done


def test_stubborn_server_is_killed_at_the_drain_deadline_and_named(engine: Engine, installed: Path) -> None:
    options = [*mounts(installed), "-p", "127.0.0.1::30000"]
    with engine.container(options=options, environ=serve(control={"drain_timeout_s": 2})) as container:
        container.wait_ready("gemma")
        # A stream that is longer than the deadline, and a server that does not even see its SIGTERM.
        stream = Stream(container.port(), 300)
        pid = container.row("gemma")["pid"]
        container.exec("kill", "-STOP", str(pid), check=True)
        took_s = container.stop(grace_s=90)
        stream.join()
        killed = container.events("server.killed")
        assert [(event["server"], event["reason"]) for event in killed] == [("gemma", "it did not stop within 2 s")]
        assert stopped(container)["had_to_kill"] == ["gemma"]
        assert not stream.done_at
        assert container.exit_code == 0  # ours, not Docker's SIGKILL (137)
        assert took_s >= 2


def test_second_stop_signal_cuts_the_drain_short(engine: Engine, installed: Path) -> None:
    options = [*mounts(installed), "-p", "127.0.0.1::30000"]
    with engine.container(options=options, environ=serve(control={"drain_timeout_s": 300})) as container:
        container.wait_ready("gemma")
        stream = Stream(container.port(), 300)
        container.exec("kill", "-STOP", str(container.row("gemma")["pid"]), check=True)
        engine.docker("kill", "-s", "TERM", container.name)
        container.wait_event("server.draining")
        assert container.running
        engine.docker("kill", "-s", "TERM", container.name)
        assert container.wait_exit() == 0  # the drain would go on for 300 s
        stream.join()
        assert [event["reason"] for event in container.events("server.killed")] == ["the stop was cut short"]
        assert stopped(container)["had_to_kill"] == ["gemma"]


@pytest.mark.parametrize("number", ["TERM", "INT"])
def test_idle_container_stops_at_once(engine: Engine, number: str) -> None:
    with engine.container() as container:
        container.wait_event("entry.note")
        engine.docker("kill", "-s", "HUP", container.name)
        assert container.running
        engine.docker("kill", "-s", number, container.name)
        assert container.wait_exit() == 0
