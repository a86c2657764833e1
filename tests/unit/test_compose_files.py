"""The compose files, .env.example and PeiDocker's configuration say the same as the code, without Docker."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from infer_dev_entry.config import NoHost, ResolveOptions, resolve
from infer_dev_entry.config.keys import CONTROL, GATEWAY
from infer_dev_entry.settings import parse_settings
from infer_dev_entry.variables import GATES, VARIABLES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CONFIGS = sorted((ROOT / "model-configs").glob("*.toml"))
# What the entry needs after the longest drain: to end supervisord, and a command that outlived it.
STOP_MARGIN_S = 15.0

Tree = dict[str, Any]


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's tag `!reset`, which is read as a Reset."""


class Reset(str):
    """What an overlay takes away; the text is the tag's value, which has no meaning."""


ComposeLoader.add_constructor("!reset", lambda loader, node: Reset(str(node.value)))


def load(name: str) -> Tree:
    tree = yaml.load((DOCKER / name).read_text(encoding="utf-8"), Loader=ComposeLoader)
    assert isinstance(tree, dict)
    return tree


def service(name: str = "docker-compose.yml") -> Tree:
    (found,) = load(name)["services"].items()
    assert found[0] == "infer-dev"
    return dict(found[1])


def leaves(tree: object) -> Iterator[str]:
    """Every scalar below, as text."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    else:
        yield str(tree)


REFERENCE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """What Compose makes of `${NAME:-default}`, the one form that the files use."""
    assert REFERENCE.sub("", text).count("$") == 0, f"{text}: another form of interpolation"
    return REFERENCE.sub(lambda found: environ.get(found[1], "") or found[2], text)


def references(name: str) -> dict[str, str]:
    """The variables of a compose file and their defaults; "" for build arguments, which the Dockerfile defaults."""
    tree = load(name)
    found = {name: default for text in leaves(tree) for name, default in REFERENCE.findall(text)}
    arguments = tree["services"]["infer-dev"].get("build", {}).get("args", {})
    assert set(arguments.values()) <= {None}, "a build argument with a value would hide the Dockerfile's default"
    return found | dict.fromkeys(arguments, "")


def seconds(text: str) -> float:
    amount, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return float(amount) * {"s": 1, "m": 60}[unit]


def pei_service() -> Tree:
    """Stage 2 of PeiDocker's configuration, its passthrough markers written as Compose's own."""
    text = (DOCKER / "user_config.yml").read_text(encoding="utf-8")
    tree = yaml.safe_load(re.sub(r"\{\{(.*?)\}\}", r"${\1}", text))
    return dict(tree["stage_2"])


# ------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    "environment", [service()["environment"], pei_service()["environment"]], ids=["compose", "pei"]
)
def test_environment_passes_every_variable_through_under_its_own_name(environment: Mapping[str, str]) -> None:
    assert set(environment) == set(VARIABLES)
    assert {name: REFERENCE.fullmatch(value)[1] for name, value in environment.items()} == {
        name: name for name in VARIABLES
    }


@pytest.mark.parametrize(
    "environment", [service()["environment"], pei_service()["environment"]], ids=["compose", "pei"]
)
def test_environment_with_nothing_set_is_the_default(environment: Mapping[str, str]) -> None:
    settings = parse_settings({name: interpolate(value, {}) for name, value in environment.items()})
    assert settings == parse_settings({})
    assert not any(getattr(settings, gate) for gate in GATES)


# --------------------------------------------------------------------------------------------------- the container


def test_port_of_the_host_leads_to_the_servers_port_on_loopback() -> None:
    (port,) = service()["ports"]
    assert port.endswith("${HOST_PORT_SGLANG:-11982}:30000")
    assert interpolate(port, {}) == "127.0.0.1:11982:30000"
    assert interpolate(port, {"HOST_BIND": "0.0.0.0", "HOST_PORT_SGLANG": "1"}) == "0.0.0.0:1:30000"
    assert pei_service()["ports"] == [port]


def test_mounts_are_where_the_defaults_look_and_only_the_workspace_is_writable() -> None:
    mounts = {mount["target"]: mount for mount in service()["volumes"]}
    assert {target for target, mount in mounts.items() if not mount.get("read_only")} == {"/hard/volume/workspace"}
    assert set(mounts) == {"/hard/volume/workspace", "/model-configs", "/llm-models"}
    assert parse_settings({}).project_dir.startswith("/hard/volume/workspace/")
    configs = mounts["/model-configs"]
    assert not configs["bind"]["create_host_path"]
    assert (DOCKER / interpolate(configs["source"], {})).resolve() == ROOT / "model-configs"


def test_container_is_run_as_the_entry_expects() -> None:
    found = service()
    assert found["init"] is False
    assert found["stop_signal"] == "SIGTERM"
    assert found["restart"] == "unless-stopped"
    assert found["logging"]["driver"] == "json-file"
    assert set(found["logging"]["options"]) == {"max-size", "max-file"}
    assert "command" not in found and "entrypoint" not in found and "test" not in found["healthcheck"]
    (device,) = found["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def drain_timeouts() -> dict[str, float]:
    (default,) = [key.default for key in CONTROL if key.name == "drain_timeout_s"]
    found = {"default": float(default)}
    for path in CONFIGS:
        instances = tomllib.loads(path.read_text(encoding="utf-8"))["instance"]
        controls = [instances.get("control", {}), *(table.get("control", {}) for table in instances.values())]
        found[path.name] = max([0.0, *(control.get("drain_timeout_s", 0.0) for control in controls)])
    return found


def test_stop_grace_is_above_the_longest_drain() -> None:
    grace_s = seconds(interpolate(service()["stop_grace_period"], {}))
    assert grace_s >= max(drain_timeouts().values()) + STOP_MARGIN_S


# ---------------------------------------------------------------------------------------------------- the overlays


def test_cpu_overlay_takes_the_gpu_away_and_names_a_config_that_needs_none() -> None:
    overlay = service("docker-compose.cpu.yml")
    assert isinstance(overlay["deploy"], Reset)
    assert isinstance(overlay["ulimits"], Reset)
    config = interpolate(overlay["environment"]["AUTO_INFER_SGLANG_CONFIG"], {})
    assert config == "/model-configs/llama-cpp-cpu.toml"
    text = (ROOT / config.lstrip("/")).read_text(encoding="utf-8")
    options = ResolveOptions(project_dir="/p", engine_python="/python", run_dir="/run/x", tmp_dir="/tmp/x")
    (server,) = resolve(text, source=config, options=options, host=NoHost()).servers
    assert (server.engine, server.host, server.port, server.gpu_ids) == ("llama_cpp", "0.0.0.0", 30000, ())
    assert server.log_file.startswith("/tmp/")


def test_offline_overlay_has_no_network_and_publishes_nothing() -> None:
    overlay = service("docker-compose.offline.yml")
    assert overlay["network_mode"] == "none"
    assert isinstance(overlay["ports"], Reset)


def test_gateway_overlay_publishes_the_gateways_default_port_and_the_base_does_not() -> None:
    overlay = service("docker-compose.gateway.yml")
    assert set(overlay) == {"ports"}
    (port,) = overlay["ports"]
    (default,) = [key.default for key in GATEWAY if key.name == "port"]
    assert interpolate(port, {}) == f"127.0.0.1:{default}:{default}"
    assert interpolate(port, {"HOST_BIND": "0.0.0.0", "HOST_PORT_GATEWAY": "1"}) == f"0.0.0.0:1:{default}"
    assert "HOST_PORT_GATEWAY" not in references("docker-compose.yml")


@pytest.mark.parametrize("name", ["docker-compose.cpu.yml", "docker-compose.gateway.yml", "docker-compose.offline.yml"])
def test_overlay_changes_nothing_that_the_base_lacks(name: str) -> None:
    assert set(service(name)) <= {*service(), "network_mode"}


# ----------------------------------------------------------------------------------------------------- .env.example

ASSIGNMENT = re.compile(r"#([A-Z][A-Z0-9_]*)=(.*)")


def example_lines() -> list[str]:
    return (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()


def example() -> dict[str, str]:
    return {found[1]: found[2] for line in example_lines() if (found := ASSIGNMENT.fullmatch(line))}


def test_example_has_every_variable_once_and_no_other() -> None:
    names = [found[1] for line in example_lines() if (found := ASSIGNMENT.fullmatch(line))]
    assert len(names) == len(set(names))
    wanted = {name for path in DOCKER.glob("docker-compose*.yml") for name in references(path.name)}
    assert set(names) == wanted | {"COMPOSE_FILE"}  # which `docker compose` itself reads


def test_example_sets_nothing_and_explains_every_variable() -> None:
    lines = example_lines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    for number, line in enumerate(lines):
        if ASSIGNMENT.fullmatch(line):
            assert re.match(r"# \S.{8,}", lines[number - 1]), f"{line} has no explanation above it"


def test_example_shows_the_defaults() -> None:
    base = references("docker-compose.yml")
    shown = example()
    assert {name: shown[name] for name in base if name not in VARIABLES and base[name]} == {
        name: default for name, default in base.items() if name not in VARIABLES and default
    }
    # Where the code's default depends on the machine, the table and the example both leave it empty.
    assert {name: shown[name] for name in VARIABLES} == {name: default for name, (default, _) in VARIABLES.items()}


def test_example_shows_the_dockerfiles_defaults_for_the_build() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S*)", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = example()
    for name in service()["build"]["args"]:
        assert shown[name] == arguments[name]


# --------------------------------------------------------------------------------------------------------- PeiDocker


def test_pei_config_is_the_copy_of_the_kept_one() -> None:
    assert (DOCKER / "user_config.yml").read_bytes() == (DOCKER / "user_config.persist.yml").read_bytes()


def test_pei_config_mounts_what_compose_mounts() -> None:
    stage = pei_service()
    mounts = {mount["dst_path"] for mount in stage["mount"].values()}
    mounts |= {f"/hard/volume/{name}" for name in stage["storage"]}
    assert mounts == {mount["target"] + (":ro" if mount.get("read_only") else "") for mount in service()["volumes"]}


def test_pei_config_enters_by_a_script_that_is_there() -> None:
    assert (DOCKER / pei_service()["custom"]["on_entry"]).is_file()


@pytest.mark.parametrize("path", sorted((DOCKER / "stage-2" / "custom").glob("*.sh")), ids=lambda path: path.name)
def test_wrapper_ends_in_exec(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert lines[-1].startswith('exec "$program" ')
    assert path.stat().st_mode & 0o111 == 0o111
