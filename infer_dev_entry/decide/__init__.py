"""The pure heart: `decide` takes a fleet and what was observed, and returns the new fleet with the actions to take."""

from __future__ import annotations

from infer_dev_entry.decide.clock import take_time
from infer_dev_entry.decide.gpus import take_gpus, take_room
from infer_dev_entry.decide.probes import take_probe
from infer_dev_entry.decide.processes import take_processes
from infer_dev_entry.decide.routes import route_if_changed, take_route
from infer_dev_entry.decide.starts import take_start, take_sweep
from infer_dev_entry.decide.supervisor import take_supervisor
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.decide.wishes import take_wish
from infer_dev_entry.fleet import Fleet, find_server
from infer_dev_entry.fleet.actions import Action
from infer_dev_entry.fleet.observations import (
    GpuSeen,
    Observation,
    ProbeSeen,
    Result,
    RoomSeen,
    RouteSeen,
    StartSeen,
    SupervisorSeen,
    SweepSeen,
)


def decide(fleet: Fleet, seen: Observation) -> tuple[Fleet, tuple[Action, ...]]:
    """Take in what was observed and return the new fleet with the actions to carry out, in order."""
    turn = Turn(fleet, seen)
    for wish in seen.wishes:
        take_wish(turn, wish)
    for result in seen.results:
        _take_result(turn, result)
    if seen.processes is not None:
        take_processes(turn, seen.processes)
    take_time(turn)
    route_if_changed(turn)
    return turn.fleet, tuple(turn.actions)


def _take_result(turn: Turn, result: Result) -> None:
    if isinstance(result, SupervisorSeen):
        take_supervisor(turn, result)
        return
    server = find_server(turn.fleet, result.name)
    if server is None:
        return
    match result:
        case StartSeen():
            take_start(turn, server, result)
        case ProbeSeen():
            take_probe(turn, server, result)
        case SweepSeen():
            take_sweep(turn, server, result)
        case GpuSeen():
            take_gpus(turn, server, result)
        case RoomSeen():
            take_room(turn, server, result)
        case RouteSeen():
            take_route(turn, server, result)
