"""The script that runs on GPUs, as far as it can be tried without one; `--fake` runs it whole."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from infer_dev_entry.doctor.model_files import read_model

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "run.py"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    **{"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"num_hidden_layers": 2, "vocab_size": 512, "torch_dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def around(script: ModuleType) -> Iterator[ModuleType]:
    sys.modules["run"] = script  # it imports its neighbour by that name
    spec = importlib.util.spec_from_file_location("gpu_around", SCRIPT.with_name("around.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run"]
    sys.path.remove(str(SCRIPT.parent))


def test_help_needs_nothing_but_the_standard_library() -> None:
    for path in (SCRIPT, SCRIPT.with_name("around.py")):
        run = subprocess.run(
            [sys.executable, "-S", str(path), "--help"], capture_output=True, text=True, timeout=30, check=True
        )
        assert "--steps" in run.stdout


def test_every_step_is_explained_in_the_docs(script: ModuleType, around: ModuleType) -> None:
    rows = [line for line in (ROOT / "docs" / "gpu-runs.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    told = " ".join(line.split("|")[1] for line in rows)
    assert [name for name, _, _ in (*script.STEPS, *around.STEPS) if f"`{name}`" not in told] == []


def test_weights_that_it_makes_are_whole_to_the_doctor(script: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    made = script.make_weights(SimpleNamespace(work=tmp_path, args=argparse.Namespace(model=str(model))))
    found = read_model(str(made), limit_s=10)
    assert not found.faults
    layer = 2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    assert found.tensor_bytes == 2 * (2 * 512 * 64 + 64 + 2 * layer)
