"""The door to SGLang's router, before a scripted router: what is asked, and what is said when it will not be told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from make import make_gateway, make_spec

from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.fleet.observations import RouteSeen
from infer_dev_entry.init import sglang_router as module
from infer_dev_entry.init.gateway import GatewayTools
from infer_dev_entry.init.sglang_router import RouterDoor
from infer_dev_entry.probe import Page

GATEWAY = replace(make_gateway(), engine="sglang-router")
A, B = make_spec("a", port=1), make_spec("b", port=2)


class Router:
    """Stands in for the router: its workers by id, and every request that is no look."""

    def __init__(self) -> None:
        self.workers: dict[str, str] = {}
        self.asked: list[str] = []
        self.keys: set[str] = set()
        self.looks = 0
        self.status = 200
        self.deaf = False
        self.on_look: Callable[[], None] = lambda: None

    async def request_page(
        self, host: str, port: int, method: str, path: str, _timeout_s: float, *, body: str = "", api_key: str = ""
    ) -> Page:
        assert (host, port) == ("127.0.0.1", 8000)
        self.keys.add(api_key)
        if method == "GET":
            self.looks += 1
            self.on_look()
            listed = [{"id": name, "url": url} for name, url in self.workers.items()]
            return Page(status=self.status, text=json.dumps({"workers": listed}))
        url = json.loads(body)["url"] if body else path.rpartition("/")[2]
        self.asked.append(f"{method} {url}")
        if not self.deaf and method == "POST":
            self.workers[f"id{url[-1]}"] = url
        elif not self.deaf:
            self.workers.pop(url, None)
        return Page(status=202)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    made = Router()
    monkeypatch.setattr(module, "request_page", made.request_page)
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    yield made


def route(*ready: Any, pid: int = 7) -> Route:
    return Route(spec=GATEWAY, pid=pid, ready=ready)


class Run:
    """A door in a loop of its own; `told` is what went back to PID 1."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.told: list[RouteSeen] = []
        self.log = mock.Mock()
        self.tools = GatewayTools(
            run_dir="/nowhere",
            owner=None,
            environ={},
            reaper=mock.Mock(),
            log=self.log,
            post=self.told.append,  # type: ignore[arg-type]
        )

    def live(self, *steps: Callable[[RouterDoor], None]) -> None:
        """Take each step and wait until the door has nothing to do."""

        async def main() -> None:
            door = RouterDoor(self.tools)
            for step in steps:
                step(door)
                await self._settle(self.router)
            door.close()

        asyncio.run(main())

    async def _settle(self, router: Router) -> None:
        """Wait until the router is left in peace."""
        for _ in range(500):
            looks = router.looks
            await asyncio.sleep(0.01)
            if router.looks == looks:
                return
        raise AssertionError("the door does not settle")


def test_workers_become_the_ready_servers_of_the_pool(router: Router) -> None:
    router.workers = {"id9": "http://127.0.0.1:9"}
    run = Run(router)
    wanted = route(A, B, make_spec("other", port=3))
    run.live(lambda door: door.route(wanted))
    assert sorted(router.asked) == ["DELETE id9", "POST http://127.0.0.1:1", "POST http://127.0.0.1:2"]
    assert set(router.workers.values()) == {A.url, B.url}
    assert [(seen.problem, seen.route) for seen in run.told] == [("", wanted)]
    assert run.log.info.call_args.kwargs["ready"] == "a b other"


def test_look_that_finds_nothing_changed_asks_for_nothing_and_tells_nothing(router: Router) -> None:
    run = Run(router)
    run.live(lambda door: door.route(route(A)), lambda door: door.look(), lambda door: door.look())
    assert router.asked == [f"POST {A.url}"]
    assert router.looks == 4  # before and after the change, and two looks
    assert len(run.told) == 1
    assert run.log.info.call_count == 1


def test_look_puts_right_what_the_router_dropped(router: Router) -> None:
    Run(router).live(
        lambda door: door.route(route(A)), lambda _: router.workers.clear(), lambda door: door.look(), lambda _: None
    )
    assert router.asked == [f"POST {A.url}"] * 2


def test_new_process_is_given_all_servers_again(router: Router) -> None:
    def crash(door: RouterDoor) -> None:
        router.workers.clear()
        door.route(route(A, B, pid=0))

    run = Run(router)
    run.live(lambda door: door.route(route(A, B)), crash, lambda door: door.route(route(A, B, pid=8)))
    assert len(router.asked) == 4
    assert len(run.told) == 2  # what was said of the old process does not stand for the new one


def test_router_that_is_not_running_is_not_asked(router: Router) -> None:
    Run(router).live(lambda door: door.route(route(A, pid=0)), lambda door: door.look())
    assert router.looks == 0


def test_news_that_come_meanwhile_count_and_the_old_ones_do_not(router: Router) -> None:
    router.deaf = True

    def take(door: RouterDoor) -> None:
        door.route(route(A))

        def hear() -> None:
            if router.looks == 3:
                router.deaf = False
                router.asked.clear()
                door.route(route(B))

        router.on_look = hear

    run = Run(router)
    run.live(take)
    assert router.asked == [f"POST {B.url}"]
    assert run.told == [RouteSeen(name="gateway", route=route(B))]


@pytest.mark.parametrize(
    ("change", "reason", "mend"),
    [
        ({"deaf": True}, f"the router does not take on {A.url} and keeps http://127.0.0.1:9", "see infer-dev logs"),
        ({"status": 500}, "the router answers 500 on /workers", "see infer-dev logs gateway"),
        ({"status": 0}, "the router does not answer on /workers", "see infer-dev logs gateway"),
        ({"status": 401}, "the router does not take infer-dev's key", "infer-dev stop gateway && infer-dev start"),
    ],
)  # fmt: skip
def test_router_that_will_not_be_told_is_named_once(
    router: Router, change: dict[str, object], reason: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_TIMEOUT_S", 0.5)
    router.workers = {"id9": "http://127.0.0.1:9"}
    for name, value in change.items():
        setattr(router, name, value)
    run = Run(router)
    run.live(lambda door: door.route(route(A)), lambda door: door.look())
    (seen,) = run.told
    assert seen.problem.startswith(reason)
    assert seen.mend.startswith(mend)
    assert run.log.error.call_count == 1
    assert len(router.asked) <= 4  # each thing once in a while, however often it is looked


def test_key_is_new_for_each_run_and_only_in_its_private_file(router: Router, tmp_path: Path) -> None:
    keys = set()
    for number in range(2):
        conf = tmp_path / str(number) / "gateway.conf"
        spec = replace(GATEWAY, gateway=replace(make_gateway(conf=str(conf)).gateway))

        async def main(spec: Any = spec) -> None:
            door = RouterDoor(Run(router).tools)
            assert await door.prepare(spec) is None
            door.route(Route(spec=spec, pid=7, ready=(A,)))
            await asyncio.sleep(0.02)
            door.close()

        asyncio.run(main())
        assert conf.stat().st_mode & 0o777 == 0o600
        keys.add(conf.read_text().strip())
    assert keys == router.keys
    assert len(keys) == 2


def test_place_that_cannot_be_written_stops_the_start(router: Router, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file, no directory")
    spec = replace(GATEWAY, gateway=make_gateway(conf=str(tmp_path / "config" / "gateway.conf")).gateway)

    async def main() -> str:
        problem = await RouterDoor(Run(router).tools).prepare(spec)
        return problem.reason if problem else ""

    assert asyncio.run(main()).startswith("cannot prepare the gateway: ")
