"""Who starts when: dependencies, foreground instances, staggered starts, and instances fanned out into replicas."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from fleet import Fleet, free_port, free_ports, get, server

pytest_plugins = ("fleet_fixtures",)


def order_of(fleet: Fleet) -> list[tuple[str, str]]:
    """Return the starts and readinesses so far as (event, server)."""
    wanted = ("server.started", "server.ready")
    return [(event["event"].partition(".")[2], event["server"]) for event in fleet.events() if event["event"] in wanted]


def test_server_waits_until_its_dependencies_are_ready_whatever_the_file_says(fleet: Fleet) -> None:
    a, b, c = free_ports(3)
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(
        server("last", a, control={"depends_on": ["middle"]}),
        server("middle", b, control={"depends_on": ["first"]}),
        server("first", c, "--hang-file", str(hold)),
    )
    fleet.start()
    fleet.wait_event("server.started", "first")
    for name, missing in (("middle", "first"), ("last", "middle")):
        row = fleet.wait_state(name, "starting", reason=f"waits until {missing} is ready")
        assert row["pid"] is None
    hold.unlink()
    fleet.wait_ready("first", "middle", "last")
    names = ("first", "middle", "last")
    assert order_of(fleet) == [(event, name) for name in names for event in ("started", "ready")]


def test_server_whose_dependency_crashes_later_goes_on(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b, control={"depends_on": ["a"]}))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    fleet.wait_again("a", fleet.kill_server("a"))
    assert fleet.row("b")["pid"] == before["b"]["pid"]


def test_instances_after_one_in_the_foreground_wait_until_it_is_ready(fleet: Fleet) -> None:
    a, b, c = free_ports(3)
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(
        server("one", a),
        server("two", b, "--hang-file", str(hold), control={"background": False}),
        server("three", c),
    )
    fleet.start()
    fleet.wait_event("server.started", "one")
    fleet.wait_event("server.started", "two")
    hold.unlink()
    fleet.wait_ready("one", "two", "three")
    order = order_of(fleet)
    assert order.index(("ready", "two")) < order.index(("started", "three"))
    assert order.index(("started", "one")) < order.index(("ready", "two"))


def test_starts_are_staggered_by_at_least_what_is_asked(fleet: Fleet) -> None:
    names = ("a", "b", "c")
    ports = free_ports(3)
    fleet.write(
        *(server(name, port) for name, port in zip(names, ports, strict=True)), control={"start_stagger_s": 3.0}
    )
    fleet.start()
    fleet.wait_ready(*names)
    starts = [fleet.wait_event("server.started", name)["timestamp"] for name in names]
    moments = [datetime.fromisoformat(start).timestamp() for start in starts]
    # The event is logged when supervisord has answered; the pause is between the requests.
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(moments)), moments


def test_replicas_have_names_ports_logs_and_lives_of_their_own(fleet: Fleet) -> None:
    ports = free_ports(3)
    fleet.write(
        server("glm", ports[0], control={"replicas": 3}), server("other", free_port(), control={"depends_on": ["glm"]})
    )
    fleet.start()
    rows = fleet.wait_ready("glm-0", "glm-1", "glm-2", "other")
    assert [rows[f"glm-{number}"]["url"] for number in range(3)] == [f"http://127.0.0.1:{port}" for port in ports]
    assert [get(port)[0] for port in ports] == [200] * 3
    for number, port in enumerate(ports):
        line = f"fake server on 127.0.0.1:{port}"
        fleet.wait(lambda number=number, line=line: line in fleet.log_of(f"glm-{number}"), what=f"{line!r} in the log")
    order = order_of(fleet)
    assert max(order.index(("ready", f"glm-{number}")) for number in range(3)) < order.index(("started", "other"))
    fleet.wait_again("glm-1", fleet.kill_server("glm-1"))
    assert [fleet.row(f"glm-{number}")["restarts"] for number in range(3)] == [0, 1, 0]
