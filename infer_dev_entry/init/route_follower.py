"""Keep a gateway at the last route that it was given: one task, one thing at a time, retries at one pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.fleet.observations import RouteSeen
from infer_dev_entry.init.gateway import GatewayTools, Problem


class RouteFollower:
    """Of the routes that come while one is worked at the last one counts.

    `catch_up` makes a route be in force and returns what kept it from that; it may give up, and return None, once the
    route `is_current` no more. `look` says every `look_s`, while the gateway runs, whether there is something to catch
    up with beside a route. `notice` is a problem that does not keep a route from being in force. `verb` says for people
    what is done.
    """

    def __init__(
        self,
        tools: GatewayTools,
        catch_up: Callable[[Route], Awaitable[Problem | None]],
        *,
        verb: str,
        retry_s: float,
        look: Callable[[Route], Awaitable[bool]] | None = None,
        look_s: float | None = None,
        notice: Callable[[], Problem | None] = lambda: None,
    ) -> None:
        self._tools = tools
        self._catch_up = catch_up
        self._verb = verb
        self._retry_s = retry_s
        self._look = look
        self._look_s = look_s
        self._notice = notice
        self._route: Route | None = None
        self._told: RouteSeen | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def route(self) -> Route | None:
        """The last route that was given."""
        return self._route

    def follow(self, route: Route) -> None:
        """Remember what the gateway is to do, and have it do so soon."""
        self._told = None  # also of an equal one: another may have been in force meanwhile
        self._route = route
        self.wake()

    def wake(self) -> None:
        """Catch up once more."""
        self._news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def is_current(self, route: Route) -> bool:
        """True while no other route has come."""
        return self._route is route

    def close(self) -> None:
        """Give up whatever is under way."""
        if self._task is not None:
            self._task.cancel()
        if self._retry is not None:
            self._retry.cancel()

    async def _run(self) -> None:
        while True:
            has_news = await self._wait_for_news()
            route = self._route
            if route is None or not route.pid or not (has_news or (self._look and await self._look(route))):
                continue
            try:
                problem = await self._catch_up(route)
            except (OSError, RunDirError) as error:  # TimeoutError is an OSError
                problem = Problem(reason=f"cannot {self._verb}: {str(error) or 'its files do not answer'}")
            except Exception as error:  # the task must outlive a bug, as PID 1 does
                self._tools.log.error("entry.bug", error=repr(error), exc_info=error)
                problem = Problem(reason=f"cannot {self._verb}: {error!r}")
            if self._retry is not None:
                self._retry.cancel()  # or each news of a time of trouble would leave a chain of retries of its own
            later = asyncio.get_running_loop().call_later
            self._retry = later(self._retry_s, self._news.set) if problem is not None else None
            self._tell(route, problem)

    async def _wait_for_news(self) -> bool:
        """Wait for news, or until it is time to look; say which it was."""
        running = self._route is not None and self._route.pid
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), self._look_s if running else None)
        has_news = self._news.is_set()
        self._news.clear()
        return has_news

    def _tell(self, route: Route, problem: Problem | None) -> None:
        shown = problem or self._notice()
        seen = RouteSeen(name=route.spec.name, route=route)
        if shown is not None:
            seen = replace(seen, problem=shown.reason, mend=shown.mend)
        if seen == self._told or not self.is_current(route):
            return
        if problem is not None:
            self._tools.log.error(
                "gateway.not_routed", server=route.spec.name, reason=problem.reason, mend=problem.mend
            )
        self._told = seen
        self._tools.post(seen)
