"""The door to SGLang's router: its workers are made to be the ready servers, by what it says that it has.

Nothing is remembered of what was sent. So a router that was restarted, dropped a worker, or was changed by somebody
else is all the same to us.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.gateway.router import WORKERS_PATH, Worker, find_changes, parse_workers, render_worker
from infer_dev_entry.init.gateway import GatewayTools, Problem
from infer_dev_entry.init.route_follower import RouteFollower
from infer_dev_entry.probe import Page, request_page
from infer_dev_entry.rundir import write_private
from infer_dev_entry.spec import ServerSpec

FILES_TIMEOUT_S = 5.0
# Adding a worker takes 20 ms. A router that starts takes 3 s until it answers, longer on a busy machine.
SETTLE_TIMEOUT_S = 20.0
RETRY_S = 5.0
# A worker that was asked for and has not come is asked for again; the router gives up on one after some seconds.
POST_AGAIN_S = 5.0
_PAUSE_S = 0.05
_PAGE_TIMEOUT_S = 2.0
_REFUSED = (401, 403)


class RouterDoor:
    """Works on one router, at one thing at a time; of the routes that come meanwhile the last one counts."""

    def __init__(self, tools: GatewayTools) -> None:
        self._tools = tools
        self._log = tools.log
        self._key = secrets.token_urlsafe(32)
        self._follower = RouteFollower(
            tools, lambda route: self._catch_up(route), verb="tell the gateway its servers", retry_s=RETRY_S
        )

    # -- what the actor asks for

    def route(self, route: Route) -> None:
        """Remember who is ready, and have the router told soon."""
        self._follower.follow(route)

    def look(self) -> None:
        """Compare once more: a probe has just been made, so that this costs no wake-up of its own."""
        self._follower.wake()

    async def prepare(self, spec: ServerSpec) -> Problem | None:
        """Write the key of the control plane, which the router reads when it starts."""
        assert spec.gateway is not None
        try:
            await asyncio.wait_for(asyncio.to_thread(self._write_key, spec.gateway.conf), FILES_TIMEOUT_S)
        except (OSError, RunDirError) as error:  # TimeoutError is an OSError
            return Problem(reason=f"cannot prepare the gateway: {str(error) or 'its files do not answer'}")
        return None

    def close(self) -> None:
        """Give up whatever is under way."""
        self._follower.close()

    def _write_key(self, path: str) -> None:
        owner = self._tools.owner
        Path(path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        write_private(path, f"{self._key}\n", owner=(owner.uid, owner.gid) if owner else None)

    # -- keeping up

    async def _catch_up(self, route: Route) -> Problem | None:
        """Make the router's workers the ready servers; returns what kept it from that."""
        began = time.monotonic()
        asked: dict[str, float] = {}
        page = Page(status=0)
        missing: tuple[str, ...] = ()
        extra: tuple[Worker, ...] = ()
        while time.monotonic() - began < SETTLE_TIMEOUT_S and self._follower.is_current(route):
            page = await self._ask(route.spec, "GET", WORKERS_PATH)
            workers = parse_workers(page.text) if page.status == 200 else None
            if page.status in _REFUSED:
                return Problem(
                    reason="the router does not take infer-dev's key, as another one was there when it started",
                    mend=f"infer-dev stop {route.spec.name} && infer-dev start {route.spec.name}",
                )
            if workers is not None:
                missing, extra = find_changes(_urls(route), workers)
                if not missing and not extra:
                    self._tell_routed(route, began, changed=bool(asked))
                    return None
                await self._change(route.spec, missing, extra, asked)
            await asyncio.sleep(_PAUSE_S)
        return self._find_problem(route, page, missing, extra)

    async def _change(
        self, spec: ServerSpec, missing: tuple[str, ...], extra: tuple[Worker, ...], asked: dict[str, float]
    ) -> None:
        """Ask for what differs, each thing again only after a while."""
        wishes = {url: ("POST", WORKERS_PATH, render_worker(url)) for url in missing}
        wishes |= {worker.id: ("DELETE", f"{WORKERS_PATH}/{worker.id}", "") for worker in extra}
        now = time.monotonic()
        due = [what for what in wishes if now - asked.get(what, float("-inf")) >= POST_AGAIN_S]
        asked.update(dict.fromkeys(due, now))
        await asyncio.gather(*(self._ask(spec, *wishes[what]) for what in due))

    def _find_problem(
        self, route: Route, page: Page, missing: tuple[str, ...], extra: tuple[Worker, ...]
    ) -> Problem | None:
        if not self._follower.is_current(route):
            return None  # other news has come, or it has ended
        mend = f"see infer-dev logs {route.spec.name}"
        if not missing and not extra:
            said = f"answers {page.status}" if page.status else "does not answer"
            return Problem(reason=f"the router {said} on {WORKERS_PATH}", mend=mend)
        lacks = f"does not take on {', '.join(missing)}" if missing else "keeps"
        keeps = f"{' and keeps ' if missing else ' '}{', '.join(worker.url for worker in extra)}" if extra else ""
        return Problem(reason=f"the router {lacks}{keeps}", mend=mend)

    def _tell_routed(self, route: Route, began: float, *, changed: bool) -> None:
        if changed:
            names = " ".join(server.name for server in route.ready)
            took_ms = round(1000 * (time.monotonic() - began))
            self._log.info("gateway.routed", server=route.spec.name, ready=names or "none", took_ms=took_ms)

    async def _ask(self, spec: ServerSpec, method: str, path: str, body: str = "") -> Page:
        host, _, port = spec.address.rpartition(":")
        where = (host.strip("[]"), int(port))
        return await request_page(*where, method, path, _PAGE_TIMEOUT_S, body=body, api_key=self._key)


def _urls(route: Route) -> tuple[str, ...]:
    assert route.spec.gateway is not None
    pool = route.spec.gateway.pool
    return tuple(server.url for server in route.ready if server.name in pool)
