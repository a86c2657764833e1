"""The Runtime and `infer-dev smoke` with what is no plain server: gateways, routers, further nodes."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, free_port, free_ports, server
from gateway import ALICE, PATIENT, Site, needs_nginx
from test_gateway_life import make_certificate

pytest.importorskip("openai", reason="the client extra is not installed")

from infer_dev_entry.client import ClientError, RefusedKeyError, Runtime, UnreachableError
from infer_dev_entry.smoke.servers import find_servers, read_facts

pytest_plugins = ("fleet_fixtures",)

MESSAGES = [{"role": "user", "content": "hello"}]
OWN = "sk-key-of-the-servers"


def verdicts(fleet: Fleet, *words: str, **environ: str) -> list[tuple[str, str]]:
    """Return server and verdict of the check of chats, or of what kept a server from being asked."""
    done = fleet.cli("smoke", *words, "--only", "chat", "--json", **environ)
    assert not any(key in done.stdout + done.stderr for key in (ALICE, OWN))
    assert done.stdout, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return [(row["server"], row["verdict"]) for row in rows]


@needs_nginx
def test_gateway_with_keys_is_attached_to_and_checked_with_the_key_that_is_given(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    flags = {"api_key": OWN}
    gateway = f'[gateway]\nport = {site.port}\nworkers = 2\napi_keys_file = "{site.with_keys()}"\n'
    fleet.write(*(server(name, port, flags=flags, probe=PATIENT) for name, port in site.ports.items()), gateway)
    fleet.start()
    fleet.wait_ready()
    site.wait_pool("a", "b")

    key = fleet.base / "key"
    key.write_text(f"# of alice\n{ALICE}\n")
    with Runtime.attach(api_key=ALICE, environ=fleet.environ) as runtime:
        assert (runtime.name, runtime.url) == ("gateway", f"http://127.0.0.1:{site.port}")
        assert runtime.chat(MESSAGES).text == "hello"
    with (
        Runtime.attach(environ=fleet.environ) as runtime,
        pytest.raises(RefusedKeyError, match="INFER_DEV_API_KEY"),
    ):
        runtime.chat(MESSAGES)
    with pytest.raises(ClientError, match="no header can carry"):
        Runtime.attach("gateway", api_key="x\r\nX-Evil: 1", environ=fleet.environ)

    # The servers are asked with their own key, also when one for the gateway is given.
    passed = [("a", "pass"), ("b", "pass"), ("gateway", "pass")]
    assert verdicts(fleet, "--api-key-file", str(key)) == passed
    assert verdicts(fleet, INFER_DEV_API_KEY=ALICE) == passed
    assert verdicts(fleet) == [*passed[:2], ("gateway", "skip")]
    assert verdicts(fleet, f"http://127.0.0.1:{site.port}/v1/", "--api-key-file", str(key))[0][1] == "pass"
    key.write_text("schlüssel\n", encoding="utf-8")
    refused = fleet.cli("smoke", "gateway", "--api-key-file", str(key))
    assert (refused.returncode, refused.stderr.count("\n")) == (40, 1), refused.stderr


@needs_nginx
def test_gateway_is_known_by_the_command_lines_of_the_servers_behind_it(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    glm = {"tool_call_parser": "glm47", "reasoning_parser": "glm45", "load_format": "dummy"}
    gateway = f"[gateway]\nport = {site.port}\nworkers = 2\n"
    fleet.write(server("a", site.ports["a"], flags=glm, probe=PATIENT), gateway)
    fleet.start()
    fleet.wait_ready()
    site.wait_pool("a")
    (target,) = find_servers("gateway", api_key=None, environ=fleet.environ)
    facts = read_facts(target)
    assert (facts.label, facts.tool_parser, facts.reasoning_parser) == ("gateway", "glm47", "glm45")
    assert facts.is_dummy
    (by_url,) = find_servers(f"http://127.0.0.1:{site.port}", api_key=None, environ=fleet.environ)
    assert read_facts(by_url).tool_parser is None  # a URL may be anybody's, and the gateway closes what would tell


@needs_nginx
def test_gateway_with_a_certificate_of_its_own_is_trusted_by_its_file(fleet: Fleet, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    site = Site(fleet, "a")
    site.write(tls_certificate=str(certificate), tls_certificate_key=str(key), host="127.0.0.1")
    fleet.start()
    fleet.wait_ready("a", "gateway")

    with Runtime.attach(environ=fleet.environ) as runtime:
        assert runtime.url == f"https://127.0.0.1:{site.port}"
        with pytest.raises(UnreachableError, match=r"certificate verify failed.*SSL_CERT_FILE"):
            runtime.models()
    refused = fleet.cli("smoke", f"https://127.0.0.1:{site.port}")
    assert (refused.returncode, refused.stderr.count("\n")) == (41, 1), refused.stderr
    trusting = {**fleet.environ, "SSL_CERT_FILE": str(certificate)}
    with Runtime.attach(environ=trusting) as runtime:
        fleet.wait(lambda: answers(runtime), 20, "the gateway to have its server")
    assert verdicts(fleet, "gateway", SSL_CERT_FILE=str(certificate)) == [("gateway", "pass")]
    with pytest.raises(ClientError, match="SSL_CERT_FILE"):
        Runtime.attach(environ={**fleet.environ, "SSL_CERT_FILE": str(key)})


def answers(runtime: Runtime) -> bool:
    try:
        return runtime.chat(MESSAGES).text == "hello"
    except ClientError:
        return False


def test_router_stands_for_its_servers(fleet: Fleet) -> None:
    pytest.importorskip("sglang_router", reason="sglang-router is not installed")
    port = free_port()
    gateway = f'[gateway]\nengine = "sglang-router"\nport = {port}\n'
    fleet.write(*(server(name, port, probe=PATIENT) for name, port in zip("ab", free_ports(2), strict=True)), gateway)
    fleet.start()
    fleet.wait_ready("a", "b", "gateway", timeout_s=90)
    with Runtime.attach(model="fake", environ=fleet.environ) as runtime:
        assert runtime.url == f"http://127.0.0.1:{port}"
        fleet.wait(lambda: answers(runtime), 30, "the router to have a worker")
    assert verdicts(fleet, "--model", "fake") == [("a", "pass"), ("b", "pass"), ("gateway", "pass")]


def test_node_beside_the_first_is_not_asked(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        address = f"127.0.0.1:{meeting.getsockname()[1]}"
        group = {"device": "cpu", "tp_size": 2, "nnodes": 2, "node_rank": 1, "dist_init_addr": address}
        first, other = free_ports(2)
        fleet.write(server("a", first, probe=PATIENT), server("glm", other, flags=group))
        fleet.start()
        fleet.wait_ready("a", "glm")
        with Runtime.attach(environ=fleet.environ) as runtime:
            assert runtime.name == "a"
        with pytest.raises(ClientError, match="glm: it has no address to ask \\(rank 1 of 2"):
            Runtime.attach("glm", environ=fleet.environ)
        assert verdicts(fleet) == [("a", "pass")]
        done = fleet.cli("smoke", "--only", "models")
        assert "not checked: glm is ready: rank 1 of 2" in done.stdout
        refused = fleet.cli("smoke", "glm")
        assert (refused.returncode, refused.stderr.count("\n")) == (40, 1), refused.stderr
