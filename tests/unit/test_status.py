"""What users see."""

from __future__ import annotations

import json

import pytest
from make import Story, make_spec

from infer_dev_entry.fleet.observations import GpuSeen
from infer_dev_entry.gpu_wait import NO_DRIVER
from infer_dev_entry.status import (
    STATUS_KEYS,
    render_curl,
    render_duration,
    render_ready,
    render_status_table,
    status_row,
    status_rows,
)


def test_row_has_the_documented_keys_and_is_json() -> None:
    story = Story(make_spec("a", gpu_ids=("0", "1")))
    story.see(results=(GpuSeen(name="a", gpu_ids=story.server().spec.gpu_ids, look=NO_DRIVER),))
    story.ready(pid=42)
    row = status_row(story.server())
    assert set(STATUS_KEYS) <= set(row)
    assert json.loads(json.dumps(row))["gpu_ids"] == ["0", "1"]
    assert row["pid"] == 42
    assert row["state"] == "ready"


def test_row_without_process_has_null_pid() -> None:
    assert status_row(Story(make_spec()).server())["pid"] is None


def test_table_is_aligned_and_reasons_stand_below() -> None:
    story = Story(make_spec("a"), make_spec("a-long-name", gpu_ids=()))
    story.ready("a")
    story.process("EXITED", ended="exited with status 2", name="a", after=1.0)
    lines = render_status_table(status_rows(story.fleet), story.now).splitlines()
    assert lines[0].startswith("NAME ")
    assert lines[1].index("backoff") == lines[2].index("starting")
    assert "none" in lines[2]
    assert lines[3].startswith("a: exited with status 2 → see infer-dev logs a")


def test_table_of_nothing_is_its_head() -> None:
    assert len(render_status_table([], 0.0).splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "1d01h")],
)
def test_duration_is_short(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_curl_body_is_json() -> None:
    line = render_curl("http://127.0.0.1:1")
    body = line.partition("-d '")[2].rstrip("'")
    assert json.loads(body)["messages"][0]["role"] == "user"


def test_greeting_ends_with_a_command_to_try() -> None:
    story = Story(make_spec())
    story.ready()
    assert list(render_ready(status_rows(story.fleet), story.now))[-1].startswith(
        "try:  curl -s http://127.0.0.1:30000/"
    )
