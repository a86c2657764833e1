"""`AsyncRuntime`: ask one server of the fleet, or any other that speaks OpenAI's API, from asyncio."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from infer_dev_entry.client.answers import parse_answer, parse_event, parse_models
from infer_dev_entry.client.connection import Connection, import_openai
from infer_dev_entry.client.model import Completion, Delta, ServedModel
from infer_dev_entry.client.options import NAMED, CallOptions, parse_options, render_body
from infer_dev_entry.client.private_fleet import PrivateFleet
from infer_dev_entry.client.target import Target, find_target
from infer_dev_entry.errors import BrokenAnswerError, ClientError

DEFAULT_TIMEOUT_S = 120.0
READY_TIMEOUT_S = 600.0

Question = str | list[dict[str, Any]]


class AsyncRuntime:
    """A served model. Make it with `attach` or `start`; every call is bounded by `timeout_s`, and none is retried."""

    def __init__(
        self,
        target: Target,
        *,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        fleet: PrivateFleet | None = None,
    ) -> None:
        check_timeout(timeout_s)
        self.url = target.url
        self.name = target.name
        self.timeout_s = timeout_s
        self._model = model
        self._served: tuple[ServedModel, ...] = ()
        self._connection = Connection(target.url, target.api_key, target.ca_file)
        self._fleet = fleet
        self._closed = False

    @classmethod
    async def attach(
        cls,
        target: str = "",
        *,
        api_key: str | None = None,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Attach to a URL, to a server of the running fleet by its name, or with "" to the only one (or the gateway).

        `model` is what requests name; "" is the first that the server lists. As `Runtime.attach`.
        """
        seen = os.environ if environ is None else environ
        found = await asyncio.to_thread(find_target, target, api_key=api_key, environ=seen)
        return cls(found, model=model, timeout_s=timeout_s)

    @classmethod
    async def start(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        name: str = "",
        ready_timeout_s: float = READY_TIMEOUT_S,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Start the servers of a config for the life of an `async with` block. As `Runtime.start`."""
        check_timeout(timeout_s)
        import_openai()  # it takes minutes until it would be missed
        seen = os.environ if environ is None else environ
        fleet = PrivateFleet(config, name=name, environ=seen)
        try:
            target = await asyncio.to_thread(fleet.start, ready_timeout_s)
            return cls(target, model=model, timeout_s=timeout_s, fleet=fleet)
        except BaseException:
            # Also when cancelled: the thread goes on until it sees that the fleet is closed.
            await asyncio.shield(asyncio.to_thread(fleet.close))
            raise

    # -- asking

    async def generate(
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
        """Complete a prompt. Options and errors: see `Runtime.generate`."""
        given = (temperature, max_new_tokens, stop, json_schema, None, seed, timeout_s)
        return await self.complete(check_prompt(prompt), take_options(given, other, chat=False))

    async def chat(
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
        """Answer a conversation. Options and errors: see `Runtime.chat`."""
        given = (temperature, max_new_tokens, stop, json_schema, tools, seed, timeout_s)
        return await self.complete(check_messages(messages), take_options(given, other, chat=True))

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
    ) -> AsyncGenerator[Delta, None]:
        """Complete a prompt piece by piece; closing the iterator hangs up. `timeout_s` bounds each silence."""
        given = (temperature, max_new_tokens, stop, json_schema, None, seed, timeout_s)
        return self.pieces(check_prompt(prompt), take_options(given, other, chat=False))

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
    ) -> AsyncGenerator[Delta, None]:
        """Answer a conversation piece by piece; as `stream`."""
        given = (temperature, max_new_tokens, stop, json_schema, tools, seed, timeout_s)
        return self.pieces(check_messages(messages), take_options(given, other, chat=True))

    async def models(self) -> tuple[str, ...]:
        """Return the names of the models that the server lists, asked anew."""
        self._served = await self._ask_models(self.timeout_s)
        return tuple(model.id for model in self._served)

    async def context_tokens(self) -> int:
        """Return how many tokens prompt and answer may have together, as the server tells of the model; else 0."""
        if not self._served:
            self._served = await self._ask_models(self.timeout_s)
        return next((model.context_tokens for model in self._served if self._model in (model.id, "")), 0)

    # -- its end

    async def close(self) -> None:
        """Close the connections, and end the servers that `start` has started. Again is fine."""
        self._closed = True
        try:
            await self._connection.close()
        finally:
            if self._fleet is not None:
                await asyncio.shield(asyncio.to_thread(self._fleet.close))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or self.url})"

    # -- inside

    def _open(self) -> Connection:
        if self._closed:
            raise ClientError(f"cannot ask {self.url}: this runtime is closed; attach again")
        return self._connection

    async def complete(self, question: Question, call: CallOptions) -> Completion:
        """Ask with options that are checked already; a prompt is a text, and a chat its messages."""
        clock = asyncio.get_running_loop().time
        limit = self._limit(call)
        ends = clock() + limit
        body = await self._body(question, call, limit)
        chat = not isinstance(question, str)
        answer = await self._open().ask(body, chat=chat, timeout_s=max(0.001, ends - clock()))
        with self._connection.naming():
            return parse_answer(answer, chat=chat)

    async def pieces(self, question: Question, call: CallOptions) -> AsyncGenerator[Delta, None]:
        """Stream with options that are checked already."""
        limit = self._limit(call)
        body = await self._body(question, call, limit)
        chat = not isinstance(question, str)
        ended = False
        async with aclosing(self._open().stream(body, chat=chat, timeout_s=limit)) as events:
            async for event in events:
                with self._connection.naming():
                    delta = parse_event(event, chat=chat)
                ended = ended or bool(delta.finish_reason)
                yield delta
        if not ended:
            raise BrokenAnswerError(
                f"cannot ask {self.url}: the stream ended before the answer did; see the server's log"
            )

    async def _body(self, question: Question, call: CallOptions, limit: float) -> dict[str, Any]:
        """The whole request. The model's name, and the server's make where it matters, are asked once."""
        chat = not isinstance(question, str)
        by_make = call.json_schema is not None and not chat
        if not self._served and (by_make or not self._model):
            self._served = await self._ask_models(limit)
        first = self._served[0] if self._served else None
        model = self._model or (first.id if first else "")
        options = render_body(call, owned_by=first.owned_by if first else "", chat=chat)
        return {"model": model, "messages" if chat else "prompt": question} | options

    async def _ask_models(self, limit: float) -> tuple[ServedModel, ...]:
        data = await self._open().get_models(limit)
        with self._connection.naming():
            return parse_models(data)

    def _limit(self, call: CallOptions) -> float:
        return self.timeout_s if call.timeout_s is None else call.timeout_s


def take_options(given: Sequence[Any], other: Mapping[str, Any], *, chat: bool) -> CallOptions:
    """Parse the options of a call, and warn whoever called our caller of each name that is another server's.

    Raises:
        ClientError: as `parse_options`.
    """
    call, translated = parse_options(dict(zip(NAMED, given, strict=True)), other, chat=chat)
    for text in translated:
        warnings.warn(text, stacklevel=3)
    return call


def check_prompt(prompt: object) -> str:
    """Return the prompt.

    Raises:
        ClientError: it is no text.
    """
    if not isinstance(prompt, str):
        raise ClientError(
            f"cannot use the prompt: expected a text, got {type(prompt).__name__}; for messages call chat"
        )
    return prompt


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return a copy of the messages.

    Raises:
        ClientError: they are no list of mappings with a role.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ClientError('cannot use the messages: expected a list such as [{"role": "user", "content": "…"}]')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ClientError(f'cannot use message {number}: expected {{"role": "user", "content": "…"}}')
    return [dict(message) for message in messages]


def check_timeout(timeout_s: object) -> None:
    """Refuse a limit that is none.

    Raises:
        ClientError: it is no number of seconds above 0.
    """
    parse_options({"timeout_s": timeout_s}, {}, chat=False)
