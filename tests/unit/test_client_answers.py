"""Answers of servers, good ones and hostile ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.client.answers import parse_answer, parse_event, parse_models
from infer_dev_entry.client.model import Completion, Delta, ToolCall
from infer_dev_entry.errors import BadRequestError, BrokenAnswerError, ClientError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("choices", "message", "delta", "content", "text", "tool_calls", "usage", "error", "data", "id")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def chat_answer(message: object, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}).encode()


def test_chat_answer_is_parsed() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    message = {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": [call]}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    assert parse_answer(chat_answer(message, model="m", usage=usage), chat=True) == Completion(
        text="yes",
        reasoning="hm",
        tool_calls=(ToolCall(id="c1", name="look", arguments='{"at": 1}'),),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=5,
        model="m",
    )


def test_completion_is_parsed() -> None:
    data = json.dumps({"choices": [{"text": "once", "finish_reason": "length"}]}).encode()
    parsed = parse_answer(data, chat=False)
    assert (parsed.text, parsed.finish_reason, parsed.prompt_tokens) == ("once", "length", 0)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": None}, "", ""),
        ({}, "", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, "ab", ""),
        ({"content": "a", "reasoning": "r"}, "a", "r"),
        ({"content": "a", "reasoning_content": None}, "a", ""),
    ],
)
def test_message_in_other_shapes_is_parsed(message: object, text: str, reasoning: str) -> None:
    parsed = parse_answer(chat_answer(message), chat=True)
    assert (parsed.text, parsed.reasoning) == (text, reasoning)


def test_tool_arguments_that_are_no_text_become_json() -> None:
    call = {"function": {"name": "look", "arguments": {"at": 1}}}
    parsed = parse_answer(chat_answer({"content": None, "tool_calls": [call]}), chat=True)
    assert json.loads(parsed.tool_calls[0].arguments) == {"at": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>502</html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [3]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"message": {"tool_calls": {}}}]}',
        b'{"choices": [{"message": {"tool_calls": [3]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": "look"}]}}]}',
        json.dumps({"choices": [{"message": {"tool_calls": [{}] * 1000}}]}).encode(),
        b"[" * 200_000,
        b'{"choices": [{"message": {"content": "cut o',
    ],
)
def test_answer_that_cannot_be_used_is_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(BrokenAnswerError) as caught:
        parse_answer(data, chat=True)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400


def test_huge_answer_that_cannot_be_used_is_not_repeated() -> None:
    with pytest.raises(BrokenAnswerError) as caught:
        parse_answer(b'{"x": "' + b"a" * 10_000_000 + b'"}', chat=True)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("usage", [None, 3, [], {"prompt_tokens": "3"}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_usage_that_says_nothing_counts_as_zero(usage: object) -> None:
    assert parse_answer(chat_answer({"content": "a"}, usage=usage), chat=True).prompt_tokens == 0


def test_error_under_status_200_is_raised_by_its_code() -> None:
    with pytest.raises(BadRequestError, match="no grammar"):
        parse_answer(b'{"error": {"message": "no grammar", "code": 400}}', chat=True)
    with pytest.raises(BrokenAnswerError, match="it broke"):
        parse_event('{"error": {"message": "it broke"}}', chat=True)


def test_event_is_parsed() -> None:
    call = {"index": 2, "id": "c", "function": {"name": "look", "arguments": "{"}}
    choice = {"delta": {"content": "a", "tool_calls": [call]}, "finish_reason": None}
    parsed = parse_event(json.dumps({"model": "m", "choices": [choice]}), chat=True)
    assert parsed == Delta(
        text="a",
        reasoning="",
        tool_calls=(ToolCall(id="c", name="look", arguments="{", index=2),),
        finish_reason="",
        prompt_tokens=0,
        completion_tokens=0,
        model="m",
    )


def test_event_with_the_usage_alone_is_parsed() -> None:
    parsed = parse_event('{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 4}}', chat=False)
    assert (parsed.text, parsed.prompt_tokens, parsed.completion_tokens) == ("", 2, 4)


@given(JSON)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    data = json.dumps(value)
    for parse in (
        lambda: parse_answer(data.encode(), chat=True),
        lambda: parse_answer(data.encode(), chat=False),
        lambda: parse_event(data, chat=True),
        lambda: parse_models(data.encode()),
    ):
        try:
            parse()
        except ClientError:
            continue


def test_models_of_both_engines_tell_their_context() -> None:
    sglang = b'{"data": [{"id": "a", "owned_by": "sglang", "max_model_len": 2048}]}'
    llama = b'{"data": [{"id": "b", "owned_by": "llamacpp", "meta": {"n_ctx": 512}}, {"id": "c"}, {"id": 3}, 4]}'
    assert [(model.id, model.owned_by, model.context_tokens) for model in parse_models(sglang)] == [
        ("a", "sglang", 2048)
    ]
    assert [(model.id, model.context_tokens) for model in parse_models(llama)] == [("b", 512), ("c", 0)]


@pytest.mark.parametrize("data", [b"{}", b'{"data": []}', b'{"data": {}}', b'{"data": [{"id": 3}]}', b"x"])
def test_list_of_models_that_names_none_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        parse_models(data)
