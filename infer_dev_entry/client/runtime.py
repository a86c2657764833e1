"""`Runtime`: the same for code without asyncio. Its calls run in an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from infer_dev_entry.client.async_runtime import (
    DEFAULT_TIMEOUT_S,
    READY_TIMEOUT_S,
    AsyncRuntime,
    check_messages,
    check_prompt,
    check_timeout,
    take_options,
)
from infer_dev_entry.client.connection import import_openai
from infer_dev_entry.client.model import Completion, Delta
from infer_dev_entry.client.private_fleet import PrivateFleet
from infer_dev_entry.client.target import find_target
from infer_dev_entry.errors import ClientError

T = TypeVar("T")

_THREAD_END_S = 5.0


class Runtime:
    """A served model. Make it with `attach` or `start`; threads may share it. Calls are bounded, none is retried."""

    def __init__(self, core: AsyncRuntime, loop: _LoopThread) -> None:
        self._core = core
        self._loop = loop

    @classmethod
    def attach(
        cls,
        target: str = "",
        *,
        api_key: str | None = None,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Attach to a URL, to a server of the running fleet by its name, or with "" to the only one (or the gateway).

        `model` is what requests name; "" is the first that the server lists. Without `api_key` the key is the server's
        own where this user may read it, else $INFER_DEV_API_KEY. `environ` stands in for os.environ.

        Raises:
            NotRunningError: no fleet is running.
            UnknownServerError: it has no such server.
            NotReadyError: the server does not serve now; the message has its state and reason.
            RefusedKeyError: it asks for a key that this user may not read.
            ClientError: no valid URL, several servers to choose from, or no `openai` package.
        """
        seen = os.environ if environ is None else environ
        found = find_target(target, api_key=api_key, environ=seen)
        return cls(AsyncRuntime(found, model=model, timeout_s=timeout_s), _LoopThread())

    @classmethod
    def start(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        name: str = "",
        ready_timeout_s: float = READY_TIMEOUT_S,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Start the servers of a config, a TOML file or the same as a mapping, for the life of a `with` block.

        They run under an entry of their own, with its own run directory, beside any other fleet; all of it ends with
        the block, and when this process dies. `name` is the server to ask, where there are several.

        Raises:
            ConfigError: every fault of the config.
            NotReadyError: a server failed, or is not ready in `ready_timeout_s`; with the reason.
            EntryError: the entry cannot be started.
        """
        check_timeout(timeout_s)
        import_openai()  # it takes minutes until it would be missed
        fleet = PrivateFleet(config, name=name, environ=os.environ if environ is None else environ)
        try:
            target = fleet.start(ready_timeout_s)
            return cls(AsyncRuntime(target, model=model, timeout_s=timeout_s, fleet=fleet), _LoopThread())
        except BaseException:  # a Ctrl-C as well
            fleet.close()
            raise

    # -- asking

    def generate(
        self,
        prompt: str,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        timeout_s: float | None = None,
        **other: Any,
    ) -> Completion:
        """Complete a prompt. `timeout_s` is for the whole answer; None is the runtime's.

        `json_schema` is enforced by the server while it samples; an answer that is cut off (`finish_reason` "length")
        is still no JSON. `other` takes further sampling options (`top_p`, `top_k`, …), and the names that other
        servers use, which are translated with a warning.

        Raises:
            UnreachableError: nobody answers; OverloadedError: it takes no more now.
            AnswerTimeoutError: not done in time.
            RefusedKeyError: a wrong key, or none.
            BadRequestError: the server refuses the request, with its words; UnknownModelError: no such model.
            BrokenAnswerError: an error of the server's own, or an answer that cannot be used.
            ClientError: an option that there is not.
        """
        given = (temperature, max_new_tokens, stop, json_schema, None, seed, timeout_s)
        call = take_options(given, other, chat=False)
        return self._loop.run(self._core.complete(check_prompt(prompt), call))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **other: Any,
    ) -> Completion:
        """Answer a conversation. As `generate`; `other` takes `tool_choice` and the like as well."""
        given = (temperature, max_new_tokens, stop, json_schema, tools, seed, timeout_s)
        call = take_options(given, other, chat=True)
        return self._loop.run(self._core.complete(check_messages(messages), call))

    def stream(
        self,
        prompt: str,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        timeout_s: float | None = None,
        **other: Any,
    ) -> Generator[Delta, None, None]:
        """Complete a prompt piece by piece. Closing the iterator hangs up, which ends the work in the server.

        `timeout_s` bounds the silence before each piece. Errors as `generate`, when the piece is asked for.
        """
        given = (temperature, max_new_tokens, stop, json_schema, None, seed, timeout_s)
        call = take_options(given, other, chat=False)
        return self._pull(self._core.pieces(check_prompt(prompt), call))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **other: Any,
    ) -> Generator[Delta, None, None]:
        """Answer a conversation piece by piece; as `stream`."""
        given = (temperature, max_new_tokens, stop, json_schema, tools, seed, timeout_s)
        call = take_options(given, other, chat=True)
        return self._pull(self._core.pieces(check_messages(messages), call))

    def models(self) -> tuple[str, ...]:
        """Return the names of the models that the server lists, asked anew."""
        return self._loop.run(self._core.models())

    def context_tokens(self) -> int:
        """Return how many tokens prompt and answer may have together, as the server tells of the model; else 0."""
        return self._loop.run(self._core.context_tokens())

    @property
    def url(self) -> str:
        """The base URL, without /v1."""
        return self._core.url

    @property
    def name(self) -> str:
        """The server's name in its fleet; "" for a URL."""
        return self._core.name

    @property
    def timeout_s(self) -> float:
        """The limit of calls that name none."""
        return self._core.timeout_s

    # -- its end

    def close(self) -> None:
        """Close the connections, and end the servers that `start` has started. Again is fine.

        In a process forked since it does nothing: all that is the parent's.
        """
        if self._loop.is_open and not self._loop.is_copy:
            try:
                self._loop.run(self._core.close())
            finally:
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Runtime({self._core.name or self._core.url})"

    def _pull(self, pieces: AsyncGenerator[Delta, None]) -> Generator[Delta, None, None]:
        async def pull() -> Delta | None:
            return await anext(pieces, None)

        try:
            while (piece := self._loop.run(pull())) is not None:
                yield piece
        finally:
            self._loop.finish(pieces.aclose())


class _LoopThread:
    """An event loop in a thread; `run` may be called from any other. It does not keep the process alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="infer-dev-client", daemon=True)
        self._ending: asyncio.Task[None] | None = None
        self.is_open = True
        self._pid = os.getpid()
        self._thread.start()

    @property
    def is_copy(self) -> bool:
        """True in a process that was forked since: it has no such thread, and a wait for it would never end."""
        return os.getpid() != self._pid

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; what interrupts the wait (Ctrl-C) cancels the work."""
        if not self.is_open or self.is_copy:
            work.close()
            why = "was made before this process was forked" if self.is_copy else "is closed"
            raise ClientError(f"cannot ask: this runtime {why}; attach again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends something. The garbage collector may call this in the loop's own thread, which cannot wait."""
        if threading.current_thread() is self._thread:
            self._ending = self._loop.create_task(work)
        elif self.is_open and not self.is_copy:
            self.run(work)
        else:
            work.close()

    def close(self) -> None:
        """Stop the loop and end the thread."""
        self.is_open = False
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_THREAD_END_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(RuntimeError, asyncio.CancelledError):
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
