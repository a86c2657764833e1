"""`infer-dev stop` ends when its servers have, whatever they were doing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import pytest

from infer_dev_entry.cli import stop
from infer_dev_entry.errors import NotRunningError


def row(state: str, pid: int | None, name: str = "a") -> dict[str, Any]:
    return {"name": name, "state": state, "pid": pid}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any] | None]:
    """What the entry says of server a, look by look, the last one for ever; None: it has ended."""
    rows: list[dict[str, Any] | None] = []

    def ask(_environ: Mapping[str, str], request: Mapping[str, Any]) -> dict[str, Any]:
        if request["op"] == "stop":
            return {"names": ["a"]}
        now = rows.pop(0) if len(rows) > 1 else rows[0]
        if now is None:
            raise NotRunningError("nobody")
        return {"servers": [now, row("ready", 9, "b")]}

    monkeypatch.setattr(stop, "ask", ask)
    return rows


@pytest.mark.parametrize(
    "course",
    [
        pytest.param([row("draining", 7), row("stopped", None)], id="drains"),
        pytest.param([row("starting", None), row("draining", 7), row("stopped", None)], id="is-just-started"),
        pytest.param([row("backoff", None), row("stopped", None)], id="not-yet-told"),
        pytest.param([row("draining", 7), None], id="the-fleet-ends"),
    ],
)
def test_stop_is_over_when_the_server_is(
    told: list[dict[str, Any] | None], capsys: pytest.CaptureFixture[str], course: list[dict[str, Any] | None]
) -> None:
    told += course
    assert stop.run(argparse.Namespace(names=["a"], timeout=60.0), {}) == 0
    assert told == course[-1:]
    assert capsys.readouterr().out == "stopped: a\n"


def test_server_that_does_not_end_is_named(
    told: list[dict[str, Any] | None], capsys: pytest.CaptureFixture[str]
) -> None:
    told.append(row("draining", 7))
    assert stop.run(argparse.Namespace(names=["a"], timeout=0.3), {}) == 1
    assert capsys.readouterr().err == "infer-dev stop: still running: a\n"
