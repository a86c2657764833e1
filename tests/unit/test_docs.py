"""The docs say what the code does."""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

from infer_dev_entry.cli import COMMANDS
from infer_dev_entry.settings import VARIABLES

ROOT = Path(__file__).parents[2]


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_the_generated_one() -> None:
    generated = load_tool("make_docs").render_reference()
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == generated, "run: make schema"


def test_readme_names_only_real_variables_and_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\b(?:AUTO_INFER|INFER_DEV)_[A-Z_]+\b", text)) <= set(VARIABLES)
    assert set(re.findall(r"infer-dev ([a-z]+)\b(?! GPU)", text.replace("infer-dev-entry", ""))) <= set(COMMANDS)


@pytest.mark.parametrize("page", [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), "../README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = (ROOT / "docs" / page).resolve()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_examples_and_exit_codes(name: str) -> None:
    module = import_module(COMMANDS[name][0])
    assert module.DESCRIPTION
    assert "infer-dev" in module.EXAMPLES
    assert "exit codes:" in module.EXAMPLES
