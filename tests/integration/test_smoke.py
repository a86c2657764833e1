"""`infer-dev smoke` against fleets and servers that do not what they should: a verdict each, in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from faulty_server import FaultyServer
from fleet import Fleet, free_ports, server

pytest.importorskip("openai", reason="the client extra is not installed")

from infer_dev_entry.smoke.facts import ServerFacts
from infer_dev_entry.smoke.rows import Row, Verdict, render_json
from infer_dev_entry.smoke.run import run_checks

pytest_plugins = ("fleet_fixtures",)

KEY = "sk-very-secret-key"


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


def check(faulty: FaultyServer, fault: str, *names: str, timeout_s: float = 15.0, **known: object) -> list[Row]:
    facts = ServerFacts(label="x", url=faulty.url(fault), api_key=KEY, model="m", **known)  # type: ignore[arg-type]
    return list(run_checks(facts, names, timeout_s))


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("400", "chat", "it answers 400: no, because of"),
        ("401", "models", "refuses the API key"),
        ("404", "completion", "see models()"),
        ("429", "concurrency", "it takes no more now"),
        ("503", "speed", "it takes no more now"),
        ("hang", "chat", "in 0.5 s"),
        ("drip-body", "long-prompt", "in 0.5 s"),
        ("sse-silent", "streaming", "in 0.5 s"),
        ("sse-endless", "speed", "in 0.5 s"),
        ("sse-cut", "streaming", "without a finish_reason"),
        ("sse-at-once", "streaming", "200 pieces came "),  # at once, or in a few arrivals on a busy machine
        ("sse-by-size", "streaming", "320 pieces came in "),  # 3, or more on a busy machine
        ("sse-garbage", "streaming", "cannot be used"),
        ("cut", "chat", "or it broke"),
        ("garbage", "models", "or it broke"),
        ("html", "completion", "cannot be used"),
        ("good", "models", "cannot be used"),
        ("endless", "chat", "more than 16 MiB"),
        ("endless-error", "chat", "more than 16 MiB"),
        ("sse-no-lines", "streaming", "more than 16 MiB"),
        ("packed", "chat", "packed as 'gzip'"),
        ("good", "json-schema", "not JSON: 'ok'"),
        ("good", "unknown-model", "was answered for"),
    ],
)
def test_fault_fails_its_check_with_a_reason_in_time(faulty: FaultyServer, fault: str, name: str, words: str) -> None:
    began = time.monotonic()
    bound_s = 0.5 if fault in ("hang", "drip-body", "sse-silent", "sse-endless") else 15.0
    (row,) = check(faulty, fault, name, timeout_s=bound_s)
    assert time.monotonic() - began < bound_s + 10
    assert row.verdict is Verdict.FAIL, row
    assert words in row.seen
    assert KEY not in row.seen + row.mend


@pytest.mark.parametrize(
    ("known", "verdict", "words"),
    [
        ({"make": "sglang", "tool_parser": ""}, Verdict.SKIP, "no tool_call_parser"),
        ({"make": "llamacpp", "template_has_tools": False}, Verdict.SKIP, "template has no tools"),
        ({"make": "sglang", "tool_parser": "glm47"}, Verdict.FAIL, "tool_call_parser is glm47, and no tool was called"),
        ({"make": "sglang", "tool_parser": "glm47", "is_dummy": True}, Verdict.SKIP, "random"),
        ({}, Verdict.SKIP, "not known"),
    ],
)
def test_tool_that_is_not_called_is_judged_by_what_is_known(
    faulty: FaultyServer, known: dict[str, object], verdict: Verdict, words: str
) -> None:
    (row,) = check(faulty, "good", "tool-call", **known)
    assert (row.verdict, words in row.seen) == (verdict, True), row


@pytest.mark.parametrize(
    ("known", "verdict", "words"),
    [
        ({"make": "sglang", "reasoning_parser": ""}, Verdict.SKIP, "no reasoning_parser"),
        ({"make": "sglang", "reasoning_parser": "glm45"}, Verdict.FAIL, "no thoughts came"),
        ({"make": "sglang", "reasoning_parser": "glm45", "is_dummy": True}, Verdict.SKIP, "random"),
        ({}, Verdict.SKIP, "no thoughts came"),
    ],
)
def test_thoughts_that_do_not_come_are_judged_by_what_is_known(
    faulty: FaultyServer, known: dict[str, object], verdict: Verdict, words: str
) -> None:
    (row,) = check(faulty, "good", "reasoning", **known)
    assert (row.verdict, words in row.seen) == (verdict, True), row


def test_tools_thoughts_and_json_that_are_right_pass(faulty: FaultyServer) -> None:
    rows = check(faulty, "perfect", "tool-call", "reasoning", "json-schema", make="sglang", tool_parser="glm47")
    assert [row.verdict for row in rows] == [Verdict.PASS] * 3, rows
    (row,) = check(faulty, "thinks-aloud", "reasoning")
    assert (row.verdict, "in the answer" in row.seen) == (Verdict.FAIL, True), row


def test_grammar_that_is_off_is_said_without_asking(faulty: FaultyServer) -> None:
    (row,) = check(faulty, "hang", "json-schema", make="sglang", grammar_backend="none")
    assert (row.verdict, "grammar_backend none" in row.seen) == (Verdict.SKIP, True)
    (row,) = check(faulty, "400", "tool-call", make="sglang", tool_parser="glm47", grammar_backend="none")
    assert (row.verdict, row.mend) == (Verdict.FAIL, 'remove grammar_backend = "none" (the default is xgrammar)')


def test_fleet_is_checked_server_by_server_and_the_rest_is_named(fleet: Fleet) -> None:
    a, b, c = free_ports(3)
    fleet.write(server("a", a), server("b", b), server("c", c, "--load-s", "300"))
    fleet.start()
    fleet.wait_ready("a", "b")
    done = fleet.cli("smoke", "--only", "models,chat,completion", "--json")
    rows = json.loads(done.stdout)["rows"]
    # The fake server chats, and has no /v1/completions.
    assert done.returncode == 1
    assert [(row["server"], row["check"], row["verdict"]) for row in rows] == [
        (name, kind, verdict)
        for name in "ab"
        for kind, verdict in (("models", "pass"), ("chat", "pass"), ("completion", "fail"))
    ]
    assert "not checked: c is " in done.stderr
    one = fleet.cli("smoke", "a", "--only", "chat")
    assert (one.returncode, one.stdout.splitlines()[-1]) == (0, "1 pass, 0 fail, 0 skip")
    assert fleet.cli("smoke", "c").returncode == 41
    assert fleet.cli("smoke", "d").returncode == 15
    nobody = fleet.cli("smoke", "http://127.0.0.1:1")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (41, 1)
    wrong = fleet.cli("smoke", "--only", "chats")
    assert wrong.returncode == 2
    assert "there are: environment, models" in wrong.stderr


def test_counts_that_a_server_made_up_stay_json_and_its_words_a_line(faulty: FaultyServer) -> None:
    rows = check(faulty, "made-up", "speed", "streaming")
    assert [row.verdict for row in rows] == [Verdict.PASS] * 2, rows

    def refuse(word: str) -> object:
        raise AssertionError(f"{word} is not JSON")

    shown = json.loads(render_json(rows), parse_constant=refuse)["rows"]
    assert "tokens_per_s" not in shown[0]["measures"]
    assert all(len(row.seen) < 600 for row in rows)


def test_key_in_an_answer_is_not_shown(faulty: FaultyServer) -> None:
    (row,) = check(faulty, "tells-the-key", "chat")
    assert (row.verdict, "Bearer" in row.seen, KEY in row.seen) == (Verdict.PASS, True, False), row


def smoke(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it has to end by itself."""
    command = [sys.executable, "-m", "infer_dev_entry", "smoke", url, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_names_of_a_server_write_nothing_to_a_terminal(faulty: FaultyServer) -> None:
    for words in ((), ("--json",)):
        done = smoke(faulty.url("escapes"), "--only", "models", *words)
        assert done.returncode == 0, done.stderr
        assert not any(mark in done.stdout + done.stderr for mark in "\x1b\x07")


def test_command_ends_though_a_server_does_not(faulty: FaultyServer) -> None:
    done = smoke(faulty.url("drip-chat"), "--only", "concurrency", "--timeout", "1")
    assert done.returncode == 1, done.stderr
    assert "not done in 1 s" in done.stdout
