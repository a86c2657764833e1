"""When a server may start on its GPUs: the rule by table, and its story in `decide`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from make import Story, events, make_spec, of_type

from infer_dev_entry.decide.gpus import ROOM_PERIOD_S, find_siblings
from infer_dev_entry.fleet import Ending, Fleet, Server, State
from infer_dev_entry.fleet.actions import Configure, FindRoom, LookAtGpus, Report, Start
from infer_dev_entry.fleet.observations import GpuSeen, PlanWish, RoomSeen, StartSeen, StartWish, StopWish, SweepSeen
from infer_dev_entry.gpu_wait import (
    FLAT_S,
    NO_DRIVER,
    POLL_LATE_S,
    POLL_S,
    GpuLook,
    GpuMemory,
    GpuWait,
    Holder,
    Siblings,
    judge,
    needed_share,
    parse_look,
    render_look,
)
from infer_dev_entry.spec import FileSpec, ServerSpec

GB = 10**9
KNOWN = GpuWait(baseline=(("GPU-0", 1 * GB),))
HOG = Holder(pid=7, name="python", used_bytes=100 * GB)
SIBLING = Holder(pid=8, name="python3", used_bytes=40 * GB, server="b")


def make_look(used_gb: float, *holders: Holder, label: str = "GPU 0", uuid: str = "GPU-0") -> GpuLook:
    memory = GpuMemory(
        gpu=uuid, label=label, used_bytes=int(used_gb * GB), total_bytes=150 * GB, holders=tuple(holders)
    )
    return GpuLook(gpus=(memory,))


@pytest.mark.parametrize(
    ("wait", "look", "share", "may_start", "says"),
    [
        pytest.param(GpuWait(), make_look(0.5), 0.4, True, "", id="an empty GPU"),
        pytest.param(GpuWait(), make_look(89), 0.4, True, "", id="enough is free"),
        pytest.param(GpuWait(), make_look(100.5, HOG), 0.4, False, "100.0 GB by pid 7 (python)", id="a hog"),
        pytest.param(GpuWait(), make_look(100.5), 0.4, False, "cannot be seen from here", id="a hidden hog"),
        pytest.param(GpuWait(), make_look(149), 0.0, True, "", id="the need is unknown"),
        pytest.param(KNOWN, make_look(1.4), 0.4, True, "", id="all is back"),
        pytest.param(KNOWN, make_look(45), 0.4, False, "given back its memory: 45.0 GB on GPU 0", id="it is not yet"),
        pytest.param(KNOWN, make_look(45), 0.0, False, "given back its memory", id="nor is it with an unknown need"),
        pytest.param(KNOWN, make_look(41, SIBLING), 0.0, True, "", id="a sibling holds its own"),
        pytest.param(KNOWN, make_look(85, SIBLING), 0.0, False, "45.0 GB on GPU 0", id="a sibling and a dead one"),
        pytest.param(KNOWN, make_look(101, HOG), 0.4, False, "100.0 GB by pid 7 (python)", id="a hog came"),
        pytest.param(KNOWN, make_look(41, SIBLING), 0.9, False, "pid 8 (server b)", id="a server of ours is named so"),
        pytest.param(GpuWait(), NO_DRIVER, 0.4, True, "", id="no driver"),
    ],
)
def test_first_look(wait: GpuWait, look: GpuLook, share: float, may_start: bool, says: str) -> None:
    after, verdict = judge(wait, look, now=10.0, share=share, wait_s=60)
    assert verdict.may_start is may_start
    assert says in verdict.reason
    assert bool(verdict.reason) is not may_start
    assert (after.since is None) is may_start
    assert not verdict.lost


CPU_HELPER = Siblings(names=frozenset({"helper"}))
B = Siblings(names=frozenset({"b"}), sure=frozenset({"b"}))
B_AND_C = Siblings(names=frozenset({"b", "c"}), sure=frozenset({"b", "c"}))


@pytest.mark.parametrize(
    ("look", "siblings", "may_start"),
    [
        pytest.param(make_look(141, SIBLING, HOG), B, False, id="a hog beside a sibling"),
        pytest.param(make_look(101, SIBLING), B, True, id="a sibling, and room"),
        pytest.param(make_look(141, SIBLING), B, False, id="a sibling and somebody hidden"),
        pytest.param(make_look(141, replace(SIBLING, used_bytes=0)), B, True, id="a sibling of unknown size"),
        pytest.param(make_look(141, HOG), B, True, id="a sibling that is not seen"),
        pytest.param(make_look(141), B, True, id="nobody is seen"),
        pytest.param(make_look(141, SIBLING), B_AND_C, True, id="one of two siblings is seen"),
        pytest.param(make_look(141, HOG), CPU_HELPER, False, id="a hog, and a helper that may use no GPU"),
        pytest.param(make_look(141), CPU_HELPER, True, id="a helper, and nobody is seen"),
        pytest.param(make_look(141, SIBLING), Siblings(), False, id="a server of ours that leaves"),
    ],
)
def test_what_siblings_hold_is_as_good_as_free(look: GpuLook, siblings: Siblings, may_start: bool) -> None:
    _, verdict = judge(GpuWait(), look, now=0.0, share=0.4, wait_s=60, siblings=siblings)
    assert verdict.may_start is may_start


def looks(wait: GpuWait, *steps: tuple[float, GpuLook], share: float = 0.4) -> tuple[GpuWait, Any]:
    """Judge look after look, each at its time."""
    verdict = None
    for now, look in steps:
        wait, verdict = judge(wait, look, now=now, share=share, wait_s=60)
    return wait, verdict


def test_memory_that_shrinks_is_waited_for_until_it_is_back() -> None:
    falling = [(step * 1.0, make_look(60 - 5 * step)) for step in range(8)]
    _, verdict = looks(KNOWN, *falling)
    assert not verdict.may_start
    wait, verdict = looks(KNOWN, *falling, (8.0, make_look(1.0)))
    assert verdict.may_start
    assert wait == GpuWait(baseline=(("GPU-0", 1 * GB),))


def test_hidden_memory_that_does_not_shrink_is_somebody_elses() -> None:
    same = make_look(30)
    assert not looks(KNOWN, (0, same), (FLAT_S - 0.1, same))[1].may_start
    wait, verdict = looks(KNOWN, (0, same), (FLAT_S, same))
    assert verdict.may_start
    assert dict(wait.baseline) == {"GPU-0": 30 * GB}  # the next restart need not wait for it


def test_hidden_memory_that_leaves_too_little_is_waited_for_for_ever() -> None:
    same = make_look(120)
    wait, verdict = looks(KNOWN, (0, same), (FLAT_S, same), (1000, same))
    assert not verdict.may_start
    assert wait.late
    assert "30.0 GB of GPU 0 are free, and a start needs about 60.0 GB" in verdict.reason
    assert verdict.mend


def test_poll_slows_down_after_the_deadline() -> None:
    hog = make_look(101, HOG)
    assert looks(GpuWait(), (0, hog))[1].retry_s == POLL_S
    assert looks(GpuWait(), (0, hog), (60, hog))[1].retry_s == POLL_LATE_S


def test_driver_that_never_answered_does_not_prevent_a_start() -> None:
    _, verdict = looks(GpuWait(), (0, GpuLook(problem="no answer")))
    assert verdict.may_start
    assert verdict.reason == "the NVIDIA driver does not answer: no answer"


def test_driver_that_answered_before_and_no_more_is_lost_after_the_deadline() -> None:
    mute = GpuLook(problem="Unknown Error")
    assert (looks(KNOWN, (0, mute))[1].may_start, looks(KNOWN, (0, mute))[1].lost) == (False, False)
    _, verdict = looks(KNOWN, (0, mute), (60, mute))
    assert verdict.lost
    assert not verdict.may_start
    assert "--force-recreate" in verdict.mend


def test_lost_gpu_is_told_at_once() -> None:
    look = GpuLook(gpus=make_look(1, uuid="GPU-1").gpus, lost=("GPU 0 is lost: GPU is lost",))
    _, verdict = looks(KNOWN, (0, look))
    assert verdict.lost
    assert verdict.reason == "GPU 0 is lost: GPU is lost"


def test_gpu_that_the_driver_no_longer_tells_of_is_waited_for_and_then_lost() -> None:
    other = make_look(1, uuid="GPU-1")
    _, verdict = looks(KNOWN, (0, other))
    assert (verdict.may_start, verdict.lost) == (False, False)
    assert "no longer tells of: GPU-0" in verdict.reason
    assert looks(KNOWN, (0, other), (1, make_look(1)))[1].may_start
    _, verdict = looks(KNOWN, (0, other), (60, other))
    assert verdict.lost
    assert verdict.reason == "the NVIDIA driver no longer tells of GPU-0"


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.425),
        ({"argv": ("x", "--mem-fraction-static", "0.3")}, 0.15),
        ({"argv": ("x", "--mem-fraction-static=0.3")}, 0.15),
        ({"argv": ("x", "--mem-fraction-static", "lots")}, 0.425),
        ({"files": (FileSpec(path="/c.yaml", text="port: 1\nmem-fraction-static: 0.5\n"),)}, 0.25),
        ({"gpu_ids": None, "min_gpus": 2}, 0.425),  # there are two
        ({"gpu_ids": None, "min_gpus": 1}, 0.0),  # it will choose
        ({"gpu_ids": None}, 0.0),  # on the CPU, say
        ({"engine": "llama_cpp"}, 0.0),
    ],
)
def test_needed_share_is_half_of_what_the_server_is_told_to_take(changes: dict[str, Any], share: float) -> None:
    look = GpuLook(gpus=(*make_look(1).gpus, *make_look(1, uuid="GPU-1").gpus))
    assert needed_share(make_spec(**{"gpu_ids": ("0",), **changes}), look) == pytest.approx(share)


def test_needed_share_without_an_answer_is_not_known() -> None:
    assert needed_share(make_spec(gpu_ids=None), GpuLook(problem="x")) == 0


@pytest.mark.parametrize("look", [NO_DRIVER, make_look(41, SIBLING, HOG), GpuLook(lost=("x",), problem="ä")])
def test_look_survives_its_way(look: GpuLook) -> None:
    assert parse_look(render_look(look)) == look


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"gpus": [1]}'])
def test_garbage_is_no_look(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_look(text)


# ----------------------------------------------------------------------------------------------------- the story


def on_gpu(name: str = "a", **changes: Any) -> ServerSpec:
    return make_spec(name, **{"gpu_ids": ("0",), "argv": ("/bin/server",), **changes})


def seen(look: GpuLook, name: str = "a", gpu_ids: tuple[str, ...] = ("0",), **later: Any) -> dict[str, Any]:
    return {"results": (GpuSeen(name=name, gpu_ids=gpu_ids, look=look),), **later}


def crash(story: Story, name: str = "a") -> None:
    """It dies, is swept, and its back-off passes."""
    story.process("EXITED", name=name, ended="was killed by SIGKILL", after=1.0)
    story.see(results=(SweepSeen(name=name),))
    story.see(after=2.0)


def ready_on_gpu() -> Story:
    story = Story(on_gpu())
    story.see(**seen(make_look(1)))
    story.ready()
    return story


def report(story: Story, event: str) -> dict[str, Any]:
    return dict(
        next(item for item in reversed(story.history) if isinstance(item, Report) and item.event == event).fields
    )


def test_server_without_gpus_starts_without_a_look() -> None:
    assert not of_type(Story(make_spec(gpu_ids=())).history, LookAtGpus)


def test_start_follows_a_look_that_finds_enough() -> None:
    story = Story(on_gpu())
    assert len(of_type(story.history, LookAtGpus)) == 1
    assert not of_type(story.history, Start)
    assert not of_type(story.see(after=1.0), LookAtGpus)  # one at a time
    assert len(of_type(story.see(**seen(make_look(1))), Start)) == 1
    assert not events(story.history).count("gpu.free")


def test_crash_waits_for_the_memory_of_the_dead_and_does_not_count_it() -> None:
    story = ready_on_gpu()
    crash(story)
    story.see(**seen(make_look(45)))
    assert story.server().state is State.WAITING_GPU
    assert "given back its memory: 45.0 GB" in story.server().reason
    assert not of_type(story.history[-3:], Start)
    failures = story.server().failures
    assert len(of_type(story.see(after=POLL_S), LookAtGpus)) == 1
    assert len(of_type(story.see(**seen(make_look(1), after=0.1)), Start)) == 1
    assert story.server().failures == failures
    told = report(story, "gpu.free")
    assert (told["freed_bytes"], told["waited_ms"]) == (44 * GB, 300)


def test_hog_is_reported_once_in_the_beginning_and_once_at_the_deadline() -> None:
    story = Story(on_gpu())
    hog = make_look(101, HOG)
    for _ in range(20):
        story.see(**seen(hog))
        story.see(after=POLL_LATE_S)
    assert [name for name in events(story.history) if name.startswith("gpu.")] == ["gpu.waiting", "gpu.blocked"]
    assert "100.0 GB by pid 7 (python)" in story.server().reason
    story.see(**seen(make_look(1)))
    assert story.server().starting


def test_sibling_on_the_same_gpu_is_no_reason_to_wait() -> None:
    story = Story(on_gpu("a"), on_gpu("b"))
    story.see(**seen(make_look(1), name="a"))
    story.ready("a")
    story.see(**seen(make_look(120, SIBLING), name="b"))
    assert story.server("b").starting


def test_server_on_its_way_out_is_waited_for_on_its_gpu() -> None:
    story = Story(on_gpu("a"))
    story.see(**seen(make_look(1), name="a"))
    story.ready("a")
    story.see(wishes=(PlanWish(specs=(on_gpu("b", port=31000),)),))
    full = make_look(130, Holder(pid=100, name="python", used_bytes=129 * GB, server="a"))
    story.see(**seen(full, name="b"))
    assert story.server("b").state is State.WAITING_GPU
    assert "129.0 GB by pid 100 (server a)" in story.server("b").reason
    story.process("STOPPED", name="a")
    story.see(results=(SweepSeen(name="a"),))
    story.see(after=POLL_S, **seen(make_look(1), name="b"))
    assert story.server("b").starting


def test_siblings_are_those_that_stay_on_one_of_its_gpus() -> None:
    specs = {
        "a": {}, "same": {}, "other": {"gpu_ids": ("1",)}, "all": {"gpu_ids": None, "min_gpus": 1},
        "helper": {"gpu_ids": None, "engine": "llama_cpp"}, "cpu": {"gpu_ids": ()},
    }  # fmt: skip
    servers = tuple(Server(spec=on_gpu(name, **changes), pid=7) for name, changes in specs.items())
    leaving = Server(spec=on_gpu("leaving"), pid=8, ending=Ending.STOP)
    down = Server(spec=on_gpu("down"))
    found = find_siblings(Fleet(servers=(*servers, leaving, down)), servers[0])
    assert (found.names, found.sure) == ({"same", "all", "helper"}, {"same", "all"})


def test_lost_gpu_holds_its_server_alone_until_it_is_started_by_hand() -> None:
    story = Story(on_gpu("a"), on_gpu("b", gpu_ids=("1",)))
    story.see(**seen(GpuLook(lost=("GPU 0 is lost",)), name="a"))
    story.see(**seen(make_look(1), name="b", gpu_ids=("1",)))
    assert (story.server("a").state, story.server("b").starting) == (State.FAILED, True)
    assert not of_type(story.see(after=1000.0), LookAtGpus)
    assert len(of_type(story.see(wishes=(StartWish(names=("a",)),)), LookAtGpus)) == 1


def test_server_that_moves_to_another_gpu_does_not_miss_its_old_one() -> None:
    story = Story(on_gpu())
    story.see(**seen(make_look(1)))
    story.ready()
    story.see(wishes=(PlanWish(specs=(on_gpu(gpu_ids=("1",)),)),))
    story.process("STOPPED")
    story.see(results=(SweepSeen(name="a"),))
    story.see(**seen(make_look(1, uuid="GPU-1"), gpu_ids=("1",)))
    assert story.server().starting


def test_look_at_the_gpus_of_a_plan_before_says_nothing_of_the_present_ones() -> None:
    story = Story(on_gpu())  # its look is under way
    story.see(wishes=(PlanWish(specs=(on_gpu(gpu_ids=("1",)),)),))
    assert [look.spec.gpu_ids for look in of_type(story.history, LookAtGpus)] == [("0",), ("1",)]
    story.see(**seen(make_look(1)))
    assert not story.server().starting
    story.see(**seen(make_look(1, uuid="GPU-1"), gpu_ids=("1",)))
    assert story.server().starting
    assert story.server().gpu_wait.baseline == (("GPU-1", 1 * GB),)


def test_answer_that_comes_after_a_stop_starts_nothing() -> None:
    story = Story(on_gpu())
    story.see(wishes=(StopWish(names=None),))
    story.see(**seen(make_look(1)))
    assert story.server().state is State.STOPPED
    assert not of_type(story.history, Start)


def test_start_that_failed_is_looked_at_anew() -> None:
    story = Story(on_gpu())
    story.see(**seen(make_look(1)))
    story.see(results=(StartSeen(name="a", pid=0, problem="port 1 is taken", outside=True),))
    assert len(of_type(story.see(after=5.0), LookAtGpus)) == 1


# ------------------------------------------------------------------------------------- another GPU for who waits


FULL = make_look(101, HOG)
ELSEWHERE = make_look(1, label="GPU 1", uuid="GPU-1")


def dealt(gpu: str = "0", **changes: Any) -> ServerSpec:
    return on_gpu(gpu_ids=(gpu,), environment=(("CUDA_VISIBLE_DEVICES", gpu), ("X", "y")), gpu_auto=True, **changes)


def blocked(spec: ServerSpec, *others: ServerSpec) -> Story:
    """A server that has waited for its GPU for longer than it should."""
    story = Story(spec, *others)
    story.see(**seen(FULL))
    story.see(after=POLL_S)
    story.see(after=spec.gpu_wait_s, **seen(FULL))
    assert story.server().gpu_wait.late
    return story


def room(spec: ServerSpec | None = None, look: GpuLook = ELSEWHERE, **more: Any) -> dict[str, Any]:
    return {"results": (RoomSeen(name="a", spec=spec, look=look, **more),)}


def test_only_who_was_dealt_its_gpus_and_has_waited_long_looks_for_others_once_in_a_while() -> None:
    assert not of_type(blocked(on_gpu()).history, FindRoom)
    story = blocked(dealt())
    assert len(of_type(story.history, FindRoom)) == 1
    for _ in range(int(ROOM_PERIOD_S / POLL_LATE_S) - 1):
        story.see(after=POLL_LATE_S)
        story.see(**seen(FULL))
    assert len(of_type(story.history, FindRoom)) == 1
    story.see(after=POLL_LATE_S)
    story.see(**seen(FULL))
    assert len(of_type(story.history, FindRoom)) == 2


def test_server_moves_to_a_gpu_with_room_and_is_looked_at_there_before_its_start() -> None:
    story = blocked(dealt())
    actions = story.see(**room(dealt("1")))
    assert story.server().spec.gpu_ids == ("1",)
    assert [action.specs[0].gpu_ids for action in of_type(actions, Configure)] == [("1",)]
    assert [action.spec.gpu_ids for action in of_type(actions, LookAtGpus)] == [("1",)]
    told = report(story, "gpu.moved")
    assert (told["from"], told["to"]) == ("0", "1")
    assert "pid 7 (python)" in told["reason"]
    story.see(**seen(FULL))  # of the old one; it comes too late
    assert not story.server().starting
    story.see(**seen(ELSEWHERE, gpu_ids=("1",)))
    assert of_type(story.history, Start)[-1].spec == dealt("1")
    assert story.server().gpu_wait.baseline == (("GPU-1", 1 * GB),)


@pytest.mark.parametrize(
    ("spec", "look", "problem"),
    [
        pytest.param(dealt("1"), make_look(120, HOG, label="GPU 1", uuid="GPU-1"), "", id="no-room"),
        pytest.param(dealt("1"), GpuLook(lost=("GPU 1 is lost",)), "", id="lost"),
        pytest.param(dealt("1"), GpuLook(problem="it is silent"), "", id="silent"),
        pytest.param(dealt("0"), NO_DRIVER, "", id="the-same"),
        pytest.param(dealt("1", port=31000), ELSEWHERE, "infer-dev serve applies that", id="another-config"),
        pytest.param(
            on_gpu(gpu_ids=("1",), environment=(("X", "z"),), gpu_auto=True),
            ELSEWHERE,
            "the environment, makes",
            id="another-variable",
        ),
        pytest.param(dealt("2"), ELSEWHERE, "GPU 2 is another server's", id="taken"),
        pytest.param(replace(dealt("1"), gpu_auto=False), ELSEWHERE, "does not deal its GPUs any more", id="by-number"),
        pytest.param(None, NO_DRIVER, "f.toml: line 1", id="faults"),
    ],
)
def test_server_stays_where_it_cannot_move_and_says_why_once(
    spec: ServerSpec | None, look: GpuLook, problem: str
) -> None:
    story = blocked(dealt(), on_gpu("b", gpu_ids=("2",), port=32000))
    before = len(story.history)
    for _ in range(2):
        story.see(**room(spec, look, problem="" if spec else problem))
    assert story.server().spec == dealt()
    assert story.server().state is State.WAITING_GPU
    stays = [
        dict(item.fields)["reason"] for item in story.history[before:] if getattr(item, "event", "") == "gpu.stays"
    ]
    assert len(stays) == bool(problem)
    assert all(problem in reason for reason in stays)
    assert "gpu.moved" not in events(story.history)
    story.see(after=POLL_LATE_S, **seen(make_look(1)))
    assert story.server().starting


def test_look_under_way_at_a_move_by_plan_does_not_hold_the_next_start() -> None:
    story = ready_on_gpu()
    crash(story)
    story.see(**seen(FULL))
    story.see(after=POLL_S)
    assert story.server().gpu_looking
    story.process("RUNNING", pid=200)  # by supervisorctl start
    story.see(wishes=(PlanWish(specs=(on_gpu(gpu_ids=("1",)),)),))
    story.process("STOPPED", after=0.1)
    story.see(results=(SweepSeen(name="a"),))
    story.see(**seen(FULL))
    assert of_type(story.history, LookAtGpus)[-1].spec.gpu_ids == ("1",)
    story.see(**seen(ELSEWHERE, gpu_ids=("1",)))
    assert story.server().starting


@pytest.mark.parametrize("wish", [StopWish(names=None), PlanWish(specs=(on_gpu(),)), PlanWish(specs=())])
def test_room_that_is_found_too_late_moves_nobody(wish: StopWish | PlanWish) -> None:
    story = blocked(dealt())
    story.see(wishes=(wish,))
    story.see(**room(dealt("1")))
    assert "gpu.moved" not in events(story.history)
    assert all(server.spec.gpu_ids == ("0",) for server in story.fleet.servers)


def test_plan_that_deals_the_same_gpus_by_another_word_restarts_nobody() -> None:
    story = Story(on_gpu())
    story.see(**seen(make_look(1)))
    story.ready()
    auto = replace(on_gpu(), gpu_auto=True)
    story.see(wishes=(PlanWish(specs=(auto,)),))
    assert (story.server().pid, story.server().state, story.server().spec.gpu_auto) == (100, State.READY, True)
