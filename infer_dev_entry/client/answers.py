"""Parse what servers answer. It is foreign text: everything is checked, and nothing is taken on trust. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.client.failures import failure_of_event
from infer_dev_entry.client.model import Completion, Delta, ServedModel, ToolCall
from infer_dev_entry.errors import BrokenAnswerError

_MOST_TOOL_CALLS = 256


def parse_models(data: bytes) -> tuple[ServedModel, ...]:
    """Parse the answer of /v1/models.

    Raises:
        BrokenAnswerError: it is not such an answer.
    """
    rows = _object(data).get("data")
    if not isinstance(rows, list):
        raise BrokenAnswerError(f"cannot use the list of models: it has no list `data`: {_excerpt(data)}")
    models = tuple(_model(row) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str))
    if not models:
        raise BrokenAnswerError(f"cannot use the list of models: it names none: {_excerpt(data)}")
    return models


def _model(row: Mapping[str, Any]) -> ServedModel:
    """SGLang and vLLM tell the context as `max_model_len`, llama.cpp that of one slot as `meta.n_ctx`."""
    meta = row.get("meta")
    told = [row.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None]
    context = next((value for value in told if isinstance(value, int) and not isinstance(value, bool)), 0)
    return ServedModel(id=row["id"], owned_by=str(row.get("owned_by", "")), context_tokens=max(0, context))


def parse_answer(data: bytes, *, chat: bool) -> Completion:
    """Parse a whole answer of a completion or a chat.

    Raises:
        BrokenAnswerError: it is not such an answer.
        ClientError: it is an error under the status 200.
    """
    answer = _object(data)
    if answer.get("error"):
        raise failure_of_event(answer["error"])
    choice = _first_choice(answer)
    if choice is None:
        raise BrokenAnswerError(f"cannot use the answer: it has no choices: {_excerpt(data)}")
    prompt_tokens, completion_tokens = _usage(answer)
    message = choice.get("message") if chat else choice
    if not isinstance(message, dict):
        raise BrokenAnswerError(f"cannot use the answer: its choice has no message: {_excerpt(data)}")
    return Completion(
        text=_content(message, "content" if chat else "text", data),
        reasoning=_reasoning(message),
        tool_calls=_tool_calls(message.get("tool_calls")),
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=_text(answer.get("model")),
    )


def parse_event(data: str, *, chat: bool) -> Delta:
    """Parse one event of a stream.

    Raises:
        BrokenAnswerError: it is not such an event.
        ClientError: the server reports an error in the middle of the stream.
    """
    event = _object(data.encode("utf-8", "replace"))
    if event.get("error"):
        raise failure_of_event(event["error"])
    choice = _first_choice(event) or {}  # the last event may have the usage alone
    piece = choice.get("delta") if chat else choice
    piece = piece if isinstance(piece, dict) else {}
    prompt_tokens, completion_tokens = _usage(event)
    return Delta(
        text=_content(piece, "content" if chat else "text", data.encode("utf-8", "replace")),
        reasoning=_reasoning(piece),
        tool_calls=_tool_calls(piece.get("tool_calls")),
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=_text(event.get("model")),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswerError(f"cannot use the answer: it is not JSON: {_excerpt(data)}") from error
    if not isinstance(value, dict):
        raise BrokenAnswerError(f"cannot use the answer: it is no JSON object: {_excerpt(data)}")
    return value


def _first_choice(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def _content(message: Mapping[str, Any], key: str, data: bytes) -> str:
    """The text; null when the model only called tools, or a list of parts."""
    content = message.get(key)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise BrokenAnswerError(f"cannot use the answer: its {key} is no text: {_excerpt(data)}")
    return content


def _reasoning(message: Mapping[str, Any]) -> str:
    """SGLang and llama.cpp say `reasoning_content`, newer vLLM `reasoning`."""
    return _text(message.get("reasoning_content")) or _text(message.get("reasoning"))


def _tool_calls(value: object) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_TOOL_CALLS:
        raise BrokenAnswerError(f"cannot use the answer: tool_calls is no list of at most {_MOST_TOOL_CALLS} calls")
    return tuple(_tool_call(item, index) for index, item in enumerate(value))


def _tool_call(item: object, position: int) -> ToolCall:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict):
        raise BrokenAnswerError(f"cannot use the answer: tool_calls[{position}] has no function")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # some servers parse them already
        arguments = json.dumps(arguments)
    index = item.get("index")
    return ToolCall(
        id=_text(item.get("id")),
        name=_text(function.get("name")),
        arguments=_text(arguments),
        index=index if isinstance(index, int) and not isinstance(index, bool) else position,
    )


def _usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (
        count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0 for count in counts
    )
    return prompt, completion


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _excerpt(data: bytes) -> str:
    """The beginning of an answer for a one-line message."""
    text = data[:160].decode("utf-8", "replace")
    return repr(text if len(data) <= 160 else text + "…")
