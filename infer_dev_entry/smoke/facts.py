"""What is known of a server before it is checked: its make, its model, and which of its parsers are set. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infer_dev_entry.client.model import ServedModel

SGLANG = "sglang"
LLAMA_CPP = "llamacpp"
_FLAGS = {
    "tool-call-parser": "tool_parser",
    "reasoning-parser": "reasoning_parser",
    "grammar-backend": "grammar_backend",
    "load-format": "load_format",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server. Of the parsers, "" is known to be not set and None is not known.

    `make` is what the server says of itself in /v1/models. `template_has_tools` is llama.cpp's word on its chat
    template. With `is_dummy` the weights are random (SGLang's load_format dummy): it says nothing that means anything.
    """

    label: str
    url: str
    api_key: str = field(default="", repr=False)
    make: str = ""
    model: str = ""
    context_tokens: int = 0
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    grammar_backend: str | None = None
    template_has_tools: bool | None = None
    is_dummy: bool = False
    ca_file: str = ""


def with_models(facts: ServerFacts, served: Sequence[ServedModel]) -> ServerFacts:
    """Return the facts with what /v1/models told."""
    first = served[0]
    return replace(facts, make=first.owned_by, model=first.id, context_tokens=first.context_tokens)


def with_launch(facts: ServerFacts, argv: Sequence[str], files: Sequence[str]) -> ServerFacts:
    """Return the facts with SGLang's own arguments: its command line, and the texts of its `--config` files."""
    settings: dict[str, str] = {}
    for text in files:
        settings |= _of_file(text)
    settings |= _of_argv(argv)
    return _with_settings(facts, settings)


def in_common(facts: ServerFacts, known: Sequence[ServerFacts]) -> ServerFacts:
    """Return the facts of a gateway: what all servers that may answer behind it share; where they differ, not known."""

    def shared(values: Sequence[str | None]) -> str | None:
        return values[0] if len(set(values)) == 1 else None

    return replace(
        facts,
        tool_parser=shared([one.tool_parser for one in known]),
        reasoning_parser=shared([one.reasoning_parser for one in known]),
        grammar_backend=shared([one.grammar_backend for one in known]),
        is_dummy=all(one.is_dummy for one in known),
    )


def _with_settings(facts: ServerFacts, settings: Mapping[str, str]) -> ServerFacts:
    tool, reasoning, grammar, load = (settings.get(name, "") for name in _FLAGS.values())
    return replace(
        facts, tool_parser=tool, reasoning_parser=reasoning, grammar_backend=grammar, is_dummy=load == "dummy"
    )


def _of_file(text: str) -> dict[str, str]:
    """Our YAML files are JSON as well."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return _named(values) if isinstance(values, dict) else {}


def _named(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(values[flag]) for flag, name in _FLAGS.items() if isinstance(values.get(flag), str)}


def _of_argv(argv: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word, value in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, joined = word.removeprefix("--").partition("=")
        if word.startswith("--") and flag in _FLAGS:
            found[_FLAGS[flag]] = joined if equals else value
    return found


def with_server_info(facts: ServerFacts, text: str) -> ServerFacts:
    """Return the facts with those of SGLang's /server_info that are asked for; the rest of it holds keys."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return facts
    if not isinstance(values, dict) or "tool_call_parser" not in values:
        return facts
    dashed = {name.replace("_", "-"): value for name, value in values.items()}
    settings = _named(dashed)
    return _with_settings(facts, settings)


def with_props(facts: ServerFacts, text: str) -> ServerFacts:
    """Return the facts with what llama.cpp's /props tells of the chat template."""
    try:
        caps = json.loads(text)["chat_template_caps"]["supports_tools"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return facts
    return replace(facts, template_has_tools=bool(caps))
