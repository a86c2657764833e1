"""docs/policy.md is true: its commands print what it shows, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infer_dev_entry import policy
from infer_dev_entry.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The fenced blocks that begin with these words."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (text,) = blocks("json")
    (tmp_path / "policies.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (console,) = blocks("console")
    command, _, shown = console.partition("\n")
    assert main(shlex.split(command.removeprefix("$ infer-dev ")), {}) == 0
    assert capsys.readouterr().out == shown


def test_python_without_a_server_runs() -> None:
    code, served = blocks("python")  # the other one runs in tests/integration/test_policy_model.py
    assert "create_inference_runtime" in served
    exec(code, {})


def test_public_names_are_described() -> None:
    for name in policy.__all__:
        if name[0].islower():
            assert f"`{name}" in PAGE, name
