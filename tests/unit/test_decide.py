"""`decide`, told as stories: what is seen, and which actions follow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make import PROBE, RESTART, Story, events, make_spec, of_type

from infer_dev_entry.counters import Counters, Rank
from infer_dev_entry.decide import decide
from infer_dev_entry.decide.due import wake_at
from infer_dev_entry.decide.failures import backoff_s
from infer_dev_entry.decide.probes import STARTUP_PROBE_PERIOD_S
from infer_dev_entry.decide.stops import KILL_RETRY_S
from infer_dev_entry.fleet import Fleet, State, is_down, is_healthy
from infer_dev_entry.fleet.actions import Configure, Kill, Probe, Remember, Report, Start, StartSupervisor, Stop, Sweep
from infer_dev_entry.fleet.observations import (
    Observation,
    PlanWish,
    ProbeSeen,
    ProcessSeen,
    ShutdownWish,
    StartSeen,
    StartWish,
    StopWish,
    SupervisorSeen,
    SweepSeen,
)

# ------------------------------------------------------------------------------------------------------- start-up


def test_plan_first_starts_supervisor_then_servers() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    assert len(of_type(story.history, StartSupervisor)) == 1
    assert [start.spec.name for start in of_type(story.actions, Start)] == ["a", "b"]


def test_start_answered_is_probed_soon_and_until_ready() -> None:
    story = Story(make_spec())
    story.started(pid=100)
    assert story.server().state is State.STARTING
    assert [probe.pid for probe in of_type(story.see(after=0.2), Probe)] == [100]
    story.probed(False)
    assert of_type(story.see(after=0.2), Probe) == []
    assert len(of_type(story.see(after=STARTUP_PROBE_PERIOD_S), Probe)) == 1
    story.probed(True)
    assert story.server().state is State.READY
    assert story.server().ready_since == pytest.approx(story.now + 1e9)
    assert is_healthy(story.fleet)


def test_loading_follows_running_or_http_answer() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    story.started("a", 100)
    story.started("b", 101)
    story.process("RUNNING", 100, "a", after=1.0)
    assert story.server("a").state is State.LOADING
    story.probed(False, "b", status=503)
    assert story.server("b").state is State.LOADING
    assert not is_healthy(story.fleet)


def test_startup_deadline_passed_ends_process() -> None:
    story = Story(make_spec())
    story.started()
    story.see(after=0.2)
    story.probed(False)
    assert of_type(story.see(after=99.0), Kill) == []
    assert [kill.evidence for kill in of_type(story.see(after=1.0), Kill)] == [True]
    story.process("EXITED", ended="was killed by SIGKILL")
    assert story.server().state is State.BACKOFF
    assert "not ready 100 s after its start" in story.server().reason


@pytest.mark.parametrize(("mend", "told"), [("", "see infer-dev logs a"), ("more memory", "more memory")])
def test_crash_tells_the_mend_that_its_end_tells_else_the_log(mend: str, told: str) -> None:
    story = Story(make_spec())
    story.ready()
    story.process("EXITED", ended="was killed by the kernel", mend=mend)
    assert (story.server().reason, story.server().mend) == ("was killed by the kernel", told)


def test_dependency_is_awaited() -> None:
    story = Story(make_spec("a"), make_spec("b", depends_on=("a",)))
    assert [start.spec.name for start in of_type(story.actions, Start)] == ["a"]
    assert story.server("b").reason == "waits until a is ready"
    story.ready("a")
    assert [start.spec.name for start in of_type(story.actions, Start)] == ["b"]


def test_stagger_spaces_starts() -> None:
    story = Story(make_spec("a"), make_spec("b", start_stagger_s=5.0), make_spec("c", start_stagger_s=5.0))
    assert [start.spec.name for start in of_type(story.actions, Start)] == ["a"]
    assert wake_at(story.fleet) <= story.now + 5.0
    assert [start.spec.name for start in of_type(story.see(after=5.0), Start)] == ["b"]
    assert [start.spec.name for start in of_type(story.see(after=5.0), Start)] == ["c"]


def test_long_load_is_noted_now_and_then() -> None:
    story = Story(make_spec())
    story.started()
    for _ in range(40):
        story.see(after=1.0)
        story.probed(False, status=503)
    assert events(story.history).count("server.loading") == 2


def test_start_tells_its_phase_and_after_the_first_an_estimate() -> None:
    story = Story(make_spec())
    for pid, estimate in ((100, ""), (101, ", about 9 s left")):
        story.started(pid=pid, past=story.server().past)
        story.see(after=0.0)
        story.probed(False, phase="import", log_grew=True, after=4.0)
        story.see(after=1.0)
        story.probed(False, phase="weights", log_grew=True)
        story.see(after=1.0)
        story.probed(False, phase="weights", log_grew=True)
        assert story.server().reason == f"no answer; weights for 1 s, started 6 s ago{estimate}"
        assert story.server().phase == "weights"
        story.see(after=9.0)
        actions = story.probed(True, phase="weights", log_grew=True)
        assert [remember.start for remember in of_type(actions, Remember)] == [(("import", 5.0), ("weights", 10.0))]
        assert story.server().phase == story.server().reason == ""
        story.process("EXITED", ended="x", after=1.0)
        story.see(results=(SweepSeen(name="a"),))
        story.see(after=5.0)


def test_loading_is_noted_with_its_phase() -> None:
    story = Story(make_spec())
    story.see(results=(StartSeen(name="a", pid=100, past=((("import", 60.0), ("weights", 30.0)),)),))
    for _ in range(20):
        story.see(after=1.0)
        story.probed(False, phase="import", log_grew=True)
    (note,) = [action for action in story.history if isinstance(action, Report) and action.event == "server.loading"]
    assert dict(note.fields) == {
        "server": "a",
        "elapsed_s": 15,
        "phase": "import",
        "phase_s": 15,
        "left_s": 75,
        "probe": "no answer",
    }


def test_start_whose_log_is_silent_for_its_timeout_is_hung() -> None:
    story = Story(make_spec(probe=replace(PROBE, stall_timeout_s=20.0)))
    story.started()
    for second in range(1, 40):
        story.see(after=1.0)
        assert of_type(story.probed(False, phase="weights", log_grew=second < 10), Kill) == [], second
        if second == 28:
            break
    assert len(of_type(story.see(after=1.0), Kill)) == 1
    story.process("EXITED", ended="was killed by SIGKILL")
    assert story.server().state is State.BACKOFF
    assert story.server().reason == "stalled: its log says nothing for 20 s in phase weights"
    assert "probe.stall_timeout_s" in story.server().mend


@pytest.mark.parametrize(("timeout_s", "grew"), [(0.0, False), (20.0, None), (20.0, True)])
def test_start_is_not_stalled_without_a_timeout_a_log_or_silence(timeout_s: float, grew: bool | None) -> None:
    story = Story(make_spec(probe=replace(PROBE, stall_timeout_s=timeout_s)))
    story.started()
    for _ in range(90):
        story.see(after=1.0)
        story.probed(False, log_grew=grew)
    assert of_type(story.history, Kill) == []


def test_ready_server_with_a_silent_log_is_not_stalled() -> None:
    story = Story(make_spec(probe=replace(PROBE, stall_timeout_s=20.0)))
    story.ready()
    for _ in range(10):
        story.see(after=10.0)
        story.probed(True)
    assert of_type(story.history, Kill) == []


# ---------------------------------------------------------------------------------------------------- crash, hang


def test_crash_sweeps_and_starts_after_backoff() -> None:
    story = Story(make_spec())
    story.ready()
    actions = story.process("EXITED", ended="was killed by SIGKILL", after=10.0)
    assert [sweep.name for sweep in of_type(actions, Sweep)] == ["a"]
    assert events(actions) == ["server.crashed"]
    assert story.server().reason == "was killed by SIGKILL"
    assert of_type(story.see(after=1.0), Start) == []  # not before the sweep is done
    assert len(of_type(story.see(results=(SweepSeen(name="a"),)), Start)) == 1
    assert story.server().restarts == 0
    story.started(pid=101)
    assert story.server().restarts == 1


def test_crash_wakes_exactly_when_backoff_ends() -> None:
    story = Story(make_spec())
    story.ready()
    story.process("EXITED", ended="x", after=10.0)
    story.see(results=(SweepSeen(name="a"),))
    assert wake_at(story.fleet) == pytest.approx(story.now + 1.0)


def test_exit_status_zero_is_a_crash_too() -> None:
    story = Story(make_spec())
    story.ready()
    story.process("EXITED", ended="exited with status 0", after=1.0)
    assert story.server().state is State.BACKOFF


def test_crash_loop_never_ready_fails_after_max_restarts() -> None:
    story = Story(make_spec())
    starts = 0
    for _ in range(10):
        story.see(after=100.0)
        if not story.server().starting:
            break
        starts += 1
        story.started(pid=100 + starts)
        story.process("FATAL", ended="exited with status 2")
        story.see(results=(SweepSeen(name="a"),))
    assert starts == 1 + RESTART.max_restarts
    assert story.server().state is State.FAILED
    assert "infer-dev start a" in story.server().mend
    assert len(of_type(story.see(wishes=(StartWish(names=("a",)),)), Start)) == 1


def test_crash_loop_with_zero_max_restarts_never_gives_up() -> None:
    story = Story(make_spec(restart=replace(RESTART, max_restarts=0)))
    for turn in range(30):
        story.see(after=100.0)
        story.started(pid=100 + turn)
        story.process("EXITED", ended="x")
        story.see(results=(SweepSeen(name="a"),))
    assert story.server().state is State.BACKOFF


@pytest.mark.parametrize(("ready_for_s", "failures"), [(299.0, 2), (300.0, 1)])
def test_backoff_resets_after_long_readiness(ready_for_s: float, failures: int) -> None:
    story = Story(make_spec())
    story.ready(pid=100)
    story.process("EXITED", ended="x", after=1.0)
    story.see(results=(SweepSeen(name="a"),))
    story.see(after=1.0)
    story.ready(pid=101)
    story.process("EXITED", ended="x", after=ready_for_s)
    assert story.server().failures == failures


def test_hang_is_ended_after_threshold_of_failures() -> None:
    story = Story(make_spec())
    story.ready()
    for failure in range(1, PROBE.failure_threshold + 1):
        assert len(of_type(story.see(after=10.0), Probe)) == 1
        actions = story.probed(False)
        assert story.server().state is State.UNHEALTHY
        assert bool(of_type(actions, Kill)) == (failure == PROBE.failure_threshold)
    story.process("EXITED", ended="was killed by SIGKILL")
    assert story.server().state is State.BACKOFF
    assert story.server().reason.startswith("hung: 3 probes in a row failed")


def test_unhealthy_server_recovers_on_one_good_probe() -> None:
    story = Story(make_spec())
    story.ready()
    story.see(after=10.0)
    story.probed(False)
    assert story.server().ready_since is None
    story.see(after=10.0)
    story.probed(True)
    assert story.server().state is State.READY
    assert story.server().probe_failures == 0
    assert "server.recovered" in events(story.history)


def test_probe_under_way_is_the_only_one() -> None:
    story = Story(make_spec())
    story.ready()
    story.see(after=10.0)
    assert of_type(story.see(after=60.0), Probe) == []


def test_probe_of_an_earlier_process_is_ignored() -> None:
    story = Story(make_spec())
    story.ready(pid=100)
    stale = ProbeSeen(name="a", pid=99, ok=False, status=0, reason="x")
    story.see(results=(stale,))
    assert story.server().state is State.READY


def make_counters(work: float, *, running: float = 1, stamp: float = 0.0) -> Counters:
    return (Rank(running=running, queued=0, used_tokens=0, stamp=stamp, work=(work,), traffic=(work,)),)


def test_slow_server_is_never_ended_while_it_works_at_its_requests() -> None:
    story = Story(make_spec())
    story.started()
    story.see(after=0.2)
    story.probed(True, counters=make_counters(0))
    for turn in range(1, 40):
        assert len(of_type(story.see(after=10.0), Probe)) == 1
        assert of_type(story.probed(False, counters=make_counters(turn)), Kill) == []
        assert story.server().state is State.READY
        assert story.server().reason.startswith("slow: no answer, but its counters move (1 running, 0 queued")
    assert is_healthy(story.fleet)
    story.see(after=10.0)
    story.probed(True)
    assert story.server().reason == ""


def test_server_that_stops_working_is_ended_after_threshold_of_failures() -> None:
    story = Story(make_spec())
    story.started()
    story.see(after=0.2)
    story.probed(True, counters=make_counters(0))
    for failure in range(1, PROBE.failure_threshold + 1):
        story.see(after=10.0)
        # It still worked when the first probe began; that probe is the first of the row.
        actions = story.probed(False, counters=make_counters(1))
        assert bool(of_type(actions, Kill)) == (failure == PROBE.failure_threshold)
    assert story.server().reason.startswith("hung: 3 probes in a row failed (no answer); its counters did not move")


def test_counters_that_cannot_be_read_are_no_progress() -> None:
    story = Story(make_spec())
    story.ready()
    for counters in (None, make_counters(1), None):
        story.see(after=10.0)
        actions = story.probed(False, counters=counters)
    assert len(of_type(actions, Kill)) == 1


def test_progress_restarts_the_count_in_the_middle_of_a_row() -> None:
    story = Story(make_spec())
    story.started()
    story.see(after=0.2)
    story.probed(True, counters=make_counters(0))
    for work, failures in ((0, 1), (0, 2), (1, 1), (1, 2)):
        story.see(after=10.0)
        story.probed(False, counters=make_counters(work))
        assert story.server().probe_failures == failures
    story.see(after=10.0)
    assert len(of_type(story.probed(False, counters=make_counters(1)), Kill)) == 1


def test_threshold_of_one_spares_a_slow_server_too() -> None:
    story = Story(make_spec(probe=replace(PROBE, failure_threshold=1)))
    story.started()
    story.see(after=0.2)
    story.probed(True, counters=make_counters(0))
    story.see(after=10.0)
    assert of_type(story.probed(False, counters=make_counters(1)), Kill) == []
    story.see(after=10.0)
    assert len(of_type(story.probed(False, counters=make_counters(1)), Kill)) == 1


def test_counters_of_a_dead_process_are_forgotten() -> None:
    story = Story(make_spec())
    story.started(pid=100)
    story.see(after=0.2)
    story.probed(True, counters=make_counters(5))
    story.process("EXITED", ended="x", after=1.0)
    assert story.server().counters is None


def test_traffic_stands_in_for_all_but_every_third_probe() -> None:
    story = Story(make_spec(probe=replace(PROBE, counters_first=True)))
    story.started()
    assert [probe.trusts for probe in of_type(story.see(after=0.2), Probe)] == [False]
    story.probed(True, counters=make_counters(0))
    trusted = []
    for turn in range(1, 10):
        (probe,) = of_type(story.see(after=10.0), Probe)
        trusted.append(probe.trusts)
        assert probe.before is not None
        story.probed(True, counters=make_counters(turn), by_counters=probe.trusts)
    assert trusted == [True, True, False] * 3


def test_failing_server_is_not_trusted_for_its_counters() -> None:
    story = Story(make_spec(probe=replace(PROBE, counters_first=True)))
    story.ready()
    story.see(after=10.0)
    story.probed(False)
    assert [probe.trusts for probe in of_type(story.see(after=10.0), Probe)] == [False]


def test_probe_after_a_trusted_one_comes_earlier_so_that_a_hang_is_found_in_time() -> None:
    """It may have hung right after the last sign of life, which is older than the probe that read it."""
    story = Story(make_spec(probe=replace(PROBE, counters_first=True)))
    story.ready()
    (probe,) = of_type(story.see(after=10.0), Probe)
    story.probed(True, counters=make_counters(1), by_counters=True)
    assert story.server().probe_at == pytest.approx(story.now + PROBE.period_s - probe.fresh_s)


def test_process_that_survives_sigkill_is_signalled_again() -> None:
    story = Story(make_spec())
    story.ready()
    for _ in range(PROBE.failure_threshold):
        story.see(after=10.0)
        story.probed(False)
    assert len(of_type(story.see(after=KILL_RETRY_S), Kill)) == 1
    assert "server.survives_sigkill" in events(story.actions)


def test_start_that_fails_backs_off_with_its_reason() -> None:
    story = Story(make_spec())
    story.see(results=(StartSeen(name="a", pid=0, problem="port 30000 is taken by pid 7 (nginx)", mend="end it"),))
    assert story.server().state is State.BACKOFF
    assert story.server().mend == "end it"
    assert len(of_type(story.see(after=1.0), Start)) == 1


def test_start_that_fails_for_a_cause_outside_never_gives_up() -> None:
    story = Story(make_spec(restart=replace(RESTART, max_restarts=1)))
    for _ in range(20):
        story.see(results=(StartSeen(name="a", pid=0, problem="port 30000 is taken", outside=True),))
        assert story.server().state is State.BACKOFF
        story.see(after=100.0)
    story.ready()
    assert story.server().state is State.READY


def test_answer_from_before_the_start_is_no_crash() -> None:
    story = Story(make_spec())
    asked_at = story.now
    story.started(pid=100, after=0.5)
    story.process("STOPPED", 0, processes_at=asked_at)
    assert story.server().pid == 100


# ------------------------------------------------------------------------------------------------- the user's will


def test_user_stop_through_supervisorctl_is_respected() -> None:
    story = Story(make_spec())
    story.ready()
    story.process("STOPPING", 100, after=1.0)
    assert story.server().state is State.DRAINING
    story.process("STOPPED", ended="was killed by SIGTERM")
    assert story.server().state is State.STOPPED
    assert not story.server().wanted
    story.see(results=(SweepSeen(name="a"),))
    assert of_type(story.see(after=1000.0), Start) == []
    assert is_healthy(story.fleet)


@pytest.mark.parametrize("before", ["stopped", "failed", "backoff"])
def test_user_start_through_supervisorctl_hands_back(before: str) -> None:
    story = Story(make_spec(restart=replace(RESTART, max_restarts=1 if before == "failed" else 9)))
    story.ready()
    if before == "stopped":
        story.process("STOPPED")
    else:
        story.process("EXITED", ended="x", after=1.0)
    story.process("STARTING", 200, after=0.5)
    assert story.server().pid == 200
    assert story.server().wanted
    story.see(after=0.2)
    story.probed(True)
    assert story.server().state is State.READY


def test_user_restart_between_two_looks_is_one_new_process() -> None:
    story = Story(make_spec())
    story.ready(pid=100)
    actions = story.process("STARTING", 200, after=1.0)
    assert of_type(actions, Kill) == []
    assert story.server().pid == 200
    assert story.server().ready_at is None


def test_user_start_during_shutdown_is_stopped_again() -> None:
    story = Story(make_spec())
    story.ready()
    story.see(wishes=(ShutdownWish(),))
    story.process("STOPPED")
    assert [stop.name for stop in of_type(story.process("STARTING", 200), Stop)] == ["a"]
    story.process("STOPPED")
    story.see(results=(SweepSeen(name="a"),))
    assert is_down(story.fleet)


def test_user_start_of_a_removed_server_is_stopped_again() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    story.ready("a", 100)
    story.ready("b", 101)
    story.see(wishes=(PlanWish(specs=(make_spec("a"),)),))
    assert [stop.name for stop in of_type(story.process("STARTING", 200, "b"), Stop)] == ["b"]
    story.process("STOPPED", name="b")
    assert [server.spec.name for server in story.fleet.servers] == ["a"]


def test_stop_wish_drains_then_kills_at_deadline() -> None:
    story = Story(make_spec(drain_timeout_s=20.0))
    story.ready()
    assert [stop.name for stop in of_type(story.see(wishes=(StopWish(names=("a",)),)), Stop)] == ["a"]
    assert story.server().state is State.DRAINING
    assert of_type(story.see(after=19.0), Kill) == []
    assert len(of_type(story.see(after=1.0), Kill)) == 1
    assert story.fleet.had_to_kill == ("a",)
    story.process("STOPPED")
    assert story.server().state is State.STOPPED


@pytest.mark.parametrize("ended", ["was killed by SIGKILL", "exited with status 0", "was killed by SIGTERM"])
@pytest.mark.parametrize("again", [False, True])
def test_any_end_after_our_own_stop_is_no_crash(ended: str, again: bool) -> None:
    """SGLang before 0.5.20 ends with SIGKILL after a clean drain."""
    story = Story(make_spec())
    story.ready()
    if again:
        story.see(wishes=(PlanWish(specs=(make_spec(port=31000),)),))
    else:
        story.see(wishes=(StopWish(names=None),))
    actions = story.process("EXITED", ended=ended, after=5.0)
    assert events(actions) == ["server.stopped"]
    assert story.server().state is (State.STARTING if again else State.STOPPED)
    assert (story.server().failures, story.server().unready_failures, story.fleet.had_to_kill) == (0, 0, ())


def test_stop_wish_during_backoff_cancels_it() -> None:
    story = Story(make_spec())
    story.ready()
    story.process("EXITED", ended="x", after=1.0)
    story.see(results=(SweepSeen(name="a"),), wishes=(StopWish(names=None),))
    assert story.server().state is State.STOPPED
    assert of_type(story.see(after=1000.0), Start) == []


def test_stop_wish_during_start_stops_what_comes_up() -> None:
    story = Story(make_spec())
    story.see(wishes=(StopWish(names=None),))
    assert [stop.name for stop in of_type(story.started(pid=100), Stop)] == ["a"]


def test_start_wish_during_drain_starts_again_afterwards() -> None:
    story = Story(make_spec())
    story.ready()
    story.see(wishes=(StopWish(names=None),))
    story.see(wishes=(StartWish(names=None),))
    story.process("STOPPED")
    assert len(of_type(story.see(results=(SweepSeen(name="a"),)), Start)) == 1


# ------------------------------------------------------------------------------------------------------ new plans


def test_plan_unchanged_server_is_left_alone() -> None:
    story = Story(make_spec("a"))
    story.ready()
    actions = story.see(wishes=(PlanWish(specs=(make_spec("a"), make_spec("b"))),))
    assert [spec.name for spec in of_type(actions, Configure)[0].specs] == ["a", "b"]
    assert of_type(actions, Stop) == []
    assert [start.spec.name for start in of_type(actions, Start)] == ["b"]
    assert story.server("a").state is State.READY


def test_plan_without_change_does_nothing() -> None:
    story = Story(make_spec("a"))
    story.ready()
    assert story.see(wishes=(PlanWish(specs=(make_spec("a"),)),)) == ()


def test_plan_removed_server_drains_and_goes() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    story.ready("a", 100)
    story.ready("b", 101)
    assert [stop.name for stop in of_type(story.see(wishes=(PlanWish(specs=(make_spec("a"),)),)), Stop)] == ["b"]
    actions = story.process("STOPPED", name="b")
    assert [server.spec.name for server in story.fleet.servers] == ["a"]
    assert [spec.name for spec in of_type(actions, Configure)[0].specs] == ["a"]


def test_new_server_waits_for_the_port_of_one_that_is_leaving() -> None:
    story = Story(make_spec("old", port=30000))
    story.ready("old")
    actions = story.see(wishes=(PlanWish(specs=(make_spec("new", port=30001, more_ports=(30000,)),)),))
    assert of_type(actions, Stop) == [Stop(name="old")]
    assert not of_type(actions, Start)
    assert story.server("new").reason == "waits until old has stopped, which holds a port of it"
    assert not of_type(story.see(after=5.0), Start)
    assert of_type(story.process("STOPPED", name="old"), Start) == [Start(spec=story.server("new").spec)]


def test_server_starts_at_once_beside_a_leaving_one_with_other_ports() -> None:
    story = Story(make_spec("old", port=30000))
    story.ready("old")
    actions = story.see(wishes=(PlanWish(specs=(make_spec("new", port=30001),)),))
    assert [start.spec.name for start in of_type(actions, Start)] == ["new"]


def test_plan_changed_server_drains_then_starts_with_new_spec() -> None:
    changed = make_spec("a", port=31000)
    story = Story(make_spec("a"))
    story.ready()
    actions = story.see(wishes=(PlanWish(specs=(changed,)),))
    assert of_type(actions, Configure) == []  # supervisord keeps the old program while it runs
    assert len(of_type(actions, Stop)) == 1
    actions = story.process("STOPPED")
    assert of_type(actions, Configure)[0].specs == (changed,)
    assert [start.spec for start in of_type(story.see(results=(SweepSeen(name="a"),)), Start)] == [changed]


def test_plan_tries_failed_server_again() -> None:
    story = Story(make_spec(restart=replace(RESTART, max_restarts=1)))
    for turn in range(2):
        story.see(after=100.0)
        story.started(pid=100 + turn)
        story.process("EXITED", ended="x")
        story.see(results=(SweepSeen(name="a"),))
    assert story.server().state is State.FAILED
    again = story.see(wishes=(PlanWish(specs=(story.server().spec,)),))
    assert len(of_type(again, Start)) == 1


# ---------------------------------------------------------------------------------------------- supervisord, the end


def test_supervisor_lost_sweeps_then_brings_everything_back() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    story.ready("a", 100)
    story.ready("b", 101)
    actions = story.see(results=(SupervisorSeen(up=False, reason="supervisord was killed by SIGKILL"),))
    assert {sweep.name for sweep in of_type(actions, Sweep)} == {"a", "b"}
    assert of_type(actions, StartSupervisor) == []  # first the orphans must be gone
    story.see(results=(SweepSeen(name="a"),))
    assert len(of_type(story.see(results=(SweepSeen(name="b"),)), StartSupervisor)) == 1
    assert len(of_type(story.see(results=(SupervisorSeen(up=True),)), Start)) == 2
    assert story.server("a").failures == 0


def test_supervisor_that_keeps_failing_is_retried_ever_more_slowly() -> None:
    story = Story(make_spec())
    delays = []
    for _ in range(12):
        story.see(results=(SupervisorSeen(up=False, reason="x"), SweepSeen(name="a")))
        delays.append(wake_at(story.fleet) - story.now if not story.fleet.supervisor_starting else 0.0)
        story.see(after=max(0.0, delays[-1]))
        assert story.fleet.supervisor_starting
    assert delays[0] == 0.0
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(delays))
    assert delays[-1] == pytest.approx(10.0)


def test_supervisor_lost_keeps_stopped_servers_stopped() -> None:
    story = Story(make_spec())
    story.ready()
    story.process("STOPPED")
    story.see(results=(SweepSeen(name="a"),))
    story.see(results=(SupervisorSeen(up=False, reason="x"),))
    story.see(results=(SupervisorSeen(up=True),))
    assert story.server().state is State.STOPPED
    assert of_type(story.actions, Start) == []


def test_shutdown_stops_all_at_once_and_is_down_when_they_are() -> None:
    story = Story(make_spec("a"), make_spec("b", drain_timeout_s=5.0))
    story.ready("a", 100)
    story.ready("b", 101)
    assert {stop.name for stop in of_type(story.see(wishes=(ShutdownWish(),)), Stop)} == {"a", "b"}
    story.process("STOPPED", name="a")
    story.see(results=(SweepSeen(name="a"),))
    assert not is_down(story.fleet)
    assert [kill.name for kill in of_type(story.see(after=5.0), Kill)] == ["b"]
    story.process("STOPPED", name="b")
    story.see(results=(SweepSeen(name="b"),))
    assert is_down(story.fleet)
    assert story.fleet.had_to_kill == ("b",)


def test_second_shutdown_kills_at_once_and_also_what_was_just_starting() -> None:
    story = Story(make_spec("a"), make_spec("b"))
    story.started("a", 100)
    story.see(wishes=(ShutdownWish(),))
    assert [kill.name for kill in of_type(story.see(wishes=(ShutdownWish(now=True),)), Kill)] == ["a"]
    assert [kill.name for kill in of_type(story.started("b", 101), Kill)] == ["b"]


def test_shutdown_before_supervisor_is_up_starts_nothing() -> None:
    fleet, _ = decide(Fleet(), Observation(now=1.0, wall=1.0, wishes=(PlanWish(specs=(make_spec(),)),)))
    fleet, actions = decide(fleet, Observation(now=2.0, wall=2.0, wishes=(ShutdownWish(),)))
    assert of_type(actions, Start) == []
    assert is_down(fleet)


# ------------------------------------------------------------------------------------------------------ properties


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_backoff_grows_within_its_bounds(failures: int, jitter: float) -> None:
    delay = backoff_s(RESTART, failures, jitter)
    assert 0.9 * RESTART.backoff_initial_s <= delay <= RESTART.backoff_max_s
    assert backoff_s(RESTART, failures + 1, jitter) >= delay


_NAMES = st.sampled_from(["a", "b", "c", "ghost"])
_SPECS = st.lists(
    st.builds(
        make_spec, name=st.sampled_from("abc"), port=st.sampled_from([1, 2]), depends_on=st.sampled_from([(), ("a",)])
    ),
    max_size=3,
    unique_by=lambda spec: spec.name,
).map(tuple)
_MAYBE_NAMES = st.none() | st.lists(_NAMES, max_size=2).map(tuple)
_WISHES = st.one_of(
    st.builds(PlanWish, specs=_SPECS),
    st.builds(StopWish, names=_MAYBE_NAMES),
    st.builds(StartWish, names=_MAYBE_NAMES),
)
_RESULTS = st.one_of(
    st.builds(StartSeen, name=_NAMES, pid=st.integers(1, 9), problem=st.just("")),
    st.builds(StartSeen, name=_NAMES, pid=st.just(0), problem=st.just("no")),
    st.builds(ProbeSeen, name=_NAMES, pid=st.integers(0, 9), ok=st.booleans(), status=st.just(0), reason=st.just("r")),
    st.builds(SweepSeen, name=_NAMES),
    st.builds(SupervisorSeen, up=st.booleans(), reason=st.just("r")),
)
_STATENAMES = st.sampled_from(["STOPPED", "STARTING", "RUNNING", "STOPPING", "EXITED", "FATAL", "BACKOFF", "UNKNOWN"])
_PROCESSES = st.lists(
    st.builds(ProcessSeen, name=_NAMES, statename=_STATENAMES, pid=st.integers(0, 9), ended=st.just("x")), max_size=3
).map(tuple)
_STEPS = st.lists(
    st.tuples(
        st.floats(0, 200),
        st.lists(_WISHES, max_size=2).map(tuple),
        st.lists(_RESULTS, max_size=3).map(tuple),
        st.none() | _PROCESSES,
    ),
    max_size=25,
)


@given(steps=_STEPS)
def test_decide_holds_its_invariants_whatever_is_seen(steps: list[tuple[float, tuple, tuple, tuple | None]]) -> None:
    fleet, now = Fleet(), 0.0
    for passed, wishes, results, processes in steps:
        now += passed
        seen = Observation(now=now, wall=now, wishes=wishes, results=results, processes=processes, processes_at=now)
        fleet, actions = decide(fleet, seen)
        names = [server.spec.name for server in fleet.servers]
        assert len(set(names)) == len(names)
        for start in of_type(actions, Start):
            server = next(server for server in fleet.servers if server.spec.name == start.spec.name)
            assert server.wanted
            assert not server.pid
            assert server.swept
        for server in fleet.servers:
            assert not (server.state is State.READY and not server.pid)
            assert not (server.state in (State.STOPPED, State.FAILED, State.BACKOFF) and server.pid)
            assert server.pid or server.ready_since is None
        # A wake-up that stays in the past would make the loop spin.
        again, more = decide(fleet, Observation(now=now, wall=now))
        assert wake_at(again) > now or more


@given(steps=_STEPS)
def test_shutdown_always_comes_to_an_end(steps: list[tuple[float, tuple, tuple, tuple | None]]) -> None:
    fleet, now = Fleet(), 0.0
    for passed, wishes, results, processes in steps:
        now += passed
        seen = Observation(now=now, wall=now, wishes=wishes, results=results, processes=processes, processes_at=now)
        fleet, _ = decide(fleet, seen)
    fleet, _ = decide(fleet, Observation(now=now, wall=now, wishes=(ShutdownWish(),)))
    for _ in range(3):  # what is under way answers: starts fail, processes end, sweeps finish
        now += 60.0
        names = [server.spec.name for server in fleet.servers]
        results = tuple(StartSeen(name=name, pid=0, problem="x") for name in names)
        results += tuple(SweepSeen(name=name) for name in names)
        ended = tuple(ProcessSeen(name=name, statename="STOPPED", pid=0, ended="x") for name in names)
        fleet, actions = decide(
            fleet, Observation(now=now, wall=now, results=results, processes=ended, processes_at=now + 1)
        )
        assert of_type(actions, Start) == []
        assert of_type(actions, StartSupervisor) == []
    assert is_down(fleet)
