"""The options of a call: checked, other servers' names for them translated, and rendered as a request. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.errors import ClientError

# Another server's name → ours: OpenAI, llama.cpp, Ollama, TGI, transformers and vLLM, in about this order.
TRANSLATIONS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "guided_json": "json_schema",
    "response_schema": "json_schema",
    "random_seed": "seed",
    "sampling_seed": "seed",
    "temp": "temperature",
    "functions": "tools",
    "timeout": "timeout_s",
    "request_timeout": "timeout_s",
    "repeat_penalty": "repetition_penalty",
    "typ_p": "typical_p",
    "min_tokens": "min_new_tokens",
}
NAMED = ("temperature", "max_new_tokens", "stop", "json_schema", "tools", "seed", "timeout_s")
# Sent on as they are, under the names that the servers have for them.
PASSED = (
    *("top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "ignore_eos", "min_new_tokens", "stop_token_ids", "user"),
)
PASSED_BY_CHAT = ("tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort")
# SGLang's and llama.cpp's names where they differ from ours; each server leaves the other's alone.
_SENT_AS = {"min_new_tokens": ("min_tokens",), "repetition_penalty": ("repetition_penalty", "repeat_penalty")}
_CANNOT = {
    "n": "one answer a call; call again for more",
    "best_of": "one answer a call; call again for more",
    "stream": "call stream() or stream_chat()",
    "model": "name it when attaching: Runtime.attach(…, model=…)",
    "response_format": "give the schema itself as json_schema",
    "guided_regex": "only JSON schemas are enforced by every server here; use json_schema",
    "grammar": "only JSON schemas are enforced by every server here; use json_schema",
}
LLAMA_CPP = "llamacpp"  # what llama.cpp says as `owned_by` in /v1/models


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Checked options. None and () are "not given"; `passed` are the names and values that are sent as they are."""

    temperature: float | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    seed: int | None = None
    timeout_s: float | None = None
    passed: tuple[tuple[str, Any], ...] = ()


def parse_options(
    named: Mapping[str, Any], other: Mapping[str, Any], *, chat: bool
) -> tuple[CallOptions, tuple[str, ...]]:
    """Return the options of a call, and a warning for each name that had to be translated.

    Raises:
        ClientError: an option that there is not, is given twice, or has a value that cannot be.
    """
    found = {name: value for name, value in named.items() if value is not None}
    warnings: list[str] = []
    for name, value in other.items():
        ours = TRANSLATIONS.get(name, name)
        _check_name(name, ours, chat=chat)
        if ours in found:
            raise ClientError(f"cannot use option {name}: {ours} is given as well; give one of the two")
        if ours != name:
            warnings.append(f"option {name} is called {ours} here; it was translated")
        if value is not None:
            found[ours] = _from_functions(value) if name == "functions" else value
    checked = {name: _CHECKS[name](name, value) for name, value in found.items() if name in _CHECKS}
    passed = tuple((name, value) for name, value in found.items() if name not in _CHECKS)
    if checked.get("tools") and not chat:
        raise ClientError("cannot use option tools: only chat and stream_chat call tools; use those")
    return CallOptions(**checked, passed=passed), tuple(warnings)


def _check_name(name: str, ours: str, *, chat: bool) -> None:
    known = (*NAMED, *PASSED, *(PASSED_BY_CHAT if chat else ()))
    if ours in known:
        return
    if name in _CANNOT:
        raise ClientError(f"cannot use option {name}: {_CANNOT[name]}")
    if name in PASSED_BY_CHAT:
        raise ClientError(f"cannot use option {name}: it is one of chat and stream_chat; use those")
    from difflib import get_close_matches

    near = get_close_matches(name, (*known, *TRANSLATIONS), n=1, cutoff=0.5)
    best = TRANSLATIONS.get(near[0], near[0]) if near else ""
    hint = f"did you mean {best}?" if best else f"there are: {', '.join(known)}"
    raise ClientError(f"cannot use option {name}: there is none of that name; {hint}")


# ------------------------------------------------------------------------------------------------------- the checks


def _wrong(name: str, wanted: str, value: object) -> ClientError:
    shown = repr(value)
    return ClientError(
        f"cannot use option {name}: expected {wanted}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
    )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _wrong(name, "a number from 0 on", value)
    return float(value)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _wrong(name, "seconds above 0", value)
    return float(value)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(name, "a whole number from 1 on", value)
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "a whole number", value)
    return value


def _stop(name: str, value: object) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not all(isinstance(word, str) and word for word in words):
        raise _wrong(name, "a text, or a list of texts", value)
    return tuple(words)


def _schema(name: str, value: object) -> Mapping[str, Any]:
    """A schema as a mapping, or as JSON text, which vLLM takes as well."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _wrong(name, "a JSON schema", value) from error
    if not isinstance(value, Mapping):
        raise _wrong(name, "a JSON schema, as a mapping", value)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ClientError(f"cannot use option {name}: it is not JSON: {error}") from error
    return dict(json.loads(text))  # a copy: the caller may change theirs before the request goes out


def _tools(name: str, value: object) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
        raise _wrong(name, "a list of tools", value)
    for tool in value:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _wrong(name, 'tools as {"type": "function", "function": {"name": …, "parameters": …}}', tool)
    return tuple(value)


def _from_functions(value: object) -> object:
    """OpenAI's older `functions` are the tools without their frame."""
    if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
        return value
    return [{"type": "function", "function": item} for item in value]


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "temperature": _number,
    "max_new_tokens": _count,
    "stop": _stop,
    "json_schema": _schema,
    "tools": _tools,
    "seed": _whole,
    "timeout_s": _seconds,
}


# ------------------------------------------------------------------------------------------------------ the request


def render_body(options: CallOptions, *, owned_by: str, chat: bool) -> dict[str, Any]:
    """Return the request's body but for model, and prompt or messages.

    A schema in a chat is a `response_format` everywhere. For a plain prompt SGLang and vLLM take that too, while
    llama.cpp ignores it there and takes a `json_schema` (seen with xllamacpp 2026.1), which in SGLang must be a text.
    """
    body: dict[str, Any] = {}
    for name, value in options.passed:
        body |= dict.fromkeys(_SENT_AS.get(name, (name,)), value)
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.max_new_tokens is not None:
        body["max_tokens"] = options.max_new_tokens
    if options.stop:
        body["stop"] = list(options.stop)
    if options.seed is not None:
        body["seed"] = options.seed
    if options.tools:
        body["tools"] = list(options.tools)
    if options.json_schema is not None:
        llama_prompt = owned_by == LLAMA_CPP and not chat
        body |= {"json_schema": options.json_schema} if llama_prompt else _response_format(options.json_schema)
    return body


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    title = schema.get("title")
    usable = isinstance(title, str) and 0 < len(title) <= 64 and title.replace("_", "").replace("-", "").isalnum()
    named = {"name": title if usable and str(title).isascii() else "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
