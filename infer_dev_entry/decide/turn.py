"""One run of `decide`: the fleet so far, what was seen, the actions so far."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.fleet import Fleet, Server, applied_specs
from infer_dev_entry.fleet.actions import Action, Configure, Report
from infer_dev_entry.fleet.observations import Observation


class Turn:
    """One run of `decide`: a fleet that is replaced step by step, and the actions so far. Touches nothing else."""

    def __init__(self, fleet: Fleet, seen: Observation) -> None:
        self.fleet = fleet
        self.seen = seen
        self.actions: list[Action] = []

    def put(self, server: Server) -> None:
        """Put a server in the place of the one of its name."""
        name = server.spec.name
        servers = tuple(server if other.spec.name == name else other for other in self.fleet.servers)
        self.fleet = replace(self.fleet, servers=servers)

    def report(self, level: str, event: str, server: Server | None = None, **fields: str | int | float) -> None:
        """Have an event logged."""
        named = {"server": server.spec.name} if server else {}
        self.actions.append(Report(level=level, event=event, fields=tuple((named | fields).items())))

    def configure(self) -> None:
        """Give supervisord the present specs, if it is there to take them."""
        if self.fleet.supervisor_up:
            self.actions.append(Configure(specs=applied_specs(self.fleet)))
