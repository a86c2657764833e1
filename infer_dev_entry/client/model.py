"""What a served model answers, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool. `arguments` is JSON text as the model wrote it, so it need not parse.

    In a stream the pieces of one call share their `index`; the first has the id and the name.
    """

    id: str
    name: str
    arguments: str
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer. Token counts are 0 where the server tells none; `finish_reason` is the server's word."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a streamed answer. `finish_reason` is "" until the end; the counts come with the last piece, or 0."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One entry of /v1/models. `owned_by` names the server's make; `context_tokens` is 0 where it is not told."""

    id: str
    owned_by: str
    context_tokens: int
