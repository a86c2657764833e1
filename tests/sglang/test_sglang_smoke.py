"""`infer-dev smoke` and the Runtime against the real SGLang on CPU, with GLM's parsers and random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fleet import free_port
from real_sglang import READY_TIMEOUT_S, SglangFleet, copy_model, make_fleet

pytest.importorskip("openai", reason="the client extra is not installed")
pytest.importorskip("numpy", reason="the policy extra is not installed")

from infer_dev_entry.client import BadRequestError, Runtime
from infer_dev_entry.errors import PolicyAnswerError
from infer_dev_entry.policy import PolicyGenerator, calculate_expected_free_energy
from infer_dev_entry.smoke.structured import SCHEMA, find_problem

PARSERS = {"tool_call_parser": "glm47", "reasoning_parser": "glm45"}
KEY = "sk-key-of-sglang"
CONTEXT_TOKENS = 16384
UNTHINKING = {"enable_thinking": False}


def smoke(fleet: SglangFleet, *words: str) -> dict[str, dict[str, Any]]:
    """Return the rows of one server by check; the key is in none of what was printed."""
    done = fleet.cli("smoke", *words, "--json", timeout_s=400)
    assert KEY not in done.stdout + done.stderr
    assert done.stdout, done.stderr
    return {row["check"]: row for row in json.loads(done.stdout)["rows"]}


@pytest.mark.timeout(1500)
def test_smoke_tells_what_sglang_can_by_its_configuration(home: Path) -> None:
    with make_fleet(home) as fleet:
        port = free_port()
        # Random weights take their time to end a policy, and a repair repeats what they wrote.
        model = copy_model(home, fleet.base / "model", max_position_embeddings=CONTEXT_TOKENS)
        flags = {**PARSERS, "model_path": str(model), "max_total_tokens": CONTEXT_TOKENS}
        fleet.write_sglang(fleet.sglang("glm", port, flags={**flags, "grammar_backend": "none", "api_key": KEY}))
        fleet.start()
        fleet.wait_loaded("glm")
        check_without_grammar(fleet, smoke(fleet))
        # The same by URL, where the parsers are only known from /server_info.
        path = fleet.base / "key"
        path.write_text(KEY)
        by_url = smoke(
            fleet, f"http://127.0.0.1:{port}", "--api-key-file", str(path), "--only", "json-schema,tool-call"
        )
        assert (by_url["json-schema"]["verdict"], by_url["tool-call"]["verdict"]) == ("skip", "fail")
        with Runtime.attach("glm", environ=fleet.environ) as runtime:
            for ask in (runtime.generate, runtime.stream):
                with pytest.raises(BadRequestError, match="grammar-backend none"):
                    list(ask("x", json_schema=SCHEMA, max_new_tokens=8))

        changed = fleet.write_sglang(fleet.sglang("glm", port, flags={**flags, "grammar_backend": "xgrammar"}))
        done = fleet.cli("serve", str(changed), "--wait", str(READY_TIMEOUT_S), timeout_s=READY_TIMEOUT_S + 60)
        assert done.returncode == 0, done.stdout + done.stderr
        check_with_grammar(smoke(fleet))
        with Runtime.attach(environ=fleet.environ) as runtime:
            answer = runtime.generate("x", json_schema=SCHEMA, max_new_tokens=512)
            assert find_problem(answer.text) == "" or answer.finish_reason == "length", answer
            messages = [{"role": "user", "content": "x"}]
            thought = runtime.chat(messages, max_new_tokens=16, temperature=1, ignore_eos=True)
            assert (bool(thought.reasoning), thought.text) == (True, ""), thought
            spoken = runtime.chat(
                messages, max_new_tokens=16, temperature=1, ignore_eos=True, chat_template_kwargs=UNTHINKING
            )
            assert (spoken.reasoning, bool(spoken.text)) == ("", True), spoken
            check_policies(runtime)


def check_policies(runtime: Runtime) -> None:
    """Whatever the random weights write, the grammar makes it a policy, where they come to an end by chance."""
    levels = {"dopamine": 0.3, "serotonin": 0.5, "cortisol": 0.7}
    reasons = []
    with pytest.raises(PolicyAnswerError) as caught:  # greedy ones write blanks for ever
        PolicyGenerator(runtime, max_new_tokens=500, timeout_s=200).generate_policy("steps", [], levels)
    assert caught.value.first_raw_text.startswith("{")
    for seed in range(40):  # most write texts that are too long
        generator = PolicyGenerator(
            runtime, candidates=1, temperature=0.9, seed=seed, max_new_tokens=4000, timeout_s=200
        )
        try:
            selection = generator.generate_policy({"sound": "steps"}, ["the door is closed"], levels)
        except PolicyAnswerError as error:
            reasons.append(str(error))
            continue
        (candidate,) = selection.candidates
        assert math.fsum(candidate.policy["action_probabilities"].values()) == pytest.approx(1)  # type: ignore[attr-defined]
        energy = calculate_expected_free_energy(None, candidate.policy, levels)
        assert candidate.score.expected_free_energy == energy
        return
    raise AssertionError([reason[:300] for reason in reasons])


def check_without_grammar(fleet: SglangFleet, rows: dict[str, dict[str, Any]]) -> None:
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    passes = ("models", "chat", "completion", "streaming", "reasoning", "long-prompt", "concurrency", "speed")
    failed = [(name, rows[name]["verdict"], rows[name]["seen"]) for name in passes if verdicts[name] != "pass"]
    # Random weights end their answer by chance.
    short = [row for row in failed if row[0] == "streaming" and "is too short to tell" in row[2]]
    assert failed == short
    assert (verdicts["json-schema"], verdicts["tool-call"], verdicts["unknown-model"]) == ("skip", "fail", "skip")
    assert "grammar_backend none" in rows["json-schema"]["seen"]
    assert "grammar_backend" in rows["tool-call"]["mend"]


def check_with_grammar(rows: dict[str, dict[str, Any]]) -> None:
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    seen = rows["json-schema"]["seen"]
    assert verdicts["json-schema"] == "pass", seen
    # glm47 is no grammar: random weights call a tool by chance alone.
    assert verdicts["tool-call"] == "skip", rows["tool-call"]["seen"]
    assert "random" in rows["tool-call"]["seen"]
    assert verdicts["reasoning"] == "pass", rows["reasoning"]["seen"]
