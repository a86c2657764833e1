"""What is due, and when: which server may start but for the time, what it waits for, and when to look again. Pure."""

from __future__ import annotations

from infer_dev_entry.fleet import Ending, Fleet, Server, State, find_server
from infer_dev_entry.spec import ServerSpec


def wants_supervisor(fleet: Fleet) -> bool:
    """True when supervisord is to be started as soon as it is due: nothing of its predecessor may be left by then."""
    idle = not fleet.supervisor_up and not fleet.supervisor_starting and not fleet.shutting_down
    return idle and bool(fleet.servers) and not any(server.sweeping for server in fleet.servers)


def wake_at(fleet: Fleet) -> float:
    """Return the monotonic time at which something is due, or infinity."""
    times = [_server_wake_at(fleet, server) for server in fleet.servers]
    if wants_supervisor(fleet):
        times.append(fleet.supervisor_due_at)
    return min(times, default=float("inf"))


def _server_wake_at(fleet: Fleet, server: Server) -> float:
    times = []
    if server.pid:
        if server.drain_until is not None:
            times.append(server.drain_until)
        if server.kill_at is not None:
            times.append(server.kill_at)
        if is_probed(server):
            times.append(server.probe_at)
            if server.ready_at is None:
                times.append(server.started_at + server.spec.probe.startup_deadline_s)
    elif can_start_but_for_time(fleet, server):
        times.append(max(server.due_at, fleet.last_start_at + server.spec.start_stagger_s))
    return min(times, default=float("inf"))


def is_probed(server: Server) -> bool:
    asked = bool(server.pid) and not server.spec.probe.by_pid
    return asked and not server.probing and server.ending is Ending.NONE and server.state is not State.DRAINING


def can_start_but_for_time(fleet: Fleet, server: Server) -> bool:
    return (
        server.wanted
        and not server.pid
        and not server.starting
        and not server.gpu_looking
        and server.swept
        and server.state in (State.WAITING_GPU, State.STARTING, State.BACKOFF)
        and fleet.supervisor_up
        and not fleet.shutting_down
        and not missing_dependencies(fleet, server)
        and not is_warmed_for(fleet, server)
        and not leaving_holder(fleet, server)
    )


def missing_dependencies(fleet: Fleet, server: Server) -> list[str]:
    """Name the dependencies that are not ready; one that is not in the fleet cannot be waited for."""
    found = (find_server(fleet, name) for name in server.spec.depends_on)
    return [other.spec.name for other in found if other and other.state is not State.READY]


def is_warmed_for(fleet: Fleet, server: Server) -> bool:
    """True while a server's first sibling reads the model for the first time; one that has failed is not waited for."""
    first = find_server(fleet, server.spec.warm_after) if server.spec.warm_after else None
    return (
        first is not None
        and first.wanted
        and first.runs <= 1
        and first.failures == 0
        and first.state in (State.STARTING, State.LOADING)
    )


def leaving_holder(fleet: Fleet, server: Server) -> str:
    """Name the server on its way down (one that the plan has no more, say) that holds a port of this one; or ""."""
    ports = _ports_of(server.spec)
    leaving = (other for other in fleet.servers if other.pid and other.ending is Ending.STOP)
    return next((other.spec.name for other in leaving if ports & _ports_of(other.spec)), "")


def _ports_of(spec: ServerSpec) -> set[int]:
    return {spec.port, *spec.more_ports} - {0}
