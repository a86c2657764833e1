"""Weights from a hub at boot, as docs/models.md has it: the gate, a token as a secret, a second boot for free."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose import Project, project
from engine import LABEL, ROOT, WORKSPACE, Engine
from small_hub import SmallHub, tree_of

FILES = {"config.json": b'{"architectures": ["X"]}', "model.safetensors": bytes(range(256)) * 40000}
TOKEN = "hf_0123456789abcdef"
CONFIG = f"""
[instance.a.server]
model_path = "{WORKSPACE}/llm-models/m"

[instance.a.model]
repo_id = "org/m"
"""


@pytest.fixture
def network(engine: Engine) -> str:
    """A network of this test's own that leads to this machine and no further."""
    name = engine.name("hub")
    engine.docker("network", "create", "--internal", "--label", f"{LABEL}={engine.run_id}", name)
    return name


@pytest.fixture
def hub(engine: Engine, network: str) -> Iterator[SmallHub]:
    """A hub on this machine's address in that network, whose one model asks for a token."""
    (found,) = json.loads(engine.docker("network", "inspect", network).stdout)
    hub = SmallHub(found["IPAM"]["Config"][0]["Gateway"])
    hub.repo("org/m", FILES).token = TOKEN
    yield hub
    hub.close()


@pytest.fixture
def folder(tmp_path: Path, network: str) -> Path:
    """The reader's folder: the override file of the page as it stands, its token, a config, and the way to the hub."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (override,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "override.yml").write_text(override, encoding="utf-8")
    (tmp_path / "hub.yml").write_text(
        "services: {infer-dev: {networks: [hub], environment: {HF_ENDPOINT: $HF_ENDPOINT}}}\n"
        f"networks: {{hub: {{name: {network}, external: true}}}}\n"
    )
    token = tmp_path / "hf_token"  # Compose mounts it with its owner and mode
    token.write_text(TOKEN)
    if os.geteuid() == 0:
        token.chmod(0o600)
        os.chown(token, 1000, 1000)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "m.toml").write_text(CONFIG)
    (tmp_path / "workspace").mkdir()
    return tmp_path


def boot(made: Project, event: str) -> dict[str, object]:
    """Bring up a new container and wait for an event of its boot."""
    made.compose("up", "-d", "--no-build", "--pull", "never", "--force-recreate")
    return made.container().wait_event(event)


def test_gate_downloads_with_the_secret_and_the_next_container_asks_nobody(
    engine: Engine, hub: SmallHub, folder: Path
) -> None:
    overlays = [str(folder / f"{name}.yml") for name in ("override", "hub")]
    files = ["docker-compose.yml", "docker-compose.cpu.yml", *overlays]
    environ = {
        "AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT": "1",
        "AUTO_INFER_SGLANG_CONFIG": "/model-configs/m.toml",
        "HOST_MODEL_CONFIGS": str(folder / "configs"),
        "HF_ENDPOINT": hub.endpoint,
    }
    with project(engine, folder / "workspace", *files, folder=folder, **environ) as made:
        done = boot(made, "model.downloaded")
        first = made.container()
        assert done["size_bytes"] == sum(map(len, FILES.values()))
        target = folder / "workspace" / "llm-models" / "m"
        assert tree_of(target) == FILES
        assert target.stat().st_uid == 1000
        assert {seen.authorization for seen in hub.seen if seen.at_store} == {""}
        assert {seen.authorization for seen in hub.bodies("model.safetensors")} == {f"Bearer {TOKEN}"}
        listed = first.exec("infer-dev", "model", "list", check=True).stdout
        assert "complete" in listed and "org/m" in listed
        assert TOKEN not in first.logs() + json.dumps(first.inspect())
        asked, first_id = len(hub.seen), first.inspect()["Id"]
        boot(made, "model.unchanged")
        assert made.container().inspect()["Id"] != first_id
        assert len(hub.seen) == asked
