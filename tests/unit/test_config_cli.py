"""`infer-dev config` end to end in one process: exit codes, outputs, and that secrets are masked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infer_dev_entry.cli import main

TEXT = """
[instance.a.control]
engine = "llama_cpp"
binary = "/bin/sh"
gpu_ids = "none"
log_dir = "/tmp"
[instance.a.server]
model = "/dev/null"
port = 31999
hf_token = "plain-secret"
extra_args = ["--api-token=plain-secret", "sk-abcdefgh12345"]
[instance.a.env]
HF_TOKEN = "plain-secret"
TOKENIZERS_PARALLELISM = "false"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "f.toml"
    path.write_text(TEXT)
    return str(path)


def test_check_of_a_usable_file_says_ok(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--static", file], {}) == 0
    assert capsys.readouterr().out == "ok: 1 server\n"


def test_check_takes_the_file_and_overrides_from_the_environment(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = json.dumps({"instance": {"a": {"server": {"port": "x"}}}})
    environ = {"AUTO_INFER_SGLANG_CONFIG": file, "AUTO_INFER_SGLANG_OVERRIDES": overrides}
    assert main(["config", "check", "--static"], environ) == 10
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f'{file}: instance.a.server.port (set by AUTO_INFER_SGLANG_OVERRIDES): expected int, got "x"' in captured.err


def test_check_json_reports_faults_and_warnings(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(file).write_text(TEXT.replace("31999", "0").replace("model =", "modle ="))
    assert main(["config", "check", "--json", "--static", file], {}) == 10
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert len(report["faults"]) == 2


def test_check_pretends_gpus(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(file).write_text('[instance.a.control]\nreplicas = "per-gpu"\n[instance.a.server]\nmodel_path = "org/m"\n')
    assert main(["config", "check", "--static", file], {}) == 10
    assert main(["config", "check", "--static", "--gpus", "4", file], {}) == 0
    assert "ok: 4 servers" in capsys.readouterr().out


def test_missing_file_and_no_file_have_their_own_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "/no/such.toml"], {}) == 10
    assert "/no/such.toml: cannot read it: No such file or directory" in capsys.readouterr().err
    assert main(["config", "show", "/no/such.toml"], {}) == 10
    assert main(["config", "check"], {}) == 11
    assert "AUTO_INFER_SGLANG_CONFIG" in capsys.readouterr().err


def test_show_json_lists_the_fleet_without_secrets(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", file], {"INFER_DEV_RUN_DIR": "/run/t"}) == 0
    text = capsys.readouterr().out
    assert "plain-secret" not in text and "sk-abcdefgh" not in text
    (row,) = json.loads(text)
    assert list(row) == ["name", "engine", "argv", "environment", "gpu_ids", "port", "log_file"]
    assert (row["name"], row["engine"], row["gpu_ids"], row["port"]) == ("a", "llama_cpp", [], 31999)
    assert row["environment"]["HF_TOKEN"] == "***"
    assert row["environment"]["TOKENIZERS_PARALLELISM"] == "false"
    assert row["argv"][:3] == ["/bin/sh", "--model", "/dev/null"]
    assert row["argv"][row["argv"].index("--hf-token") + 1] == "***"
    assert row["argv"][-2:] == ["--api-token=***", "***"]


def test_show_secrets_shows_them(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "--show-secrets", file], {}) == 0
    assert capsys.readouterr().out.count("plain-secret") == 3


def test_show_prints_a_block_a_server(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", file], {}) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a\n  engine     llama_cpp\n  port       31999\n  gpus       none\n")
    assert "plain-secret" not in captured.out
    assert "warning:" in captured.err


def test_render_prints_supervisords_configuration(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "render", file], {"INFER_DEV_RUN_DIR": "/run/t"}) == 0
    out = capsys.readouterr().out
    assert "[program:a]" in out
    assert "command=/bin/sh --model /dev/null" in out
    assert "plain-secret" not in out


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"], {}) == 0
    assert json.loads(capsys.readouterr().out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_bad_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config"], {})
    assert caught.value.code == 2
