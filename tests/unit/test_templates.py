"""What lies under docker/: the template and the locks agree, hold no host names, and the script is a thin wrapper."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from infer_dev_entry.bundle.build_lock import is_lock, parse_pins
from infer_dev_entry.bundle.build_manifest import parse_manifest
from infer_dev_entry.bundle.metadata import parse_requirements

DOCKER = Path(__file__).parents[2] / "docker"
TEMPLATE = DOCKER / "sglang-pixi-template" / "pixi.toml"
LOCKS = DOCKER / "sglang-wheel-locks"
SCRIPT = DOCKER / "host-scripts" / "build-sglang-bundle.sh"
STACKS = ("cuda12", "cuda13")


def versions(stack: str) -> dict[str, str]:
    return {pin.name: pin.version for pin in parse_pins((LOCKS / f"{stack}.txt").read_text())}


@pytest.mark.parametrize("stack", STACKS)
def test_lock_is_pinned_with_one_hash_each(stack: str) -> None:
    text = (LOCKS / f"{stack}.txt").read_text()
    assert is_lock(text)
    lines = parse_requirements(text.encode())
    assert len(lines) > 150
    assert all(len(line.hashes) == 1 and not line.is_conditional for line in lines)


@pytest.mark.parametrize("stack", STACKS)
def test_template_pins_what_the_lock_has(stack: str) -> None:
    wanted = tomllib.loads(TEMPLATE.read_text())["feature"][stack]["pypi-dependencies"]
    assert {"sglang", "torch", "flashinfer-python"} <= wanted.keys()
    assert {name: f"=={versions(stack)[name]}" for name in wanted} == wanted


@pytest.mark.parametrize("stack", STACKS)
def test_lock_input_pins_what_the_lock_has(stack: str) -> None:
    lines = [line for line in (LOCKS / f"{stack}.in").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(versions(stack)[name] == version for name, version in (line.split("==") for line in lines))


def test_cuda12_lock_has_a_cudnn_that_sglang_starts_with_and_no_cuda_13() -> None:
    found = versions("cuda12")
    assert tuple(int(part) for part in found["nvidia-cudnn-cu12"].split(".")[:2]) >= (9, 15)
    assert not [name for name in found if name.endswith("cu13")]


@pytest.mark.parametrize("environment", ["default", *STACKS])
def test_template_environment_carries_verify_and_activation(environment: str) -> None:
    manifest = parse_manifest(TEMPLATE.read_text(), environment, "linux-64")
    assert manifest.verify[:2] == ("python", "-c")
    compile(manifest.verify[2], "verify", "exec")
    assert manifest.warnings == ()


def test_template_says_what_to_do_without_flashinfer() -> None:
    text = TEMPLATE.read_text()
    assert 'attention_backend = "triton"' in text
    assert 'sampling_backend = "pytorch"' in text
    assert "extra-index-urls" in text
    assert "find-links" in text


@pytest.mark.parametrize(
    "path", sorted(path for path in DOCKER.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_shipped_file_names_no_registry_host(path: Path) -> None:
    # What builds leave there is not shipped; pixi's own release page is no registry, nor is an upstream of nginx.
    left_by_builds = {".container", "wheels", "bin"} & set(path.relative_to(DOCKER).parts)
    if not left_by_builds and path.name != "fetch_pixi.py":
        hosts = r"pypi\.org|pythonhosted|anaconda\.(org|com)|prefix\.dev|://(?!<|inference;)"
        assert not re.search(hosts, path.read_text())


def test_script_is_executable_and_thin() -> None:
    assert SCRIPT.stat().st_mode & 0o111
    assert len(SCRIPT.read_text().splitlines()) < 40
