"""The docs say what the code does."""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

from infer_dev_entry.cli import COMMANDS
from infer_dev_entry.config import NoHost, ResolveOptions, resolve
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


def test_page_of_two_machines_is_true_for_both() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (override,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert set(re.findall(r"infer-dev ([a-z]+)\b", re.sub("exec infer-dev", "", page))) >= {"serve", "health", "status"}
    named = set(re.findall(r"\$\{(\w+)[}:]", config))
    assert named == set(re.findall(r"^      (\w+): \$\{\1:\?", override, flags=re.MULTILINE))
    environ = {"NODE_RANK": "0", "NODE_0_ADDR": "10.0.0.1", "NODE_IFNAME": "eth0"}
    assert named == set(environ)
    for rank in ("0", "1"):
        host = NoHost(8, environ=environ | {"NODE_RANK": rank})
        options = ResolveOptions(project_dir="/p", engine_python="/py", run_dir="/run/x", tmp_dir="/tmp/x")
        (server,) = resolve(config, source="f", options=options, host=host).servers
        assert server.serves == (rank == "0")
        assert not server.note or server.note in page
