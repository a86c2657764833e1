"""The doors to gateways: what PID 1 does for one beside running it as a program. One door an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.fleet.observations import Result
from infer_dev_entry.init.owner import Owner
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.spec import ServerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTools:
    """What a door works with. `post` takes results back to the loop; `owner` is the user that servers run as."""

    run_dir: str
    owner: Owner | None
    environ: Mapping[str, str]
    reaper: Reaper
    log: Any
    post: Callable[[Result], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why something cannot be done, and the mend."""

    reason: str
    mend: str = ""


class GatewayDoor(Protocol):
    """What an engine's door does. Outcomes of routing go back as `RouteSeen`."""

    def route(self, route: Route) -> None:
        """Remember what the gateway is to do, and have it do so soon; never waits, and the last one counts."""

    def look(self) -> None:
        """Look whether the gateway still does what it is to do, if that is not known otherwise; never waits."""

    async def prepare(self, spec: ServerSpec) -> Problem | None:
        """Make what must be there before a start, by the last route; a problem stops the start."""

    def close(self) -> None:
        """Give up whatever is under way."""


class Gateways:
    """One door for each engine, opened at first use: a fleet without a gateway loads nothing for it."""

    def __init__(self, tools: GatewayTools) -> None:
        self._tools = tools
        self._doors: dict[str, GatewayDoor] = {}

    def door(self, spec: ServerSpec) -> GatewayDoor:
        """The door of a gateway's engine."""
        if spec.engine not in self._doors:
            self._doors[spec.engine] = _open_door(spec.engine, self._tools)
        return self._doors[spec.engine]

    def close(self) -> None:
        """Close all."""
        for door in self._doors.values():
            door.close()


def _open_door(engine: str, tools: GatewayTools) -> GatewayDoor:
    if engine == "nginx":
        from infer_dev_entry.init.nginx import NginxDoor

        return NginxDoor(tools)
    if engine == "sglang-router":
        from infer_dev_entry.init.sglang_router import RouterDoor

        return RouterDoor(tools)
    raise ValueError(f"no gateway is called {engine}")
