"""What follows from the class of a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from make import RESTART, Story, events, make_spec, of_type

from infer_dev_entry.diagnosis.model import GPU_LOST, Policy
from infer_dev_entry.fleet import Ending, State
from infer_dev_entry.fleet.actions import Record, Report, Start
from infer_dev_entry.fleet.observations import (
    PlanWish,
    ProcessSeen,
    ShutdownWish,
    StartSeen,
    StartWish,
    StopWish,
    SweepSeen,
)
from infer_dev_entry.status import render_status_table, status_rows

STOPS = (Policy.HOLD, Policy.NEVER)
GOES_ON = (Policy.RETRY, Policy.WAIT)


def die(story: Story, policy: Policy, kind: str = "some-class") -> None:
    """The process has ended, and nothing of it is left."""
    seen = ProcessSeen(
        name="a", statename="EXITED", pid=0, ended="exited with status 1", mend="change it", kind=kind, policy=policy
    )
    story.see(after=1.0, processes=(seen,))
    assert story.server().state in (State.BACKOFF, State.FAILED, State.STOPPED, State.STARTING)


def start_again(story: Story, pid: int) -> None:
    """The back-off has passed, and the next process runs."""
    story.see(after=0.0, results=(SweepSeen(name="a"),))
    story.see(after=100.0)
    assert of_type(story.actions, Start)
    story.started(pid=pid)


def report(story: Story) -> dict[str, object]:
    """Return the fields of the last crash or failure that was reported."""
    last = [item for item in story.history if isinstance(item, Report)]
    return dict(next(item for item in reversed(last) if item.event in ("server.crashed", "server.failed")).fields)


@pytest.mark.parametrize("policy", STOPS)
def test_server_that_never_served_fails_at_once_and_says_why(policy: Policy) -> None:
    story = Story(make_spec())
    story.started()
    die(story, policy)
    server = story.server()
    assert (server.state, server.reason) == (State.FAILED, "exited with status 1")
    assert server.mend == "change it; then run infer-dev start a"
    assert report(story) == {"server": "a", "class": "some-class", "reason": server.reason, "mend": server.mend}
    story.see(results=(SweepSeen(name="a"),))
    assert not of_type(story.see(after=10_000.0), Start)
    line = render_status_table(status_rows(story.fleet), 0.0).splitlines()[-1]
    assert line == "a: some-class: exited with status 1 → change it; then run infer-dev start a"


@pytest.mark.parametrize("policy", STOPS)
@pytest.mark.parametrize("wish", [StartWish(names=("a",)), PlanWish(specs=(make_spec(),))])
def test_failed_server_is_tried_again_when_somebody_asks(policy: Policy, wish: StartWish | PlanWish) -> None:
    story = Story(make_spec())
    story.started()
    die(story, policy)
    story.see(results=(SweepSeen(name="a"),))
    assert of_type(story.see(wishes=(wish,)), Start)


@pytest.mark.parametrize("policy", list(Policy))
def test_server_that_has_served_is_started_again_whatever_its_log_says(policy: Policy) -> None:
    story = Story(make_spec())
    story.ready()
    for pid in range(101, 105):
        die(story, policy)
        assert story.server().state is State.BACKOFF
        assert report(story)["class"] == "some-class"
        start_again(story, pid)
        story.see(after=0.2)
        story.probed(True)


def test_lost_gpu_holds_its_server_though_it_has_served_and_no_other() -> None:
    story = Story(make_spec("a"), make_spec("b", port=30001))
    story.ready("a")
    story.ready("b", pid=200)
    die(story, Policy.HOLD, GPU_LOST)
    assert (story.server("a").state, story.server("b").state) == (State.FAILED, State.READY)
    assert report(story)["class"] == "gpu-lost"
    story.see(results=(SweepSeen(name="a"),))
    assert not of_type(story.see(after=10_000.0), Start)
    assert of_type(story.see(wishes=(StartWish(names=("a",)),)), Start)


@pytest.mark.parametrize(("policy", "fails"), [(Policy.RETRY, True), (Policy.NEVER, True), (Policy.HOLD, False)])
def test_model_that_went_away_is_waited_for_and_other_faults_count(policy: Policy, fails: bool) -> None:
    story = Story(make_spec())  # gives up after three restarts
    story.ready()
    die(story, Policy.RETRY)
    for pid in range(101, 110):
        start_again(story, pid)
        die(story, policy)
        if story.server().state is State.FAILED:
            break
    assert (story.server().state is State.FAILED) is fails


def test_trouble_from_outside_is_waited_out_for_ever() -> None:
    story = Story(make_spec(restart=replace(RESTART, max_restarts=1)))
    story.started()
    for pid in range(101, 110):
        die(story, Policy.WAIT)
        assert story.server().state is State.BACKOFF
        start_again(story, pid)


def test_changed_config_is_tried_though_the_old_one_could_never_work() -> None:
    story = Story(make_spec())
    story.started()
    story.see(wishes=(PlanWish(specs=(make_spec(port=30001),)),))
    server = story.server()
    assert server.ending is Ending.STOP
    story.process("EXITED", ended="exited with status 0")
    story.see(results=(SweepSeen(name="a"),))
    assert of_type(story.history[-5:], Start)
    # A process that crashes before it is told to stop.
    story.started(pid=101)
    story.see(
        wishes=(PlanWish(specs=(make_spec(port=30002),)),),
        processes=(ProcessSeen(name="a", statename="EXITED", pid=0, ended="x", policy=Policy.NEVER),),
    )
    assert story.server().state is not State.FAILED


def test_having_served_is_forgotten_with_the_config() -> None:
    story = Story(make_spec())
    story.ready()
    assert story.server().served
    story.see(wishes=(PlanWish(specs=(make_spec(port=30001),)),))
    story.process("STOPPED")
    assert not story.server().served


def test_start_that_dies_at_once_is_judged_alike() -> None:
    story = Story(make_spec())
    seen = StartSeen(name="a", pid=0, problem="exited with status 2", mend="m", kind="bad-flag", policy=Policy.NEVER)
    story.see(results=(seen,))
    assert story.server().state is State.FAILED
    (record,) = of_type(story.actions, Record)
    assert (record.kind, record.ran_s, record.failures) == ("bad-flag", None, 1)


def test_taken_port_is_no_crash_and_leaves_no_dossier() -> None:
    story = Story(make_spec())
    story.see(results=(StartSeen(name="a", pid=0, problem="port 30000 is taken by pid 7", mend="m", outside=True),))
    assert report(story)["class"] == "port-in-use"
    assert not of_type(story.history, Record)


def test_every_death_is_recorded_with_its_place_in_the_row() -> None:
    story = Story(make_spec())
    story.started()
    die(story, Policy.RETRY, "cuda-oom")
    start_again(story, 101)
    die(story, Policy.RETRY, "nccl")
    records = of_type(story.history, Record)
    assert [(item.kind, item.failures, item.run) for item in records] == [("cuda-oom", 1, 1), ("nccl", 2, 2)]
    assert [item.ran_s for item in records] == [1.0, 1.0]
    assert records[0].policy is Policy.RETRY


def test_hang_is_recorded_as_one() -> None:
    story = Story(make_spec())
    story.ready()
    for _ in range(3):
        story.see(after=10.0)
        story.probed(False)
    story.process("EXITED", ended="was killed by SIGKILL")
    (record,) = of_type(story.actions, Record)
    assert (record.kind, record.mend) == ("hung", "see its log; if it was only slow, raise probe.failure_threshold")
    assert report(story)["class"] == "hung"


@pytest.mark.parametrize("wish", [StopWish(names=None), ShutdownWish()])
def test_end_that_was_wished_for_is_no_crash(wish: StopWish | ShutdownWish) -> None:
    story = Story(make_spec())
    story.ready()
    story.see(wishes=(wish,))
    story.process("EXITED", ended="was killed by SIGKILL")
    assert not of_type(story.history, Record)
    assert "server.crashed" not in events(story.history)


@pytest.mark.parametrize("policy", GOES_ON)
def test_class_is_gone_from_the_status_once_it_runs_again(policy: Policy) -> None:
    story = Story(make_spec())
    story.started()
    die(story, policy, "cuda-oom")
    assert status_rows(story.fleet)[0]["class"] == "cuda-oom"
    start_again(story, 101)
    assert status_rows(story.fleet)[0]["class"] == ""
