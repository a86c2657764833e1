"""What users ask for: start, stop, another plan, shutdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from infer_dev_entry.decide.routes import is_rerouted
from infer_dev_entry.decide.stops import stop
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Server, State, applied_specs
from infer_dev_entry.fleet.observations import PlanWish, ShutdownWish, StartWish, StopWish, Wish
from infer_dev_entry.spec import ServerSpec


def take_wish(turn: Turn, wish: Wish) -> None:
    """Take in one wish."""
    match wish:
        case StopWish(names=names):
            for server in _named(turn, names):
                stop(turn, replace(server, wanted=False, reason="stopped by request", mend=""))
        case StartWish(names=names):
            for server in _named(turn, names):
                _want_start(turn, server)
        case PlanWish(specs=specs):
            _take_plan(turn, specs)
        case ShutdownWish(now=now):
            _shut_down(turn, now)


def _named(turn: Turn, names: tuple[str, ...] | None) -> Iterable[Server]:
    return [server for server in turn.fleet.servers if names is None or server.spec.name in names]


def _want_start(turn: Turn, server: Server) -> None:
    if turn.fleet.shutting_down or (server.pid and server.ending is Ending.NONE):
        return
    server = replace(server, wanted=True, failures=0, unready_failures=0, due_at=turn.seen.now, mend="")
    if not server.pid:
        server = replace(server, state=State.STARTING, reason="start requested")
    turn.put(server)


def _take_plan(turn: Turn, specs: tuple[ServerSpec, ...]) -> None:
    if turn.fleet.shutting_down:
        return
    before = turn.fleet
    old = {server.spec.name: server for server in before.servers}
    wanted = {spec.name for spec in specs}
    kept = [_plan_one(turn, old.get(spec.name), spec) for spec in specs]
    leaving = [
        replace(server, removing=True, wanted=False) for server in before.servers if server.spec.name not in wanted
    ]
    leaving = [server for server in leaving if server.pid or server.starting]
    turn.fleet = replace(before, servers=(*kept, *leaving))
    if applied_specs(before) != applied_specs(turn.fleet):
        turn.configure()
    for server in turn.fleet.servers:
        if server.removing or server.successor:
            stop(turn, server)


def _plan_one(turn: Turn, server: Server | None, spec: ServerSpec) -> Server:
    if server is None:
        return Server(spec=spec, due_at=turn.seen.now)
    if is_rerouted(server, spec):
        server = replace(server, spec=spec)
    if server.spec == spec:
        fresh = replace(server, spec=spec, removing=False, successor=None)
        if fresh.pid or fresh.starting:
            return replace(fresh, wanted=True)
        # Whoever serves a config again wants its stopped, failed and waiting servers tried again now.
        return replace(
            fresh, wanted=True, state=State.STARTING, due_at=turn.seen.now, failures=0, unready_failures=0, mend=""
        )
    if server.pid or server.starting:
        return replace(server, successor=spec, wanted=True, removing=False, reason="config changed")
    return Server(spec=spec, due_at=turn.seen.now, swept=server.swept, sweeping=server.sweeping)


def _shut_down(turn: Turn, now: bool) -> None:
    turn.fleet = replace(turn.fleet, shutting_down=True, cut_short=now or turn.fleet.cut_short)
    for server in turn.fleet.servers:
        stop(turn, replace(server, wanted=False, reason="shutting down", successor=None))
