"""The grammar that SGLang makes of the policies' schema takes a good answer, and none that the schema refuses.

The CPU's SGLang has a model of random weights, which would answer in noise; its grammar library is the real one.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.config.faults import Faults
from infer_dev_entry.policy.answer import parse_answer, render_schema

POLICY: dict[str, Any] = {
    "action": "wait",
    "percent": 30,
    "rationale": "it may pass – 待って",  # in texts of bounded length xgrammar 0.2.1 has no escapes, so no quotes
    "alternatives": [{"action": "go", "percent": 0}],
    "predicted_effects": {"dopamine_percent": None},
    "expected_free_energy_hundredths": 0,
}
FULL = POLICY | {
    "alternatives": [{"action": "x" * 60, "percent": 100}] * 3,
    "predicted_effects": {"dopamine_percent": 100},
    "expected_free_energy_hundredths": 300,
}
BAD = (
    {"percent": 0},
    {"percent": 101},
    {"percent": 1.5},
    {"action": ""},
    {"action": "x" * 61},
    {"alternatives": []},
    {"alternatives": POLICY["alternatives"] * 4},
    {"predicted_effects": {"dopamine_percent": 101}},
    {"predicted_effects": {}},
    {"expected_free_energy_hundredths": 301},
    {"other": 1},
)
# In SGLang's own interpreter: which of the texts on stdin the grammar takes.
JUDGE = """
import json, sys, xgrammar
from xgrammar.testing import _is_grammar_accept_string as accepts
asked = json.load(sys.stdin)
grammar = xgrammar.Grammar.from_json_schema(json.dumps(asked["schema"]))
print(json.dumps([accepts(grammar, text) for text in asked["texts"]]))
"""


@pytest.mark.timeout(200)
def test_grammar_of_the_schema_takes_what_we_take(home: Path) -> None:
    documents = [[POLICY, FULL], [POLICY], *([POLICY, POLICY | change] for change in BAD)]
    texts = [json.dumps({"policies": policies}, ensure_ascii=False) for policies in documents]
    run = subprocess.run(
        [str(home / "venv" / "bin" / "python"), "-c", JUDGE],
        input=json.dumps({"schema": render_schema(2), "texts": texts}),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [True, *[False] * (len(texts) - 1)]
    for index, text in enumerate(texts):
        faults = Faults("answer")
        parse_answer(text, 2, faults)
        assert bool(faults.faults) == bool(index)
