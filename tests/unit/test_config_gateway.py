"""The `[gateway]` table: the server that it becomes, and how every kind of fault is worded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from test_config_resolve import FakeHost, faults_of, plan_of

from infer_dev_entry.config.facts import Secret
from infer_dev_entry.engines import GATEWAY_NAMES, profile_of
from infer_dev_entry.render import DaemonSpec, render_conf
from infer_dev_entry.spec import RouteSpec, ServerSpec, parse_plan, render_plan

KEY = "sk-0123456789abcdef"


class Machine(FakeHost):
    """A machine with nginx, a file of keys and certificates."""

    def __init__(self, keys: str = f"alice: {KEY}", *, warning: str = "", problem: str = "", **facts: object) -> None:
        super().__init__(**facts)  # type: ignore[arg-type]
        self.secret = Secret(text=keys, warning=warning, problem=problem)

    file_problem = FakeHost.model_problem

    def find_program(self, name: str, /) -> str:
        return f"/usr/sbin/{name}"

    def secret_file(self, path: str, /) -> Secret:
        return self.secret if path.endswith("keys") else Secret(text="backend-key-of-" + path.rpartition("/")[2])


def config(gateway: str = "", *instances: str, top: str = "") -> str:
    shown = instances or ("[instance.a.server]\nmodel_path = 'org/m'\n",)
    return "\n".join([top, "[gateway]", gateway, *shown])


def instance(name: str, port: int, more: str = "", model: str = "org/m") -> str:
    return f"[instance.{name}.server]\nmodel_path = '{model}'\nport = {port}\n{more}\n"


def gateway_of(text: str, host: FakeHost | None = None) -> ServerSpec:
    server = plan_of(text, host or Machine()).servers[-1]
    assert server.name == "gateway"
    return server


def test_gateway_is_the_last_server_and_waits_for_none() -> None:
    spec = gateway_of(config())
    assert spec.engine == "nginx"
    assert spec.argv == (
        *("/usr/sbin/nginx", "-e", "stderr", "-p", "/tmp/x/gateway/", "-c", "/run/x/config/gateway.conf"),
    )
    assert (spec.host, spec.port, spec.url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")
    assert (spec.depends_on, spec.gpu_ids, spec.stop_signal) == ((), (), "QUIT")
    assert spec.log_file == "/tmp/sglang-server-gateway.log"
    assert spec.gateway and spec.gateway.access_log == "/tmp/sglang-server-gateway-access.log"
    assert spec.probe.port in spec.more_ports
    assert spec.restart.max_restarts == 0


def test_gateway_is_stopped_by_the_signal_that_makes_it_drain() -> None:
    conf = render_conf(plan_of(config(), Machine()).servers, DaemonSpec(run_dir="/r"))
    assert [line for line in conf.splitlines() if line.startswith("stopsignal")] == [
        "stopsignal=TERM",
        "stopsignal=QUIT",
    ]


def test_config_without_the_table_or_with_enable_false_has_no_gateway() -> None:
    without = config().replace("[gateway]", "")
    assert [server.name for server in plan_of(without).servers] == ["a"]
    assert [server.name for server in plan_of(config("enable = false")).servers] == ["a"]
    off = plan_of(config(top="[master]\nenable = false\n"))
    assert off.servers == ()


def test_pool_is_every_instance_and_routes_are_instances_and_their_replicas() -> None:
    two = (instance("a", 30000), "[instance.a.control]\nreplicas = 2\ngpu_ids = 'none'", instance("b", 31000))
    gateway = gateway_of(config("", *two)).gateway
    assert gateway and gateway.pool == ("a-0", "a-1", "b")
    assert gateway.routes == (
        RouteSpec(name="a", servers=("a-0", "a-1")),
        RouteSpec(name="b", servers=("b",)),
        RouteSpec(name="a-0", servers=("a-0",)),
        RouteSpec(name="a-1", servers=("a-1",)),
    )


def test_pool_is_the_instances_that_are_named_and_others_keep_their_routes() -> None:
    gateway = gateway_of(config("instances = ['b']", instance("a", 30000), instance("b", 31000))).gateway
    assert gateway and gateway.pool == ("b",)
    assert [route.name for route in gateway.routes] == ["a", "b"]


def test_logs_go_where_the_instances_log_unless_told_otherwise() -> None:
    control = "[instance.control]\nlog_dir = '/var/log/x'\n"
    assert gateway_of(config("", instance("a", 30000), control)).log_file == "/var/log/x/sglang-server-gateway.log"
    own = gateway_of(config("log_dir = '/l'\naccess_log = false", instance("a", 30000), control))
    assert own.log_file == "/l/sglang-server-gateway.log"
    assert own.gateway and own.gateway.access_log == ""


def test_gateway_drains_as_long_as_its_slowest_server_unless_told_otherwise() -> None:
    slow = (instance("a", 30000), "[instance.a.control]\ndrain_timeout_s = 120", instance("b", 31000))
    assert gateway_of(config("", *slow)).drain_timeout_s == 120
    assert gateway_of(config("drain_timeout_s = 7", *slow)).drain_timeout_s == 7
    assert gateway_of(config("drain_timeout_s = 0", *slow)).drain_timeout_s == 0


def test_tls_makes_an_https_url() -> None:
    spec = gateway_of(config("tls_certificate = '~/c.pem'\ntls_certificate_key = '/k.pem'"))
    assert spec.url == "https://127.0.0.1:8000"
    assert spec.gateway and spec.gateway.tls_certificate == "/home/me/c.pem"


def test_status_port_is_dealt_beside_those_that_the_config_names() -> None:
    ports = {gateway_of(config("", instance("a", port))).probe.port for port in (30000, 31000)}
    assert all(port not in (0, 8000, 30000, 31000) for port in ports)
    taken = gateway_of(config()).probe.port
    moved = gateway_of(config("", instance("a", taken))).probe.port
    assert moved != taken


def test_plan_with_a_gateway_survives_its_json() -> None:
    plan = plan_of(config("rate_per_s = 2\napi_keys_file = '/keys'"), Machine())
    assert parse_plan(render_plan(plan)) == plan


def test_plan_of_a_version_without_gateways_still_parses() -> None:
    plan = plan_of(config())
    data = json.loads(render_plan(plan))
    for server in data["servers"]:
        del server["gateway"], server["stop_signal"], server["probe"]["port"]
    parsed = parse_plan(json.dumps(data))
    assert parsed.servers[0] == plan.servers[0]
    assert parsed.servers[1].gateway is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (config("prot = 1"), "f.toml: gateway.prot: unknown key; did you mean port?"),
        (config("engine = 'haproxy'"), 'f.toml: gateway.engine: expected "nginx" or "sglang-router", got "haproxy"'),
        (config("host = 'example.org'"), 'f.toml: gateway.host: expected an IP address, got "example.org"'),
        (config("host = ''"), "f.toml: gateway.host: expected a non-empty string"),
        (config("port = 70000"), "f.toml: gateway.port: expected a port from 1 to 65535, got 70000"),
        (config("port = 0"), "f.toml: gateway.port: expected int of at least 1, got 0"),
        (config("port = 30000"), "f.toml: gateway.port: port 30000 of gateway is also used by a"),
        (config("rate_per_s = -1"), "f.toml: gateway.rate_per_s: expected a number from 0 to 1e+06, got -1"),
        (config("rate_per_s = true"), "f.toml: gateway.rate_per_s: expected a number from 0 to 1e+06, got true"),
        (config("client_timeout_s = 0"), "f.toml: gateway.client_timeout_s: expected a number above 0, got 0"),
        (config("instances = ['aa']"), 'gateway.instances: no enabled instance is called "aa"; did you mean a?'),
        (config("instances = []"), "f.toml: gateway.instances: names no instance"),
        (config("tls_certificate = '/c'"), "f.toml: gateway.tls_certificate_key: is missing, and the other one is"),
        (
            config("tls_certificate = '/c$x'\ntls_certificate_key = '/k'"),
            "f.toml: gateway.tls_certificate: \"/c$x\" cannot be used: it holds '$', which nginx takes for a variable",
        ),
        (config("log_dir = '/l%'"), 'f.toml: gateway.log_dir: "/l%/sglang-server-gateway.log" cannot be a log file'),
        (
            config("", instance("gateway", 30000)),
            "f.toml: instance.gateway: has the name of the gateway; rename the instance",
        ),
        (
            config("", instance("a", 30000, "host = 'a;b'")),
            'f.toml: gateway: the gateway cannot reach server a at "a;b"',
        ),
        ("gateway = 3\n" + instance("a", 1), "f.toml: gateway: expected a table, got 3; write [gateway]"),
    ],
)  # fmt: skip
def test_fault_is_worded(text: str, fault: str) -> None:
    assert any(fault in line for line in faults_of(text, Machine())), faults_of(text, Machine())


def test_all_faults_come_at_once() -> None:
    text = config("prot = 1\nport = 30000\nworkers = 0\ninstances = ['q']\napi_keys_file = '/keys'")
    faults = faults_of(text, Machine("short"))
    assert len(faults) == 5


def test_nginx_that_is_missing_is_named_with_its_mend() -> None:
    (fault,) = faults_of(config(), Machine(missing=("/usr/sbin/nginx",)))
    assert fault == (
        'f.toml: gateway: cannot run "/usr/sbin/nginx": no such file; '
        "apt-get install nginx-light, or give gateway.binary its path"
    )
    (fault,) = faults_of(config("binary = '/opt/nginx'"), Machine(missing=("/opt/nginx",)))
    assert fault.startswith('f.toml: gateway.binary: cannot run "/opt/nginx"')


def test_instance_called_gateway_is_nobodys_fault_without_the_table() -> None:
    assert plan_of(instance("gateway", 30000)).servers[0].name == "gateway"


@pytest.mark.parametrize(
    ("machine", "fault"),
    [
        (Machine("alice: short"), 'cannot take the keys of "/keys": line 1: the key has 5 characters'),
        (Machine(""), 'cannot take the keys of "/keys": it holds no key; correct that file'),
        (Machine(problem="no such file or directory"), "infer-dev gateway keys add FILE --name NAME makes one"),
    ],
)
def test_file_of_keys_is_checked_and_no_key_is_told(machine: Machine, fault: str) -> None:
    (told,) = faults_of(config("api_keys_file = '/keys'"), machine)
    assert fault in told
    assert KEY not in told


def test_servers_of_the_pool_with_different_keys_are_a_fault_only_where_the_gateway_sends_one() -> None:
    two = (instance("a", 30000, "api_key_file = '/one'"), instance("b", 31000, "api_key_file = '/two'"))
    (fault,) = faults_of(config("api_keys_file = '/keys'", *two), Machine())
    assert "ask for different API keys" in fault
    assert len(plan_of(config("", *two), Machine()).servers) == 3
    assert len(plan_of(config("api_keys_file = '/keys'\ninstances = ['a']", *two), Machine()).servers) == 3


@pytest.mark.parametrize(
    ("text", "machine", "warning"),
    [
        (config("host = '0.0.0.0'"), Machine(), "everybody who reaches 0.0.0.0:8000 can use the servers"),
        (config("api_keys_file = '/keys'"), Machine(warning="can be read by every user"), "chmod 600 /keys"),
        (
            config("api_keys_file = '/keys'", instance("a", 30000, "host = '0.0.0.0'")),
            Machine(),
            "a can be reached without a key, past the gateway",
        ),
        (
            config("", instance("a", 30000), instance("b", 31000, model="org/other")),
            Machine(),
            "2 different models are behind /v1/",
        ),
    ],
)
def test_danger_is_warned_of(text: str, machine: Machine, warning: str) -> None:
    assert any(warning in line for line in plan_of(text, machine).warnings)


def test_nothing_is_warned_of_when_nothing_is_odd() -> None:
    assert plan_of(config("api_keys_file = '/keys'"), Machine()).warnings == ()
    assert plan_of(config("host = '127.0.0.1'"), Machine()).warnings == ()


@pytest.mark.parametrize("name", GATEWAY_NAMES)
def test_profile_of_a_gateway_is_consistent(name: str) -> None:
    profile = profile_of(name)
    assert profile.name == name
    assert profile.timeout_s < profile.period_s < profile.startup_deadline_s
    assert profile.startup_path.startswith("/") and profile.liveness_path.startswith("/")


def test_spec_differs_in_its_gateway_alone_when_pools_change() -> None:
    one, two = (
        gateway_of(config("", *instances))
        for instances in ((instance("a", 30000),), (instance("a", 30000), instance("b", 31000)))
    )
    assert one != two
    assert replace(one, gateway=None) == replace(two, gateway=None)


def test_config_without_a_gateway_loads_none_of_its_code() -> None:
    code = "import sys, infer_dev_entry.host; print(any('gateway' in name for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == "False"
