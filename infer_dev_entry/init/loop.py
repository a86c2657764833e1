"""The loop of a running fleet: observe → decide → act, until everything is down."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

from infer_dev_entry.decide import decide
from infer_dev_entry.decide.due import wake_at
from infer_dev_entry.errors import SupervisorError
from infer_dev_entry.fleet import Fleet, State, applied_specs, is_down, is_healthy
from infer_dev_entry.fleet.observations import Observation, ProcessSeen, Result, Wish
from infer_dev_entry.init.act import Actor
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.status import render_ready, status_rows

# supervisord's own view is asked for this often; deaths are known at once by pidfd, so this only notices what users do
# through supervisorctl, and a supervisord that hangs.
POLL_SETTLED_S = 5.0
POLL_STARTING_S = 1.0
TREES_SETTLED_S = 10.0
# Failed questions in a row (each waits 5 s) after which supervisord is ended as hung.
SUPERVISOR_HUNG_AFTER = 2
BUG_PAUSE_S = 0.2


class FleetLoop:
    """Owns the fleet. Others only post: results, wishes, and pokes to look at once."""

    def __init__(
        self,
        make_actor: Callable[[FleetLoop], Actor],
        log: Any,
        *,
        on_ready: Callable[[str], None],
        on_turn: Callable[[Fleet], None],
    ) -> None:
        self.fleet = Fleet()
        self.turns = 0  # decisions taken; a wish has been taken in when this has grown
        self.actor = make_actor(self)
        self._log = log
        self._on_ready = on_ready
        self._on_turn = on_turn
        self._results: list[Result] = []
        self._wishes: list[Wish] = []
        self._snapshot: tuple[float, tuple[ProcessSeen, ...]] | None = None
        self._changed = asyncio.Event()
        self._poked = False
        self._polled_at = float("-inf")
        self._trees_at = 0.0
        self._polling: asyncio.Task[None] | None = None
        self._poll_failures = 0
        self._was_healthy = False
        self._noted: frozenset[int] = frozenset()
        self._greeted: tuple[ServerSpec, ...] = ()

    # -- what others post

    def post(self, result: Result) -> None:
        """Take the outcome of an action."""
        self._results.append(result)
        self._changed.set()

    def wish(self, wish: Wish) -> None:
        """Take a user's wish."""
        self._wishes.append(wish)
        self._changed.set()

    def poke(self) -> None:
        """Ask supervisord at once: something has happened."""
        self._poked = True
        self._changed.set()

    # -- the loop

    async def run(self) -> None:
        """Turn until a shutdown is complete. Survives its own bugs: they are logged and the loop goes on."""
        while not (self.fleet.shutting_down and is_down(self.fleet) and not self._wishes):
            try:
                await self._turn()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # PID 1 must not die of a bug
                self._log.error("entry.bug", error=repr(error), exc_info=error)
                await asyncio.sleep(BUG_PAUSE_S)

    async def _turn(self) -> None:
        await self._wait()
        self._poll_if_due()
        seen = self._observe()
        self.fleet, actions = decide(self.fleet, seen)
        self.turns += 1
        self.actor.know_specs(applied_specs(self.fleet))
        for action in actions:
            self.actor.act(action)
        self._note_trees()
        self._tell_if_ready()
        self._on_turn(self.fleet)

    def _note_trees(self) -> None:
        """Note the processes of a server that is newly ready: it has forked by now, and may die before a poll."""
        ready = {server.pid: server.spec.name for server in self.fleet.servers if server.ready_at is not None}
        fresh = [name for pid, name in ready.items() if pid not in self._noted]
        if fresh:
            self.actor.refresh_trees(fresh)
        self._noted = frozenset(ready)

    async def _wait(self) -> None:
        # A question under way answers by itself; one that is due meanwhile must not keep the loop turning.
        asks = self.fleet.supervisor_up and (self._polling is None or self._polling.done())
        due = min(wake_at(self.fleet), self._poll_at if asks else float("inf"))
        delay = due - time.monotonic()
        if delay > 0 and not self._changed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if delay == float("inf") else delay)
        else:
            await asyncio.sleep(0)  # signals and results get their turn, whatever is due
        self._changed.clear()

    def _observe(self) -> Observation:
        results, self._results = self._results, []
        wishes, self._wishes = self._wishes, []
        snapshot, self._snapshot = self._snapshot, None
        return Observation(
            now=time.monotonic(),
            wall=time.time(),
            jitter=random.random(),
            wishes=tuple(wishes),
            results=tuple(results),
            processes=snapshot[1] if snapshot else None,
            processes_at=snapshot[0] if snapshot else 0.0,
        )

    # -- supervisord's view

    @property
    def _settled(self) -> bool:
        calm = (State.READY, State.STOPPED, State.FAILED, State.WAITING_GPU)
        return all(server.state in calm for server in self.fleet.servers)

    @property
    def _poll_at(self) -> float:
        # By what the fleet is now: the answer to the last question may have told of a death.
        return self._polled_at + (POLL_SETTLED_S if self._settled else POLL_STARTING_S)

    def _poll_if_due(self) -> None:
        """Start a question to supervisord; one at a time, and never waited for here."""
        now = time.monotonic()
        if not self.fleet.supervisor_up or (self._polling and not self._polling.done()):
            return
        if self._poked or now >= self._poll_at:
            self._poked = False
            self._polled_at = now
            self._polling = asyncio.get_running_loop().create_task(self._poll(now))
            if not self._settled or now >= self._trees_at:
                self._trees_at = now + TREES_SETTLED_S
                self.actor.refresh_trees([server.spec.name for server in self.fleet.servers if server.ready_at is None])

    async def _poll(self, asked_at: float) -> None:
        pids = {server.spec.name: server.pid for server in self.fleet.servers}
        try:
            self._snapshot = (asked_at, await self.actor.see_processes(pids))
            self._poll_failures = 0
        except SupervisorError as error:
            self._poll_failures += 1
            self._log.debug("supervisor.no_answer", error=str(error), failures=self._poll_failures)
            if self._poll_failures >= SUPERVISOR_HUNG_AFTER and self.fleet.supervisor_up:
                self._poll_failures = 0
                self.actor.supervisord.kill_hung()
        self._changed.set()

    # -- the greeting

    def _tell_if_ready(self) -> None:
        healthy = bool(self.fleet.servers) and is_healthy(self.fleet) and not self.fleet.shutting_down
        if healthy and not self._was_healthy and any(server.wanted for server in self.fleet.servers):
            rows = status_rows(self.fleet)
            self._log.info("fleet.ready", servers=len(rows), urls=" ".join(row["url"] for row in rows if row["url"]))
            greeted, self._greeted = self._greeted, applied_specs(self.fleet)
            for line in render_ready(rows, time.time()) if greeted != self._greeted else ():
                self._on_ready(line)
        self._was_healthy = healthy
