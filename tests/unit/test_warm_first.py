"""The first replica reads the model alone; nothing else about the others changes."""

from __future__ import annotations

from make import Story, make_spec, of_type

from infer_dev_entry.fleet import State
from infer_dev_entry.fleet.actions import Start
from infer_dev_entry.fleet.observations import StartWish, StopWish

FIRST = make_spec("a-0")
SECOND = make_spec("a-1", port=30001, warm_after="a-0")
THIRD = make_spec("a-2", port=30002, warm_after="a-0")


def starts(story: Story) -> list[str]:
    return [action.spec.name for action in of_type(story.history, Start)]


def test_others_wait_until_the_first_is_ready() -> None:
    story = Story(FIRST, SECOND, THIRD)
    assert starts(story) == ["a-0"]
    assert story.server("a-1").reason == "waits until a-0 has read the model from disk"
    story.started("a-0")
    story.see(after=50.0)
    assert starts(story) == ["a-0"]
    story.probed(True, "a-0")
    assert starts(story) == ["a-0", "a-1", "a-2"]
    assert story.server("a-1").state is State.STARTING


def test_others_do_not_wait_for_a_first_that_crashed() -> None:
    story = Story(FIRST, SECOND)
    story.started("a-0", 100)
    story.process("EXITED", name="a-0", ended="exited with status 1")
    assert starts(story) == ["a-0", "a-1"]


def test_others_do_not_wait_for_a_first_that_the_user_stopped() -> None:
    story = Story(FIRST, SECOND)
    story.started("a-0", 100)
    story.see(wishes=(StopWish(names=("a-0",)),))
    assert starts(story) == ["a-0", "a-1"]


def test_restart_of_one_does_not_touch_or_wait_for_its_siblings() -> None:
    story = Story(FIRST, SECOND, THIRD)
    story.ready("a-0", 100)
    story.started("a-1", 101)
    story.started("a-2", 102)
    story.see(after=1.0)
    story.probed(True, "a-1")
    story.probed(True, "a-2")
    story.history.clear()
    story.process("EXITED", name="a-0", ended="killed by SIGKILL")
    story.process("EXITED", name="a-1", ended="killed by SIGKILL")
    from infer_dev_entry.fleet.actions import Kill, Stop
    from infer_dev_entry.fleet.observations import SweepSeen

    story.see(results=(SweepSeen(name="a-0"), SweepSeen(name="a-1")))
    story.see(after=2.0)
    assert starts(story) == ["a-0", "a-1"]  # a-1 while a-0 loads again
    assert story.server("a-2").state is State.READY
    assert not of_type(story.history, Stop)
    assert not of_type(story.history, Kill)


def test_start_wish_on_a_sibling_is_obeyed_when_the_first_was_stopped_before() -> None:
    story = Story(FIRST, SECOND)
    story.see(wishes=(StopWish(names=None),))
    story.history.clear()
    story.see(wishes=(StartWish(names=("a-1",)),))
    assert "a-1" in starts(story)
