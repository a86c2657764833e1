"""Work that never comes back costs its caller the timeout, the next one nothing, and the end of the program nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from infer_dev_entry.init.aside import Aside
from infer_dev_entry.init.keys_watch import KeysWatch


def test_result_and_error_come_back() -> None:
    async def story() -> None:
        aside = Aside()
        assert await aside.run(lambda: 7, 5) == 7
        with pytest.raises(OSError, match="no luck"):
            await aside.run(fail, 5)
        assert await aside.run(lambda: 8, 5) == 8

    asyncio.run(story())


def fail() -> None:
    raise OSError("no luck")


def test_who_has_an_answer_may_call_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may leave the thread of a call that is over no time to end."""
    gate = threading.Event()

    class Slow(threading.Thread):
        def run(self) -> None:
            super().run()
            gate.wait(30)

    monkeypatch.setattr("infer_dev_entry.init.aside.threading.Thread", Slow)

    async def story() -> None:
        aside = Aside()
        assert [await aside.run(lambda number=number: number, 5) for number in range(3)] == [0, 1, 2]  # type: ignore[misc]

    asyncio.run(story())
    gate.set()


def test_call_that_hangs_is_given_up_and_blocks_no_later_one_for_long() -> None:
    async def story() -> None:
        aside, gate = Aside(), threading.Event()
        with pytest.raises(TimeoutError):
            await aside.run(gate.wait, 0.02)
        before = threading.active_count()
        for _ in range(5):  # no thread is added to the one that hangs
            with pytest.raises(TimeoutError, match="does not come back"):
                await aside.run(lambda: 1, 60)
        assert threading.active_count() == before
        (hung,) = [thread for thread in threading.enumerate() if thread.name == "aside"]
        gate.set()
        hung.join(30)
        assert await aside.run(lambda: 2, 5) == 2

    asyncio.run(story())


def test_thread_that_cannot_be_started_now_can_be_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        aside = Aside()
        with monkeypatch.context() as patch:

            def start(self: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="can't start new thread"):
                await aside.run(lambda: 1, 5)
        assert await aside.run(lambda: 2, 5) == 2

    asyncio.run(story())


def test_call_that_hangs_does_not_keep_the_program_from_ending() -> None:
    gate = threading.Event()

    async def story() -> None:
        with pytest.raises(TimeoutError):
            await Aside().run(gate.wait, 0.02)

    asyncio.run(story())  # with asyncio's own threads this would wait for the gate
    (hung,) = [thread for thread in threading.enumerate() if thread.name == "aside"]
    assert hung.daemon
    gate.set()
    hung.join(30)


def test_keys_on_a_file_system_that_hangs_are_those_read_before(tmp_path) -> None:
    class Log:
        def __getattr__(self, level: str):
            return lambda event, **fields: None

    path = tmp_path / "keys"
    path.write_text("alice: sk-0123456789abcdef\n")
    watch = KeysWatch(Log())
    assert watch.in_force(str(path)) == ()
    assert watch.problem and "nobody gets in" in watch.problem.reason
    read = watch.read(str(path))
    assert watch.problem is None
    assert watch.in_force(str(path)) == read and len(read or ()) == 1
    assert watch.problem and "does not answer; the 1 old keys stay in force" in watch.problem.reason
    assert watch.in_force("") is None
    # It answers again: the file is read anew although it has not changed, and nothing is wrong any more.
    assert watch.has_changed(str(path))
    assert watch.read(str(path)) == read
    assert watch.problem is None and not watch.has_changed(str(path))
