"""The doors to gateways by themselves: what they do in times of trouble, with as many news as a crash loop makes."""

from __future__ import annotations

import asyncio
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


@pytest.mark.parametrize(("module", "name"), [(nginx, "NginxDoor"), (sglang_router, "RouterDoor")])
def test_trouble_with_much_news_is_retried_at_one_pace(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", RETRY_S)

    async def count_tries() -> int:
        tools = GatewayTools(
            run_dir=str(tmp_path),
            owner=None,
            environ={},
            reaper=None,  # type: ignore[arg-type]  # no child is started
            log=Silent(),
            post=lambda _result: None,
        )
        door = getattr(module, name)(tools)
        tries = 0

        async def fail(_route: object) -> Problem:
            nonlocal tries
            tries += 1
            return Problem(reason="the disk is full")

        monkeypatch.setattr(door, "_catch_up", fail)
        for pid in range(1, NEWS + 1):
            door.route(SimpleNamespace(pid=pid, spec=SimpleNamespace(name="gateway")))
            await asyncio.sleep(RETRY_S / NEWS / 2)
        tries = 0
        await asyncio.sleep(WATCHED_S)
        door.close()
        return tries

    tries = asyncio.run(count_tries())
    assert 1 <= tries <= WATCHED_S / RETRY_S + 1
