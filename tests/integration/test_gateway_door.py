"""The doors to gateways by themselves: what they do in times of trouble, with as many news as a crash loop makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infer_dev_entry.init import nginx, sglang_router
from infer_dev_entry.init.gateway import GatewayTools, Problem

NEWS = 20
RETRY_S = 0.2
WATCHED_S = 1.0


class Silent:
    """A log that nobody reads."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_fields: None


DOORS = [(nginx, "NginxDoor"), (sglang_router, "RouterDoor")]


def make_door(module: Any, name: str, run_dir: Path, post: Callable[[Any], None]) -> Any:
    tools = GatewayTools(
        run_dir=str(run_dir),
        owner=None,
        environ={},
        reaper=None,  # type: ignore[arg-type]  # no child is started
        log=Silent(),
        post=post,
    )
    return getattr(module, name)(tools)


def make_route(pid: int) -> Any:
    return SimpleNamespace(pid=pid, spec=SimpleNamespace(name="gateway"))


@pytest.mark.parametrize(("module", "name"), DOORS)
def test_route_that_another_one_has_overtaken_is_not_told_to_be_in_force(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    async def overtake() -> None:
        door = make_door(module, name, tmp_path, told.append)
        first, second = make_route(1), make_route(1)

        async def catch_up(route: object) -> None:
            if route is first:
                door.route(second)  # it comes while the first is worked at, which is given up then

        monkeypatch.setattr(door, "_catch_up", catch_up)
        door.route(first)
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if any(seen.route is second for seen in told):
                break
        door.close()
        assert [seen.route is second for seen in told] == [True]

    asyncio.run(overtake())


@pytest.mark.parametrize(("module", "name"), DOORS)
def test_trouble_with_much_news_is_retried_at_one_pace(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", RETRY_S)

    async def count_tries() -> tuple[int, float]:
        door = make_door(module, name, tmp_path, lambda _result: None)
        tries = 0

        async def fail(_route: object) -> Problem:
            nonlocal tries
            tries += 1
            return Problem(reason="the disk is full")

        monkeypatch.setattr(door, "_catch_up", fail)
        for pid in range(1, NEWS + 1):
            door.route(make_route(pid))
            await asyncio.sleep(RETRY_S / NEWS / 2)
        tries, began = 0, time.monotonic()
        await asyncio.sleep(WATCHED_S)
        door.close()
        return tries, time.monotonic() - began

    tries, watched_s = asyncio.run(count_tries())
    assert 1 <= tries <= watched_s / RETRY_S + 1
