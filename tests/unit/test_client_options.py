"""Options of a call: checked, translated, rendered."""

from __future__ import annotations

from typing import Any

import pytest

from infer_dev_entry.client.options import NAMED, TRANSLATIONS, CallOptions, parse_options, render_body
from infer_dev_entry.errors import ClientError

SCHEMA = {"title": "person", "type": "object", "properties": {"age": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def parse(chat: bool = True, other: dict[str, Any] | None = None, **named: Any) -> tuple[CallOptions, tuple[str, ...]]:
    return parse_options(named, other or {}, chat=chat)


@pytest.mark.parametrize(
    ("name", "value", "ours", "parsed"),
    [
        ("max_tokens", 7, "max_new_tokens", 7),
        ("max_completion_tokens", 7, "max_new_tokens", 7),
        ("n_predict", 7, "max_new_tokens", 7),
        ("max_length", 7, "max_new_tokens", 7),
        ("stop_sequences", ["a", "b"], "stop", ("a", "b")),
        ("guided_json", '{"type": "object"}', "json_schema", {"type": "object"}),
        ("timeout", 3, "timeout_s", 3.0),
        ("functions", [{"name": "look", "parameters": {}}], "tools", (TOOL,)),
    ],
)
def test_option_of_another_server_is_translated_with_a_warning(
    name: str, value: object, ours: str, parsed: object
) -> None:
    options, warnings = parse(other={name: value})
    assert getattr(options, ours) == parsed
    assert warnings == (f"option {name} is called {ours} here; it was translated",)


def test_every_translation_leads_to_an_option_that_there_is() -> None:
    for name in TRANSLATIONS:
        options, warnings = parse_options({}, {name: None}, chat=True)
        assert options == CallOptions()
        assert len(warnings) == 1


def test_option_of_ours_gives_no_warning() -> None:
    options, warnings = parse(temperature=0, max_new_tokens=3, other={"top_p": 0.5})
    assert (options.temperature, options.max_new_tokens, options.passed) == (0.0, 3, (("top_p", 0.5),))
    assert warnings == ()


def test_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ClientError, match=r"max_new_tokns.*did you mean max_new_tokens\?"):
        parse(other={"max_new_tokns": 3})
    with pytest.raises(ClientError, match=r"max_tokenss.*did you mean max_new_tokens\?"):
        parse(other={"max_tokenss": 3})
    with pytest.raises(ClientError, match=r"zzzzzzzz.*there are: temperature"):
        parse(other={"zzzzzzzz": 3})


def test_option_given_under_two_names_is_refused() -> None:
    with pytest.raises(ClientError, match="max_tokens: max_new_tokens is given as well"):
        parse(max_new_tokens=3, other={"max_tokens": 4})
    with pytest.raises(ClientError, match="given as well"):
        parse(other={"max_tokens": 4, "n_predict": 4})


@pytest.mark.parametrize("name", ["n", "stream", "response_format", "grammar", "model"])
def test_option_that_cannot_be_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ClientError, match=f"cannot use option {name}: "):
        parse(other={name: 1})


def test_option_of_chats_is_refused_for_a_prompt() -> None:
    with pytest.raises(ClientError, match="tool_choice: it is one of chat"):
        parse(chat=False, other={"tool_choice": "auto"})
    with pytest.raises(ClientError, match="only chat and stream_chat call tools"):
        parse(chat=False, other={"tools": [TOOL]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("stop", [""]),
        ("stop", 3),
        ("stop", ["a", 1]),
        ("json_schema", "{"),
        ("json_schema", "[" * 100_000),
        ("json_schema", [1]),
        ("json_schema", {"a": object()}),
        ("tools", TOOL),
        ("tools", [{}]),
        ("tools", [{"function": {"name": 3}}]),
        ("seed", "x"),
        ("timeout_s", 0),
        ("timeout_s", float("inf")),
        ("timeout_s", "5"),
    ],
)
def test_value_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ClientError, match=f"cannot use option {name}: ") as caught:
        parse(**{name: value})
    assert len(str(caught.value)) < 250


def test_schema_is_copied() -> None:
    schema = {"type": "object", "properties": {}}
    options, _ = parse(json_schema=schema)
    schema["properties"] = {"late": {}}
    assert options.json_schema == {"type": "object", "properties": {}}


def test_schema_of_a_chat_is_a_response_format_everywhere() -> None:
    options, _ = parse(json_schema=SCHEMA)
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for make in ("sglang", "llamacpp", ""):
        assert render_body(options, owned_by=make, chat=True) == {"response_format": wanted}


def test_schema_of_a_prompt_goes_to_llama_cpp_under_its_own_name() -> None:
    options, _ = parse(chat=False, json_schema=SCHEMA)
    assert render_body(options, owned_by="llamacpp", chat=False) == {"json_schema": SCHEMA}
    assert set(render_body(options, owned_by="sglang", chat=False)) == {"response_format"}


@pytest.mark.parametrize("title", [None, 3, "", "a b", "x" * 65, "naïve"])
def test_schema_without_a_usable_title_gets_a_name(title: object) -> None:
    options, _ = parse(json_schema={"title": title})
    assert render_body(options, owned_by="", chat=True)["response_format"]["json_schema"]["name"] == "answer"


def test_body_has_the_servers_names() -> None:
    options, _ = parse(
        temperature=0.5, max_new_tokens=9, stop="x", seed=0, tools=[TOOL], other={"repetition_penalty": 1.1}
    )
    assert render_body(options, owned_by="", chat=True) == {
        "repetition_penalty": 1.1,
        "repeat_penalty": 1.1,
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 0,
        "tools": [TOOL],
    }


def test_nothing_given_asks_for_nothing() -> None:
    assert render_body(parse(**dict.fromkeys(NAMED))[0], owned_by="", chat=True) == {}
