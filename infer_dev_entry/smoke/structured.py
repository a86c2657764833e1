"""The checks of what a server adds to plain text: JSON held to a schema, tool calls, reasoning set apart."""

from __future__ import annotations

import json
from typing import Any

from infer_dev_entry.foreign_text import shown
from infer_dev_entry.smoke.asker import Asker
from infer_dev_entry.smoke.facts import LLAMA_CPP, SGLANG
from infer_dev_entry.smoke.rows import Outcome, failed, passed, skipped

# Every value is one of a few: also a model that only babbles comes to the end.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "enum": [1, 2, 3]},
        "sure": {"type": "boolean"},
    },
    "required": ["color", "count", "sure"],
    "additionalProperties": False,
}
# It does not ask for JSON: an answer that is JSON all the same was held to it by the server, not by the prompt.
_STORY = "Tell me a short story about a dog."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
_WEATHER = "What is the weather in Paris now? Call the tool get_weather."
_THINK_MARKS = ("<think>", "</think>")


def check_json_schema(server: Asker) -> Outcome:
    """JSON comes out where the prompt asks for a story, and it is what the schema says."""
    if server.facts.grammar_backend == "none":
        return skipped(
            "the server runs with grammar_backend none, so it holds no answer to a schema",
            'remove grammar_backend = "none" (the default is xgrammar)',
        )
    named = {"name": "smoke", "schema": SCHEMA, "strict": True}
    wanted = {"type": "json_schema", "json_schema": named}
    answer = server.chat(_STORY, max_tokens=256, response_format=wanted, **server.unthinking)
    choice = answer.choices[0]
    text = choice.message.content or ""
    problem = find_problem(text)
    if not problem:
        return passed(f"{shown(' '.join(text.split()))} is what the schema says")
    if choice.finish_reason == "length" and server.facts.is_dummy:
        return skipped(f"no end after 256 tokens, and the weights are random (load_format dummy): {shown(text)}")
    if choice.finish_reason == "length":
        return failed(f"no end after 256 tokens: {shown(text)}", "the model pads its JSON; see the grammar backend")
    return failed(f"{problem}: {shown(text)}", "the server ignores response_format; see its grammar backend")


def find_problem(text: str) -> str:
    """Why a text is not what `SCHEMA` says; "" when it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict) or set(value) != set(SCHEMA["required"]):
        return "not the object of the schema"
    count = value["count"]
    if value["color"] not in ("red", "green", "blue") or count not in (1, 2, 3) or isinstance(count, bool):
        return "values that the schema has not"
    return "" if isinstance(value["sure"], bool) else "values that the schema has not"


def check_tool_call(server: Asker) -> Outcome:
    """A tool is really called, by its name, with arguments that parse."""
    facts = server.facts
    if facts.make == SGLANG and facts.tool_parser == "":
        return skipped("the server has no tool_call_parser", 'set tool_call_parser, for GLM-4.7 "glm47"')
    if facts.template_has_tools is False:
        return skipped("the model's chat template has no tools")
    # Whoever must call a tool is held to it by the grammar.
    for choice in ("auto", "required"):
        try:
            answer = server.chat(_WEATHER, max_tokens=256, tools=[TOOL], tool_choice=choice, **server.unthinking)
        except server.refused:
            if facts.grammar_backend != "none":
                raise
            return failed(
                f"tool_call_parser is {facts.tool_parser}, and tools are refused: grammar_backend is none",
                'remove grammar_backend = "none" (the default is xgrammar)',
            )
        message = answer.choices[0].message
        if message.tool_calls:
            note = "" if choice == "auto" else ", but only with tool_choice required"
            return judge_call(message.tool_calls[0].function, note)
    seen = f"no tool was called; the model said {shown(message.content or '')}"
    if facts.is_dummy:
        return skipped("no tool was called: the weights are random (load_format dummy)")
    if facts.tool_parser:
        return failed(
            f"tool_call_parser is {facts.tool_parser}, and {seen}", "see whether the parser is the model's own"
        )
    if facts.make == LLAMA_CPP and facts.template_has_tools:
        return failed(seen, "see the model's chat template")
    return skipped(f"{seen}; whether a tool parser is set is not known")


def judge_call(function: Any, note: str) -> Outcome:
    """Judge a call of `TOOL`."""
    call = f"{function.name}({function.arguments})"
    if function.name != TOOL["function"]["name"]:
        return failed(
            f"a tool that there is not was called: {shown(call)}", "see whether the parser is the model's own"
        )
    try:
        arguments = json.loads(function.arguments)
    except (ValueError, RecursionError, TypeError):
        return failed(f"the arguments are no JSON: {shown(call)}", "see whether the parser is the model's own")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("city"), str):
        return failed(f"the arguments have no city: {shown(call)}", "the server does not hold calls to their schema")
    return passed(f"{shown(call)}{note}")


def check_reasoning(server: Asker) -> Outcome:
    """The model's thoughts are in reasoning_content, and not in the answer."""
    facts = server.facts
    if facts.make == SGLANG and facts.reasoning_parser == "":
        return skipped("the server has no reasoning_parser", 'for a model that thinks: for GLM-4.7 "glm45"')
    answer = server.chat("What is 17 + 25? Think first.", max_tokens=128, **server.free)
    message = answer.choices[0].message
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    content = message.content or ""
    if any(mark in content for mark in _THINK_MARKS):
        return failed(
            f"the thoughts are in the answer: {shown(content)}", "set the model's reasoning_parser, for GLM-4.7 glm45"
        )
    if thoughts:
        return passed(f"{len(thoughts)} characters of thoughts apart, {len(content)} of answer")
    if facts.is_dummy:
        return skipped("no thoughts came: the weights are random (load_format dummy)")
    if facts.reasoning_parser:
        return failed(
            f"reasoning_parser is {facts.reasoning_parser}, and no thoughts came: {shown(content)}",
            "see whether the parser is the model's own, and whether its template has thinking on",
        )
    return skipped("no thoughts came; the model does not think, or the server does not tell")
