"""`infer-dev policy`: ranking without a server, its output, its faults and exit codes, and what it loads."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infer_dev_entry.cli import main
from infer_dev_entry.cli.policy import MAX_FILE_BYTES

POLICIES = [
    {"action": "wait", "rationale": "it may pass", "action_probabilities": {"wait": 0.5, "look": 0.5}},
    {
        "action": "look",
        "rationale": "to know",
        "action_probabilities": {"look": 0.9, "wait": 0.1},
        "predicted_effects": {"dopamine": 0.45},
    },
]


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    path = tmp_path / "policies.json"
    path.write_text(json.dumps(POLICIES), encoding="utf-8")
    return path


def rank(*words: str) -> int:
    return main(["policy", "rank", *words], {})


def test_rank_prints_the_chosen_policy_first(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(str(policies), "--dopamine", "0.3") == 0
    assert capsys.readouterr().out.splitlines() == [
        "        G    RISK  AMBIGUITY  ACTION",
        "1  0.3751  0.0500     0.3251  look",
        "2  0.8931  0.2000     0.6931  wait",
        "chosen: look: to know",
    ]


def test_rank_prints_json(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(str(policies), "--dopamine", "0.3", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["policy"] == POLICIES[1]
    assert [row["index"] for row in printed["candidates"]] == [1, 0]
    assert printed["candidates"][1]["risk"] == 0.2


def test_rank_takes_levels_of_the_file_and_options_over_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policies.json"
    for state in ({"dopamine": 0.5}, {"neurotransmitters": {"dopamine": 0.5}}):
        path.write_text(json.dumps({"policies": POLICIES[:1], "internal_state": state}), encoding="utf-8")
        assert rank(str(path), "--json") == 0
        assert json.loads(capsys.readouterr().out)["candidates"][0]["risk"] == 0
        assert rank(str(path), "--json", "--dopamine", "0.1") == 0
        assert json.loads(capsys.readouterr().out)["candidates"][0]["risk"] == 0.4


def test_rank_reads_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(POLICIES).encode())))
    assert main(["policy", "--json", "rank", "-", "--dopamine", "0.3"], {}) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["action"] == "look"


def test_rank_shows_infinity_as_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = [POLICIES[0] | {"predicted_outcomes": outcomes} for outcomes in ([1, 0], [0, 1])]
    path = tmp_path / "policies.json"
    path.write_text(json.dumps({"policies": policies, "internal_state": {"preferred_outcomes": [1, 0]}}))
    assert rank(str(path), "--json") == 0
    assert [row["risk"] for row in json.loads(capsys.readouterr().out)["candidates"]] == [0, None]
    path.write_text(json.dumps({"policies": policies[1:], "internal_state": {"preferred_outcomes": [1, 0]}}))
    assert rank(str(path)) == 48


def test_text_of_a_model_cannot_move_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policies.json"
    path.write_text(json.dumps([POLICIES[0] | {"action": "a\x1b[2J\nb\ud800" + "x" * 500, "rationale": "r\r\x07"}]))
    assert rank(str(path), "--dopamine", "0.3") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert max(map(len, printed.splitlines())) < 300
    assert len(printed.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one JSON document"),
        ("{", "expected one JSON document"),
        ("3", 'expected a list of policies, or an object with "policies"'),
        ('{"policies": 3}', 'expected a list of policies, or an object with "policies"'),
        ('{"policies": [], "internal_state": 3}', "internal_state: expected an object"),
        ('[{"action": "x", "action_probabilities": [NaN]}]', "NaN is no number"),
        ("\ufeff[{}]", "policies[0].action: missing"),
        ('[{"action": "x", "action_probabilities": [0.5, 0.6]}]', "expected probabilities of sum 1 (± 1e-06), got 1.1"),
    ],
)
def test_file_that_cannot_be_used_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "policies.json"
    path.write_text(text, encoding="utf-8")
    assert rank(str(path), "--dopamine", "0.3") == 46
    assert says in capsys.readouterr().err


def test_file_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(str(tmp_path / "none.json")) == 46
    assert "none.json: No such file or directory" in capsys.readouterr().err
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert rank(str(tmp_path / "bytes")) == 46
    assert rank(str(tmp_path)) == 46


def test_file_beyond_its_bound_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert rank(str(path)) == 46
    assert "has more than 16777216 bytes" in capsys.readouterr().err


def test_every_level_out_of_range_is_told(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(str(policies), "--dopamine", "nan", "--cortisol", "2") == 46
    told = capsys.readouterr().err
    assert "internal_state.dopamine: expected a number in [0, 1], got NaN" in told
    assert "internal_state.cortisol: expected a number in [0, 1], got 2.0" in told


def test_empty_list_has_no_policy_to_choose(tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    path.write_text("[]")
    assert rank(str(path), "--dopamine", "0.3") == 48


def test_neither_state_nor_rank_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy"], {}) == 2
    assert "give --state FILE" in capsys.readouterr().err


def test_state_with_keys_missing_is_told_before_a_server_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"sensory_state": 1}')
    assert main(["policy", "--state", str(path)], {}) == 46
    told = capsys.readouterr().err
    assert "workspace_contents: missing" in told
    assert "neurotransmitters: missing" in told


def test_server_that_nobody_is_passes_the_clients_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state.json"
    levels = {"dopamine": 0.3, "serotonin": 0.5, "cortisol": 0.7}
    path.write_text(json.dumps({"sensory_state": 1, "workspace_contents": 2, "neurotransmitters": levels}))
    environ = {"INFER_DEV_RUN_DIR": str(tmp_path / "run")}
    assert main(["policy", "--state", str(path), "--server", "nobody"], environ) == 14


def test_missing_extra_is_told_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("infer_dev_entry.policy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert rank(str(policies), "--dopamine", "0.3") == 49
    assert "pip install 'infer-dev-entry[policy]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import infer_dev_entry.cli.policy", ("numpy", "openai")),
        ("import infer_dev_entry.policy", ("openai", "infer_dev_entry.client", "asyncio")),
    ],
)
def test_heavy_imports_wait_for_their_use(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; sys.exit(any(name in sys.modules for name in {absent!r}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
