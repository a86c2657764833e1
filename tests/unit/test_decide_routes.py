"""Which servers a gateway is given, and when: at every change of readiness, and at no other time."""

from __future__ import annotations

from dataclasses import replace

from make import Story, events, make_gateway, make_spec, of_type
from test_decide import make_counters

from infer_dev_entry.fleet import State, is_healthy
from infer_dev_entry.fleet.actions import Route, Start, Stop
from infer_dev_entry.fleet.observations import PlanWish, RouteSeen, ShutdownWish, StopWish
from infer_dev_entry.status import status_row

GATEWAY = make_gateway()


def story() -> Story:
    """Two servers that are ready behind a gateway that is."""
    told = Story(make_spec("a", port=1), make_spec("b", port=2), GATEWAY)
    for name, pid in (("a", 100), ("b", 200), ("gateway", 300)):
        told.ready(name, pid)
    told.history.clear()
    return told


def last_route(told: Story) -> Route:
    route: Route = of_type(told.history, Route)[-1]
    return route


def names(route: Route) -> list[str]:
    return [server.name for server in route.ready]


def test_gateway_starts_without_waiting_and_is_told_of_each_server_that_becomes_ready() -> None:
    told = Story(make_spec("a", port=1), make_spec("b", port=2), GATEWAY)
    assert [start.spec.name for start in of_type(told.history, Start)] == ["a", "b", "gateway"]
    assert names(last_route(told)) == []
    told.ready("a", 100)
    assert (names(last_route(told)), last_route(told).pid) == (["a"], 0)
    told.ready("gateway", 300)
    assert last_route(told).pid == 300
    told.ready("b", 200)
    assert names(last_route(told)) == ["a", "b"]


def test_route_is_given_with_the_start_so_that_a_start_reads_the_present_one() -> None:
    told = story()
    told.process("EXITED", name="gateway", ended="was killed by SIGKILL")
    assert last_route(told).pid == 0
    told.process("EXITED", name="a", ended="exited with status 1")
    assert names(last_route(told)) == ["b"]


def test_nothing_is_routed_while_nothing_changes() -> None:
    told = story()
    for _ in range(5):
        told.see(after=1.0)
        told.probed(True, "a")
    assert not of_type(told.history, Route)


def test_server_that_dies_leaves_at_once() -> None:
    told = story()
    actions = told.process("EXITED", name="a", ended="was killed by SIGKILL")
    assert [names(route) for route in of_type(actions, Route)] == [["b"]]


def test_server_leaves_at_its_first_failed_probe_and_comes_back() -> None:
    told = story()
    told.see(after=10.0)
    actions = told.probed(False, "a")
    assert told.server("a").state is State.UNHEALTHY
    assert [names(route) for route in of_type(actions, Route)] == [["b"]]
    told.see(after=10.0)
    actions = told.probed(True, "a")
    assert [names(route) for route in of_type(actions, Route)] == [["a", "b"]]


def test_server_that_is_slow_but_works_stays() -> None:
    told = story()
    told.see(after=10.0)
    told.probed(True, "a", counters=make_counters(0))
    told.see(after=10.0)
    told.probed(False, "a", counters=make_counters(1))
    assert told.server("a").state is State.READY
    assert not of_type(told.history, Route)


def test_server_that_drains_leaves_before_it_is_gone() -> None:
    told = story()
    actions = told.see(wishes=(StopWish(names=("a",)),))
    assert of_type(actions, Stop) and [names(route) for route in of_type(actions, Route)] == [["b"]]


def test_gateway_that_drains_or_a_fleet_that_ends_gets_no_routes() -> None:
    told = story()
    told.see(wishes=(StopWish(names=("gateway",)),))
    told.process("EXITED", name="a", ended="exited with status 1")
    assert not of_type(told.history, Route)
    told = story()
    told.see(wishes=(ShutdownWish(),))
    assert not of_type(told.history, Route)


def test_changed_plan_of_servers_reroutes_a_running_gateway_and_restarts_nothing_of_it() -> None:
    told = story()
    gateway = make_gateway("a", "b", "c")
    specs = (make_spec("a", port=1), make_spec("b", port=2), make_spec("c", port=3), gateway)
    told.see(wishes=(PlanWish(specs=specs),))
    assert not of_type(told.history, Stop)
    assert told.server("gateway").pid == 300 and told.server("gateway").spec == gateway
    assert names(last_route(told)) == ["a", "b"]
    told.ready("c", 400)
    assert names(last_route(told)) == ["a", "b", "c"]


def test_changed_address_of_the_gateway_restarts_it() -> None:
    told = story()
    specs = (make_spec("a", port=1), make_spec("b", port=2), replace(GATEWAY, port=9000))
    actions = told.see(wishes=(PlanWish(specs=specs),))
    assert [stop.name for stop in of_type(actions, Stop)] == ["gateway"]


def test_removed_gateway_is_stopped_and_routed_no_more() -> None:
    told = story()
    told.see(wishes=(PlanWish(specs=(make_spec("a", port=1), make_spec("b", port=2))),))
    assert [stop.name for stop in of_type(told.history, Stop)] == ["gateway"]
    told.process("EXITED", name="a", ended="exited with status 1")
    assert not of_type(told.history, Route)


def test_servers_outside_of_every_pool_do_not_concern_the_gateway() -> None:
    told = Story(make_spec("a", port=1), make_spec("z", port=2), make_gateway("a"))
    told.ready("a", 100)
    told.ready("gateway", 300)
    told.history.clear()
    told.ready("z", 200)
    assert not of_type(told.history, Route)


def test_fleet_is_healthy_only_once_the_gateway_knows_who_is_ready() -> None:
    told = story()
    assert all(server.state is State.READY for server in told.fleet.servers)
    assert not is_healthy(told.fleet)
    route = told.server("gateway").routed
    assert route is not None
    told.see(results=(RouteSeen(name="gateway", route=replace(route, ready=())),))
    assert not is_healthy(told.fleet)
    told.see(results=(RouteSeen(name="gateway", route=route),))
    assert is_healthy(told.fleet)


def test_gateway_that_cannot_take_on_its_servers_is_a_notice_and_no_illness() -> None:
    told = story()
    route = told.server("gateway").routed
    told.see(results=(RouteSeen(name="gateway", route=route, problem="disk full", mend="make room"),))
    assert is_healthy(told.fleet)


def test_problem_of_a_route_shows_beside_a_ready_gateway_until_it_is_gone() -> None:
    told = story()
    told.see(results=(RouteSeen(name="gateway", problem="cannot take the keys", mend="correct the file"),))
    told.see(after=10.0)
    told.probed(True, "gateway")
    row = status_row(told.server("gateway"))
    assert (row["state"], row["reason"], row["mend"]) == ("ready", "cannot take the keys", "correct the file")
    told.see(results=(RouteSeen(name="gateway"),))
    assert status_row(told.server("gateway"))["reason"] == ""
    assert "server.crashed" not in events(told.history)
