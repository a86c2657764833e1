"""What smoke knows of servers, and how it judges and shows what they answer."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from infer_dev_entry.client.model import ServedModel
from infer_dev_entry.errors import ClientError
from infer_dev_entry.smoke.asker import Piece, Streamed
from infer_dev_entry.smoke.basics import check_streaming, count_apart
from infer_dev_entry.smoke.facts import ServerFacts, in_common, with_launch, with_models, with_props, with_server_info
from infer_dev_entry.smoke.rows import Row, Verdict, is_good, render_counts, render_json, render_row
from infer_dev_entry.smoke.servers import read_key_file
from infer_dev_entry.smoke.structured import find_problem, judge_call

FACTS = ServerFacts(label="a", url="http://x", api_key="secret123")


@pytest.mark.parametrize("text", ["sk-1\n", "# mine\n\n  sk-1\r\n# old\nsk-0\n"])
def test_key_is_the_first_line_of_a_file_or_a_pipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    assert read_key_file(str(tmp_path / "key")) == "sk-1"
    reader, writer = os.pipe()  # what `<(pass show key)` gives
    try:
        late = threading.Timer(0.2, lambda: (os.write(writer, text.encode()), os.close(writer)))
        late.start()
        assert read_key_file(f"/dev/fd/{reader}") == "sk-1"
        late.join()
    finally:
        os.close(reader)


@pytest.mark.parametrize(("text", "problem"), [("# nothing\n", "it has no key"), (None, "Is a directory")])
def test_key_file_without_a_key_is_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "key").write_text(text)
    with pytest.raises(ClientError, match=problem):
        read_key_file(str(tmp_path / "key" if text is not None else tmp_path))


def parsers(facts: ServerFacts) -> tuple[str | None, ...]:
    return facts.tool_parser, facts.reasoning_parser, facts.grammar_backend


def test_key_is_not_shown() -> None:
    assert "secret123" not in repr(FACTS)


def test_parsers_are_not_known_at_first_and_not_set_when_the_launch_has_none() -> None:
    assert parsers(FACTS) == (None, None, None)
    assert parsers(with_launch(FACTS, ["python", "--port", "1"], [])) == ("", "", "")


def test_parsers_are_read_from_the_command_line_and_from_the_yaml() -> None:
    argv = ["python", "--tool-call-parser", "glm47", "--reasoning-parser=glm45", "--load-format", "dummy"]
    found = with_launch(FACTS, argv, ['{"grammar-backend": "none", "tool-call-parser": "other", "api-key": "x"}', "{"])
    assert parsers(found) == ("glm47", "glm45", "none")
    assert found.is_dummy


def test_gateway_is_known_by_what_its_servers_have_in_common() -> None:
    words = ["--load-format", "dummy", "--reasoning-parser", "glm45", "--tool-call-parser"]
    glm, qwen = (with_launch(FACTS, [*words, parser], []) for parser in ("glm47", "qwen"))
    assert parsers(in_common(FACTS, [glm, glm])) == ("glm47", "glm45", "")
    assert parsers(in_common(FACTS, [glm, qwen])) == (None, "glm45", "")
    assert in_common(FACTS, [glm, qwen]).is_dummy
    assert not in_common(FACTS, [glm, with_launch(FACTS, ["python"], [])]).is_dummy


def test_parsers_are_read_from_server_info() -> None:
    info = {
        "tool_call_parser": "glm47",
        "reasoning_parser": None,
        "grammar_backend": "xgrammar",
        "api_key": "secret456",
    }
    found = with_server_info(FACTS, json.dumps(info))
    assert parsers(found) == ("glm47", "", "xgrammar")
    assert "secret456" not in repr(found)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"x": 1}', "[" * 100_000])
def test_server_info_that_is_none_leaves_the_parsers_unknown(text: str) -> None:
    assert with_server_info(FACTS, text) == FACTS
    assert with_props(FACTS, text) == FACTS


def test_props_tell_whether_the_template_has_tools() -> None:
    assert with_props(FACTS, '{"chat_template_caps": {"supports_tools": false}}').template_has_tools is False
    assert with_props(FACTS, '{"chat_template_caps": {"supports_tools": true}}').template_has_tools is True


def test_first_model_is_asked() -> None:
    found = with_models(FACTS, [ServedModel(id="m", owned_by="sglang", context_tokens=9)])
    assert (found.model, found.make, found.context_tokens) == ("m", "sglang", 9)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"color": "red", "count": 2, "sure": true}', ""),
        (' {\n"sure":false,"count":3,"color":"blue"}', ""),
        ("Once upon a time", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not the object of the schema"),
        ('{"color": "red", "count": 2}', "not the object of the schema"),
        ('{"color": "red", "count": 2, "sure": true, "more": 1}', "not the object of the schema"),
        ('{"color": "pink", "count": 2, "sure": true}', "values that the schema has not"),
        ('{"color": ["red"], "count": 2, "sure": true}', "values that the schema has not"),
        ('{"color": "red", "count": true, "sure": true}', "values that the schema has not"),
        ('{"color": "red", "count": 2, "sure": 1}', "values that the schema has not"),
    ],
)
def test_json_is_held_to_the_schema(text: str, problem: str) -> None:
    assert find_problem(text) == problem


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("get_weather", '{"city": "Paris"}', Verdict.PASS),
        ("get_whether", '{"city": "Paris"}', Verdict.FAIL),
        ("get_weather", "{city: Paris}", Verdict.FAIL),
        ("get_weather", None, Verdict.FAIL),
        ("get_weather", '{"town": "Paris"}', Verdict.FAIL),
        ("get_weather", '["Paris"]', Verdict.FAIL),
    ],
)
def test_tool_call_is_judged_by_name_and_arguments(name: str, arguments: str | None, verdict: Verdict) -> None:
    assert judge_call(SimpleNamespace(name=name, arguments=arguments), "").verdict is verdict


def stream(*times: float, finish_reason: str = "stop") -> Streamed:
    pieces = tuple(Piece(at=at, text="x") for at in times)
    return Streamed(began=0.0, pieces=pieces, finish_reason=finish_reason, completion_tokens=0)


AT_ONCE, APART = stream(*[1.0] * 32), stream(*(1 + 0.01 * number for number in range(32)))
# nginx with its default buffers of 4 KiB: 14 pieces of 290 bytes each time.
IN_THREE = stream(*[1.0] * 14, *[1.2] * 14, *[1.3] * 4)


@pytest.mark.parametrize(
    ("streams", "verdict", "seen"),
    [
        ([APART], Verdict.PASS, "32 pieces in 32 arrivals"),
        ([AT_ONCE, APART], Verdict.PASS, "32 pieces in 32 arrivals"),  # the client had to wait for its processor
        ([AT_ONCE, AT_ONCE, AT_ONCE], Verdict.FAIL, "came all at once, the first after 1.00 s of 1.00 s"),
        ([IN_THREE, IN_THREE, IN_THREE], Verdict.FAIL, "came in 3 arrivals, the first after 1.00 s of 1.30 s"),
        ([AT_ONCE, AT_ONCE, stream()], Verdict.FAIL, "no text"),
        ([stream()], Verdict.FAIL, "no text"),
        ([stream(*[1.0] * 7)], Verdict.SKIP, "7 pieces is too short"),
        ([stream(*[0.09] * 32)] * 3, Verdict.SKIP, "too quickly to tell"),
        ([stream(*[1.0] * 32, finish_reason="")], Verdict.FAIL, "without a finish_reason"),
        ([AT_ONCE, stream(*[1.0] * 32, finish_reason="")], Verdict.FAIL, "without a finish_reason"),
    ],
)
def test_stream_that_looks_buffered_is_asked_for_anew(streams: list[Streamed], verdict: Verdict, seen: str) -> None:
    told = iter(streams)
    server = SimpleNamespace(stream_chat=lambda _question, *, max_tokens: next(told))
    outcome = check_streaming(server)  # type: ignore[arg-type]
    assert (outcome.verdict, list(told)) == (verdict, [])
    assert seen in outcome.seen


def test_pieces_of_one_read_are_not_apart() -> None:
    assert count_apart(stream(1.0, 1.0001, 1.0002)) == 0
    assert count_apart(stream(1.0, 1.01, 1.02)) == 2


def make_row(verdict: Verdict, seen: str = "x", mend: str = "") -> Row:
    return Row(server="a", check="chat", verdict=verdict, seconds=1.23456, seen=seen, mend=mend, measures=(("s", 1.5),))


def test_rows_are_good_while_none_failed() -> None:
    assert is_good([make_row(Verdict.PASS), make_row(Verdict.SKIP)])
    assert not is_good([make_row(Verdict.PASS), make_row(Verdict.FAIL)])


def test_rows_show_words_of_a_model_without_what_moves_a_cursor() -> None:
    shown = render_row(make_row(Verdict.FAIL, "\x1b[2J\nboo", "mend it"), 8)
    assert shown.splitlines() == ["chat      fail        1.23  \\x1b[2J\\nboo", "                            → mend it"]
    assert render_counts([make_row(Verdict.PASS), make_row(Verdict.SKIP)]) == "1 pass, 0 fail, 1 skip"


def test_rows_for_scripts_have_their_measures() -> None:
    data = json.loads(render_json([make_row(Verdict.PASS)]))
    assert data["ok"] is True
    assert data["rows"][0]["measures"] == {"s": 1.5}
    assert data["rows"][0]["seconds"] == 1.235
