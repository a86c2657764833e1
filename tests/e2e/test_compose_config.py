"""What Compose itself makes of the compose files: every combination is valid, and values arrive as they were given.

`docker compose config` needs no engine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.settings import parse_settings
from infer_dev_entry.variables import VARIABLES

pytestmark = pytest.mark.docker

DOCKER = Path(__file__).parents[2] / "docker"
BASE = "docker-compose.yml"
CPU = "docker-compose.cpu.yml"
GATEWAY = "docker-compose.gateway.yml"
OFFLINE = "docker-compose.offline.yml"
COMBINATIONS = [
    *[(BASE,), (BASE, CPU), (BASE, OFFLINE), (BASE, CPU, OFFLINE)],
    *[(BASE, GATEWAY), (BASE, CPU, GATEWAY), (BASE, CPU, GATEWAY, OFFLINE)],
]
# What a person's shell could set, and these tests must not see.
FOREIGN = re.compile(
    r"AUTO_INFER_|INFER_DEV_|HOST_|COMPOSE_|BASE_IMAGE$|PIXI|ME_UID$|SHM_SIZE$|IPC_MODE$|STOP_GRACE|HEALTH_"
)

# What quoting breaks: quotes of both kinds, a backslash, $ in every form that Compose would read, #, spaces, unicode.
ODD_JSON = '{"instance": {"a": {"server": {"x": "$HOME ${A:-b} $$ # it\'s \\"ü\\" %"}}}}'


Service = dict[str, Any]
Config = Callable[..., Service]


@pytest.fixture(scope="module")
def config() -> Config:
    """The container's service as `docker compose config` prints it; any warning is an error."""
    clean = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    try:
        version = subprocess.run(
            ["docker", "compose", "version"], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        pytest.skip("docker is not installed; `make e2e` brings an engine up on Debian 12")
    if version.returncode != 0:
        pytest.skip(f"docker has no Compose: {version.stderr.strip()[-200:]}")

    def read(*files: str, environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Service:
        words = [word for name in files or (BASE,) for word in ("-f", str(DOCKER / name))]
        # Without --env-file a person's own docker/.env would be read.
        argv = ["docker", "compose", "--env-file", str(env_file or "/dev/null"), *words, "config", "--format", "json"]
        result = subprocess.run(
            argv, env=clean | dict(environ or {}), cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        (found,) = json.loads(result.stdout)["services"].items()
        assert found[0] == "infer-dev"
        return dict(found[1])

    return read


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """The container's environment; `config` doubles every $."""
    return {name: value.replace("$$", "$") for name, value in service["environment"].items()}


@pytest.mark.parametrize("files", COMBINATIONS, ids="+".join)
def test_combination_is_valid(config: Config, files: tuple[str, ...]) -> None:
    service = config(*files)
    assert set(service["environment"]) == set(VARIABLES)
    assert ("deploy" in service, "ulimits" in service) == (CPU not in files, CPU not in files)
    assert ("ports" in service, service.get("network_mode")) == ((False, "none") if OFFLINE in files else (True, None))


def test_every_compose_file_is_in_a_combination() -> None:
    assert {path.name for path in DOCKER.glob("docker-compose*.yml")} == {
        name for files in COMBINATIONS for name in files
    }


def test_nothing_set_is_the_default(config: Config) -> None:
    service = config()
    assert parse_settings(environment_of(service)) == parse_settings({})
    assert service["image"] == "infer-dev:latest"
    assert service["build"].get("args", {}) == {}
    assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file()
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "11982", 30000)


@pytest.mark.parametrize("files", COMBINATIONS, ids="+".join)
def test_example_as_it_is_changes_nothing(config: Config, files: tuple[str, ...]) -> None:
    assert config(*files, env_file=DOCKER / ".env.example") == config(*files)


def test_example_uncommented_is_valid_and_means_the_defaults(config: Config, tmp_path: Path) -> None:
    text = (DOCKER / ".env.example").read_text(encoding="utf-8")
    whole = tmp_path / "whole.env"
    whole.write_text(re.sub(r"^#(?=[A-Z][A-Z0-9_]*=)", "", text, flags=re.MULTILINE), encoding="utf-8")
    shown, default = config(env_file=whole), config()
    assert set(shown["build"].pop("args")) == {"BASE_IMAGE", "PIXI", "ME_UID"}
    default["build"].pop("args", None)
    assert parse_settings(environment_of(shown)) == parse_settings(environment_of(default))
    assert shown | {"environment": {}} == default | {"environment": {}}


def test_every_variable_of_the_shell_arrives(config: Config) -> None:
    given = {name: f"value of {name}" for name in VARIABLES}
    assert environment_of(config(environ=given)) == given


def test_json_of_the_shell_arrives_as_it_is(config: Config) -> None:
    service = config(environ={"AUTO_INFER_SGLANG_OVERRIDES": ODD_JSON})
    assert environment_of(service)["AUTO_INFER_SGLANG_OVERRIDES"] == ODD_JSON


def test_json_of_an_env_file_arrives_in_single_quotes(config: Config, tmp_path: Path) -> None:
    value = ODD_JSON.replace("it's ", "")  # single quotes cannot hold one
    (tmp_path / "x.env").write_text(f"AUTO_INFER_SGLANG_OVERRIDES='{value}'\n", encoding="utf-8")
    service = config(env_file=tmp_path / "x.env")
    assert environment_of(service)["AUTO_INFER_SGLANG_OVERRIDES"] == value


def test_places_of_the_host_are_those_given(config: Config, tmp_path: Path) -> None:
    names = {
        "HOST_WORKSPACE": "/hard/volume/workspace",
        "HOST_MODEL_CONFIGS": "/model-configs",
        "HOST_LLM_MODELS": "/llm-models",
    }
    given = {name: str(tmp_path / f"a dir: {name}") for name in names}
    service = config(environ=given | {"HOST_BIND": "0.0.0.0", "HOST_PORT_SGLANG": "1234"})
    assert {mount["target"]: mount["source"] for mount in service["volumes"]} == {
        target: given[name] for name, target in names.items()
    }
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"]) == ("0.0.0.0", "1234")


def test_gateway_overlay_adds_its_port_to_the_servers(config: Config) -> None:
    service = config(BASE, GATEWAY, environ={"HOST_PORT_GATEWAY": "1234"})
    assert [(port["host_ip"], port["published"], port["target"]) for port in service["ports"]] == [
        ("127.0.0.1", "11982", 30000),
        ("127.0.0.1", "1234", 8000),
    ]


def override_of(page: str, tmp_path: Path) -> str:
    """Write the override file that a page shows, and return its path."""
    text = (DOCKER.parent / "docs" / page).read_text(encoding="utf-8")
    (override,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "override.yml").write_text(override, encoding="utf-8")
    return str(tmp_path / "override.yml")


def test_override_of_two_machines_takes_the_hosts_network_and_gives_the_variables(
    config: Config, tmp_path: Path
) -> None:
    given = {"NODE_RANK": "1", "NODE_0_ADDR": "10.0.0.1", "NODE_IFNAME": "eth0"}
    service = config(BASE, override_of("distributed.md", tmp_path), environ=given)
    assert (service["network_mode"], service.get("ports")) == ("host", None)
    assert given.items() <= environment_of(service).items()


def test_override_for_a_token_names_a_file_and_holds_no_token(config: Config, tmp_path: Path) -> None:
    service = config(BASE, override_of("models.md", tmp_path))
    assert environment_of(service)["HF_TOKEN_PATH"] == "/run/secrets/hf_token"
    assert [secret["source"] for secret in service["secrets"]] == ["hf_token"]


def test_config_that_is_given_wins_over_that_of_the_cpu_overlay(config: Config) -> None:
    assert environment_of(config(BASE, CPU))["AUTO_INFER_SGLANG_CONFIG"] == "/model-configs/llama-cpp-cpu.toml"
    service = config(BASE, CPU, environ={"AUTO_INFER_SGLANG_CONFIG": "/model-configs/mine.toml"})
    assert environment_of(service)["AUTO_INFER_SGLANG_CONFIG"] == "/model-configs/mine.toml"


def test_base_image_that_is_given_is_the_builds(config: Config) -> None:
    service = config(environ={"BASE_IMAGE": "debian:13"})
    assert service["build"]["args"] == {"BASE_IMAGE": "debian:13"}
