"""The Runtime against servers that misbehave: every fault is a typed error, in bounded time, without the key."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from faulty_server import FaultyServer
from fleet import free_port
from wait import wait_until

pytest.importorskip("openai", reason="the client extra is not installed")

from infer_dev_entry.client import (
    AnswerTimeoutError,
    AsyncRuntime,
    BadRequestError,
    BrokenAnswerError,
    ClientError,
    OverloadedError,
    RefusedKeyError,
    Runtime,
    UnknownModelError,
    UnreachableError,
)

KEY = "sk-very-secret-key"
MESSAGES = [{"role": "user", "content": "hi"}]
# What the faults below take at most, with a margin for a machine with other work; no fault ends by itself so soon.
BOUND_S = 30.0


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


def attach(faulty: FaultyServer, fault: str, timeout_s: float = 5.0) -> Runtime:
    return Runtime.attach(faulty.url(fault), api_key=KEY, model="m", timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("fault", "kind", "timeout_s"),
    [
        ("400", BadRequestError, 5),
        ("401", RefusedKeyError, 5),
        ("403", RefusedKeyError, 5),
        ("404", UnknownModelError, 5),
        ("422", BadRequestError, 5),
        ("429", OverloadedError, 5),
        ("500", BrokenAnswerError, 5),
        ("503", OverloadedError, 5),
        ("302", BrokenAnswerError, 5),
        ("hang", AnswerTimeoutError, 0.3),
        ("drip-head", AnswerTimeoutError, 0.3),
        ("drip-body", AnswerTimeoutError, 0.3),
        ("cut", BrokenAnswerError, 5),
        ("close", BrokenAnswerError, 5),
        ("garbage", BrokenAnswerError, 5),
        ("html", BrokenAnswerError, 5),
        ("packed", BrokenAnswerError, 5),
        ("endless", BrokenAnswerError, 20),
        ("endless-error", BrokenAnswerError, 20),
    ],
)
def test_fault_of_a_server_is_a_typed_error_in_time(
    faulty: FaultyServer, fault: str, kind: type[ClientError], timeout_s: float
) -> None:
    with attach(faulty, fault, timeout_s) as runtime:
        for ask in (runtime.chat, runtime.stream_chat, runtime.models):
            began = time.monotonic()
            with pytest.raises(ClientError) as caught:
                list(ask(*([] if ask == runtime.models else [MESSAGES])))
            assert time.monotonic() - began < BOUND_S
            text = str(caught.value)
            assert KEY not in text
            assert KEY not in repr(runtime)
            assert "\n" not in text
            assert faulty.url(fault) in text
            # A stream has another shape, and may be told to be over in another way.
            assert ask == runtime.stream_chat or type(caught.value) is kind, text


@pytest.mark.parametrize(
    ("fault", "kind", "words", "timeout_s"),
    [
        ("sse-cut", BrokenAnswerError, "ended before the answer did", 20),
        ("sse-broken", BrokenAnswerError, "the connection broke", 20),
        ("sse-silent", AnswerTimeoutError, "no answer within 2 s", 2),  # the first event has to come within it, too
        ("sse-garbage", BrokenAnswerError, "it is not JSON", 20),
        ("sse-error", BadRequestError, "no grammar here", 20),
    ],
)
def test_stream_that_fails_on_the_way_gives_what_came_and_then_the_error(
    faulty: FaultyServer, fault: str, kind: type[ClientError], words: str, timeout_s: float
) -> None:
    with attach(faulty, fault, timeout_s) as runtime:
        stream = runtime.stream("x")
        assert next(stream).text == "a"
        with pytest.raises(kind, match=words):
            list(stream)


def test_stream_without_an_end_to_its_line_is_refused(faulty: FaultyServer) -> None:
    with attach(faulty, "sse-no-lines") as runtime, pytest.raises(BrokenAnswerError, match="more than 4 MiB"):
        next(runtime.stream("x"))


def test_stream_ends_with_its_last_event(faulty: FaultyServer) -> None:
    with attach(faulty, "sse-good") as runtime:
        assert [delta.text for delta in runtime.stream("x")] == ["a", "a", "a", ""]


def test_closed_stream_hangs_up(faulty: FaultyServer) -> None:
    with attach(faulty, "sse-endless") as runtime:
        before = faulty.hung_up
        stream = runtime.stream_chat(MESSAGES)
        next(stream)
        stream.close()
        wait_until(lambda: faulty.hung_up == before + 1, 15, "the connection to be closed")
        with attach(faulty, "good") as other:
            assert other.chat(MESSAGES).text == "ok"


def test_closed_runtime_hangs_up_and_asks_no_more(faulty: FaultyServer) -> None:
    runtime = attach(faulty, "sse-endless")
    before = faulty.hung_up
    stream = runtime.stream("x")
    next(stream)
    runtime.close()
    runtime.close()
    wait_until(lambda: faulty.hung_up == before + 1, 15, "the connection to be closed")
    with pytest.raises(ClientError, match="is closed"):
        runtime.generate("x")
    with pytest.raises(ClientError, match="is closed"):
        next(stream)


def test_nobody_at_the_address_is_unreachable_at_once() -> None:
    with Runtime.attach(f"http://127.0.0.1:{free_port()}", model="m") as runtime:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="infer-dev status"):
            runtime.generate("x")
        assert time.monotonic() - began < BOUND_S


def test_request_is_sent_once_and_without_a_proxy(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    for fault, kind in (("503", OverloadedError), ("close", BrokenAnswerError)):
        with attach(faulty, fault) as runtime:
            before = len(faulty.requests)
            with pytest.raises(kind):
                runtime.generate("x")
            assert len(faulty.requests) == before + 1


def test_options_reach_the_server_under_its_names(faulty: FaultyServer) -> None:
    with (
        attach(faulty, "good") as runtime,
        pytest.warns(UserWarning, match="n_predict is called max_new_tokens") as seen,
    ):
        runtime.generate("x", temperature=0, stop="y", seed=3, n_predict=4, top_k=5)
    assert seen[0].filename == __file__
    assert faulty.requests[-1] == (
        "/v1/completions",
        {
            "model": "m", "prompt": "x", "stream": False,
            "temperature": 0.0, "stop": ["y"], "seed": 3, "max_tokens": 4, "top_k": 5,
        },
    )  # fmt: skip


def test_threads_share_a_runtime(faulty: FaultyServer) -> None:
    found: list[str] = []
    with attach(faulty, "good") as runtime:
        threads = [threading.Thread(target=lambda: found.append(runtime.generate("x").text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
    assert found == ["ok"] * 8


def test_copy_of_a_runtime_in_a_forked_process_is_refused_and_leaves_the_original(faulty: FaultyServer) -> None:
    with attach(faulty, "good") as runtime:
        assert runtime.generate("x").text == "ok"
        pid = os.fork()
        if not pid:  # nothing of pytest may run in here
            try:
                runtime.generate("x")
                code = 2
            except ClientError as error:
                code = 0 if "forked" in str(error) else 3
            runtime.close()
            os._exit(code)
        assert wait_for_exit(pid) == 0
        assert runtime.generate("x").text == "ok"


def wait_for_exit(pid: int) -> int:
    """Return the exit code of our child; one that hangs is killed."""
    ends = time.monotonic() + BOUND_S
    while time.monotonic() < ends:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_text_that_is_none_is_refused(faulty: FaultyServer) -> None:
    with attach(faulty, "good") as runtime:
        for ask in (lambda: runtime.generate("\ud800"), lambda: next(runtime.stream_chat([{"role": "\udfff"}]))):
            with pytest.raises(ClientError, match="surrogate"):
                ask()


def test_options_of_a_prompt_may_be_given_in_order(faulty: FaultyServer) -> None:
    with attach(faulty, "good") as runtime:
        runtime.generate("x", 0.5, 4, "y", None)
    body = faulty.requests[-1][1]
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 4, ["y"])
    signature = inspect.signature(AsyncRuntime.generate)
    assert [*signature.parameters] == [*inspect.signature(Runtime.generate).parameters]
    assert [*signature.parameters][1:6] == ["prompt", "temperature", "max_new_tokens", "stop", "json_schema"]


def test_async_twin_does_the_same(faulty: FaultyServer) -> None:
    async def ask() -> None:
        async with await AsyncRuntime.attach(faulty.url("good"), api_key=KEY, model="m") as runtime:
            answers = await asyncio.gather(*(runtime.chat(MESSAGES) for _ in range(4)), runtime.generate("x"))
            assert [answer.text for answer in answers] == ["ok"] * 5
            with pytest.warns(UserWarning, match="max_tokens is called") as seen:
                await runtime.generate("x", max_tokens=3)
            assert seen[0].filename == __file__
        async with await AsyncRuntime.attach(faulty.url("sse-endless"), model="m") as runtime:
            before = faulty.hung_up
            stream = runtime.stream("x")
            assert (await anext(stream)).text == "a"
            await stream.aclose()
            while faulty.hung_up == before:
                await asyncio.sleep(0.01)
        async with await AsyncRuntime.attach(faulty.url("hang"), model="m") as runtime:
            with pytest.raises(AnswerTimeoutError):
                await runtime.generate("x", timeout_s=0.2)

    asyncio.run(asyncio.wait_for(ask(), BOUND_S))
