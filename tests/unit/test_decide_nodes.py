"""`decide` with a server that is watched by its process alone: a node of SGLang that answers no requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from make import PROBE, RESTART, Story, make_spec, of_type

from infer_dev_entry.decide.due import wake_at
from infer_dev_entry.diagnosis.model import Policy
from infer_dev_entry.fleet import Server, State, is_healthy
from infer_dev_entry.fleet.actions import Kill, Probe, Report, Stop
from infer_dev_entry.fleet.observations import ProcessSeen, ShutdownWish, SweepSeen
from infer_dev_entry.status import render_ready, render_status_table, status_rows

NOTE = "rank 1 of 2: watched by its process; rank 0 answers"
NODE = make_spec("node", probe=replace(PROBE, by_pid=True, stall_timeout_s=50.0), serves=False, note=NOTE)


def running() -> Story:
    """A node whose process has lived past `startsecs`."""
    story = Story(NODE)
    story.started("node")
    story.process("RUNNING", name="node", pid=100, after=1.0)
    return story


def node(story: Story) -> Server:
    return story.server("node")


def test_node_is_ready_once_its_process_has_lived_past_startsecs() -> None:
    story = Story(NODE)
    story.started("node")
    story.process("STARTING", name="node", pid=100, after=0.5)
    assert node(story).state is State.STARTING
    story.process("RUNNING", name="node", pid=100, after=1.0)
    assert (node(story).state, node(story).reason) == (State.READY, NOTE)
    assert node(story).ready_since is not None
    assert is_healthy(story.fleet)
    (ready,) = [action for action in of_type(story.actions, Report) if action.event == "server.ready"]
    assert dict(ready.fields)["note"] == NOTE


def test_node_is_never_probed_and_has_no_deadline() -> None:
    story = running()
    for _ in range(20):
        story.process("RUNNING", name="node", pid=100, after=1000.0)
    assert of_type(story.history, Probe) == []
    assert of_type(story.history, Kill) == []
    assert node(story).state is State.READY
    assert wake_at(story.fleet) == float("inf")  # it costs no wake-up


def test_node_that_has_not_lived_for_long_has_no_deadline_either() -> None:
    story = Story(NODE)
    story.started("node")
    assert wake_at(story.fleet) == float("inf")
    story.see(after=1e6)
    assert of_type(story.history, Kill) == []


def test_node_that_dies_is_started_again_and_never_given_up() -> None:
    story = running()
    for run in range(RESTART.max_restarts * 3):
        pid = node(story).pid
        story.process("EXITED", name="node", ended="killed by SIGKILL", after=5.0)
        assert node(story).state is State.BACKOFF
        story.see(results=(SweepSeen(name="node"),))
        story.see(after=61.0)
        story.started("node", pid=pid + 1)
        story.process("RUNNING", name="node", pid=pid + 1, after=1.0)
        assert (node(story).state, node(story).restarts) == (State.READY, run + 1)


@pytest.mark.parametrize("policy", [Policy.NEVER, Policy.HOLD])
def test_node_with_a_cause_that_no_restart_mends_is_given_up(policy: Policy) -> None:
    story = running()
    seen = ProcessSeen(
        name="node", statename="EXITED", pid=0, ended="exited with status 2", kind="bad-flag", policy=policy
    )
    story.see(processes=(seen,), after=9.0)
    assert node(story).state is State.FAILED


def test_stop_of_a_node_waits_for_the_others_and_ends_with_a_kill() -> None:
    story = running()
    story.see(wishes=(ShutdownWish(),))
    assert [action.name for action in of_type(story.actions, Stop)] == ["node"]
    story.see(after=NODE.drain_timeout_s - 1)
    assert of_type(story.actions, Kill) == []
    story.see(after=1.0)
    assert [action.name for action in of_type(story.actions, Kill)] == ["node"]


def test_node_shows_no_url_and_is_no_example_of_a_request() -> None:
    story = running()
    rows = status_rows(story.fleet)
    assert rows[0]["url"] == ""
    table = render_status_table(rows, story.now).splitlines()
    assert table[1].endswith(" -")
    assert table[2] == f"node: {NOTE}"
    assert not [line for line in render_ready(rows, story.now) if line.startswith("try:")]
