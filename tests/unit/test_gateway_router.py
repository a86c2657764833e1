"""SGLang's router as the gateway: the command line, what its workers lack, and how its config is judged."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config_gateway import Machine, config, gateway_of, instance
from test_config_resolve import faults_of, plan_of

from infer_dev_entry import sglang_router_launch
from infer_dev_entry.gateway.router import KEY_OPTION, Worker, find_changes, parse_workers, render_worker
from infer_dev_entry.spec import parse_plan, render_plan

ENGINE = 'engine = "sglang-router"\n'
A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


def options(argv: tuple[str, ...]) -> dict[str, str]:
    return {word: argv[index + 1] for index, word in enumerate(argv[:-1]) if word.startswith("--")}


# workers


def worker(url: str) -> Worker:
    return Worker(id=f"id-{url[-1]}", url=url)


@pytest.mark.parametrize(
    ("wanted", "listed", "missing", "extra"),
    [
        ((A, B), (), (A, B), ()),
        ((A,), (A, B), (), (B,)),
        ((), (A,), (), (A,)),
        ((A,), (A,), (), ()),
        ((A, A), (), (A,), ()),
        ((A,), (A + "/",), (), ()),
        ((), (), (), ()),
    ],
)
def test_changes_are_what_is_missing_and_what_is_too_many(
    wanted: tuple[str, ...], listed: tuple[str, ...], missing: tuple[str, ...], extra: tuple[str, ...]
) -> None:
    assert find_changes(wanted, map(worker, listed)) == (missing, tuple(map(worker, extra)))


def test_workers_are_read_from_the_routers_answer() -> None:
    listed = {"id": "3431670d", "url": A, "model_id": "unknown", "is_healthy": True, "load": 0}
    assert parse_workers(json.dumps({"workers": [listed], "total": 1})) == (Worker(id="3431670d", url=A),)
    assert parse_workers('{"workers": []}') == ()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"workers": [1]}', '{"workers": {"a": 1}}', "[" * 100_000),
        '{"workers": [{"id": 1, "url": "x"}]}',
        '{"workers": [{"id": "a b", "url": "x"}]}',
        '{"workers": [{"id": "a\\r\\nX: 1", "url": "x"}]}',
    ],
)
def test_answer_that_is_no_list_of_workers_is_none(text: str) -> None:
    assert parse_workers(text) is None


@given(st.text())
def test_any_answer_is_workers_or_none(text: str) -> None:
    parse_workers(text)


def test_worker_is_added_without_the_servers_own_key() -> None:
    """The router would give it to whoever asks."""
    assert json.loads(render_worker(A)) == {"url": A}


# config


def test_router_is_run_by_our_launcher_and_keeps_its_key_out_of_its_words() -> None:
    spec = gateway_of(config(ENGINE + 'port = 9000\npolicy = "round_robin"\ndrain_timeout_s = 12.4'))
    given = options(spec.argv)
    assert spec.engine == "sglang-router"
    assert spec.argv[0] == "/own/python"
    assert (given["--host"], given["--port"], given["--policy"]) == ("127.0.0.1", "9000", "round_robin")
    assert (given["--prometheus-host"], given["--prometheus-port"]) == ("127.0.0.1", str(spec.more_ports[0]))
    assert given["--shutdown-grace-period-secs"] == "12"
    assert given[KEY_OPTION] == spec.gateway.conf == "/run/x/config/gateway.conf"  # type: ignore[union-attr]
    assert (spec.probe.port, spec.probe.liveness_path, spec.stop_signal) == (0, "/health", "TERM")
    assert "--api-key" not in spec.argv and "--control-plane-api-keys" not in spec.argv
    assert spec.files == ()


def test_router_spec_survives_its_json_form() -> None:
    plan = plan_of(config(ENGINE), Machine())
    assert parse_plan(render_plan(plan)) == plan


def test_router_of_the_installed_environment_wins_over_our_own() -> None:
    class Installed(Machine):
        def environment_has(self, python: str, name: str, /) -> bool:
            return (python, name) == ("/p/env/bin/python", "sglang-router")

    assert gateway_of(config(ENGINE), Installed()).argv[0] == "/p/env/bin/python"
    assert gateway_of(config(ENGINE + 'binary = "/x/python"'), Installed()).argv[0] == "/x/python"
    (fault,) = faults_of(config(ENGINE), Machine(missing=("sglang-router",)))
    assert 'gateway.engine: package "sglang-router": no such file; build the bundle with' in fault


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("api_keys_file = '/x/keys'", "gateway.api_keys_file: engine sglang-router cannot check a file of keys; write"),
        ("tls_certificate = '/c'\ntls_certificate_key = '/k'", "tls_certificate: engine sglang-router cannot be given"),
        ("rate_per_s = 2", "gateway.rate_per_s: engine sglang-router cannot limit the rate of a key"),
        ("max_connections = 2", "gateway.max_connections: engine sglang-router cannot limit the requests"),
        ("policy = 'best'", 'gateway.policy: expected "cache_aware" or "round_robin"'),
    ],
)
def test_what_the_router_cannot_do_for_safety_is_a_fault_that_names_nginx(lines: str, expected: str) -> None:
    faults = faults_of(config(ENGINE + lines), Machine())
    assert any(expected in fault for fault in faults), faults
    assert "policy" in lines or all('engine = "nginx"' in fault for fault in faults)


def test_what_only_nginx_does_is_a_warning_as_is_a_policy_without_the_router() -> None:
    plan = plan_of(config(ENGINE + "workers = 2\nhttp2 = false\nrate_per_s = 0"), Machine())
    assert [text.partition(": ")[2] for text in plan.warnings] == [
        "gateway.http2: is for engine nginx; not used",
        "gateway.workers: is for engine nginx; not used",
    ]
    plan = plan_of(config("policy = 'random'"), Machine())
    assert any("policy: is for engine sglang-router; not used" in text for text in plan.warnings)


def test_router_that_others_reach_warns_unless_every_server_asks_for_a_key() -> None:
    (warning,) = plan_of(config(ENGINE + 'host = "0.0.0.0"'), Machine()).warnings
    assert "gateway.host: everybody who reaches 0.0.0.0:8000 can use the servers; give the instances an" in warning
    keyed = config(ENGINE + 'host = "0.0.0.0"', instance("a", 4000, "api_key = 'sk-12345678'"))
    assert plan_of(keyed, Machine()).warnings == ()


def test_servers_with_different_keys_are_a_fault_as_a_client_has_one() -> None:
    two = (instance("a", 4000, "api_key = 'sk-1234567a'"), instance("b", 5000, "api_key = 'sk-1234567b'"))
    (fault,) = faults_of(config(ENGINE, *two), Machine())
    assert "gateway.instances: its servers ask for different API keys" in fault


@pytest.mark.parametrize("engine", ["", ENGINE])
def test_node_that_answers_nobody_is_behind_no_gateway(engine: str) -> None:
    node = 'device = "cpu"\ntp_size = 2\nnnodes = 2\nnode_rank = 1\ndist_init_addr = "10.0.0.1:7000"'
    spec = gateway_of(config(engine, instance("a", 4000), instance("b", 5000, node)))
    assert spec.gateway is not None
    assert spec.gateway.pool == ("a",)
    assert all("b" not in route.servers for route in spec.gateway.routes)


# the launcher


def test_launcher_takes_the_key_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k3y\n")
    words = ["--port", "1", KEY_OPTION, str(file), "--x"]
    assert sglang_router_launch.take_key(words) == (["--port", "1", "--x"], "k3y")


@pytest.mark.parametrize("content", [None, "", "\n", "\xff"])
def test_launcher_without_a_key_starts_nothing(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit, match="cannot start the router: "):
        sglang_router_launch.take_key([KEY_OPTION, str(file)])
    with pytest.raises(SystemExit, match=f"{KEY_OPTION} FILE is missing"):
        sglang_router_launch.take_key(["--port", "1"])


def test_launcher_hands_the_router_its_words_and_does_not_find_our_modules_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen.json"
    package = tmp_path / "sglang_router"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_router.py").write_text(
        "import json, sys\nparse_router_args = list\n"
        f"def launch_router(words): json.dump([words, sys.path, sys.argv], open({str(seen)!r}, 'w'))\n"
    )
    (tmp_path / "key").write_text("k3y")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang_router"]:
        monkeypatch.delitem(sys.modules, name)
    here = str(Path(sglang_router_launch.__file__).parent)
    monkeypatch.setattr(sys, "path", [here, str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["x", "--port", "1", KEY_OPTION, str(tmp_path / "key")])
    runpy.run_path(sglang_router_launch.__file__, run_name="__main__")
    words, path, argv = json.loads(seen.read_text())
    assert words == ["--port", "1", "--control-plane-api-keys", "infer-dev:infer-dev:admin:k3y"]
    assert here not in path
    assert "k3y" not in argv
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang_router"]:
        del sys.modules[name]
