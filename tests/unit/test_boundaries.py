"""Pure modules import no effects, and the light path imports the standard library alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import infer_dev_entry

PACKAGE = Path(infer_dev_entry.__file__).parent
EFFECTS = {"os", "time", "signal", "subprocess", "socket", "http", "urllib", "xmlrpc", "psutil", "structlog"}
DOCTOR = (
    *("rows", "wishes", "safetensors", "gguf", "found_model", "vram", "gpu_checks", "vram_checks", "model_checks"),
    *("environment_checks", "machine_checks", "fleet_checks"),
)
POLICY = ("model", "energy", "checked", "forms", "score", "strict_json", "answer", "prompt", "generate")
PURE = (
    *("errors.py", "variables.py", "settings.py", "spec.py", "render.py", "status.py"),
    *("phases.py", "foreign_text.py", "counters.py", "startup.py", "gpu_wait.py", "redact.py"),
    *(f"doctor/{name}.py" for name in DOCTOR),
    *(f"client/{name}.py" for name in ("model", "options", "answers", "failures", "sse", "toml")),
    *("smoke/rows.py", "smoke/facts.py"),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "fleet").glob("*.py")),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "decide").glob("*.py")),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "diagnosis").glob("*.py")),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "gateway").glob("*.py")),
    *(
        f"bundle/{name}.py"
        for name in (
            "model",
            "contents",
            "tar",
            "decode",
            "metadata",
            "layout",
            "sidecar",
            "build_lock",
            "build_manifest",
        )
    ),
    "install/model.py",
    *(f"models/{name}.py" for name in ("wish", "listing", "record", "hub", "retry")),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "config").rglob("*.py")),
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "engines").glob("*.py")),
    *(f"policy/{name}.py" for name in POLICY),
)


def imported_modules(path: Path) -> set[str]:
    """Return the top-level names of everything that the module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_no_effects(name: str) -> None:
    assert not imported_modules(PACKAGE / name) & EFFECTS


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_no_effect_module_of_ours(name: str) -> None:
    pure = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in PURE}
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("infer_dev_entry."):
            assert node.module.removeprefix("infer_dev_entry.") in pure


def test_light_path_imports_standard_library_alone() -> None:
    code = (
        "import sys; import infer_dev_entry.init.entry; "
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'infer_dev_entry'})"
    )
    # -S leaves out site's own imports (editable installs hook in there), which are not ours to judge.
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert set(run.stdout.split()) <= {"__main__"}


@pytest.mark.parametrize(
    "module",
    ["argparse", "asyncio", "subprocess", "logging", "ctypes", "json", "socket", "dataclasses", "inspect", "re"],
)
def test_light_path_avoids_costly_modules(module: str) -> None:
    code = f"import sys; import infer_dev_entry.init.entry; sys.exit({module!r} in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}"],
        timeout=30,
        check=False,
    )
    assert run.returncode == 0


@pytest.mark.parametrize("module", ["infer_dev_entry.client", "infer_dev_entry.cli.smoke", "infer_dev_entry.init.boot"])
def test_openai_is_imported_only_by_who_asks_a_server(module: str) -> None:
    code = f"import sys, {module}; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
