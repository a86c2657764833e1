"""Whatever a config may hold, nginx itself reads what is made of it, or the config is refused with its reason."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import free_port, render_toml
from gateway import NGINX, needs_nginx
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_dev_entry.config import NoHost, ResolveOptions, resolve
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gateway.keys import ApiKey, KeysFile, parse_keys
from infer_dev_entry.gateway.nginx import render_nginx
from infer_dev_entry.gateway.nginx_words import find_complaint
from infer_dev_entry.spec import ServerSpec

pytestmark = needs_nginx

# nginx takes 10 ms for each.
EXAMPLES = 60
NASTY = "\"'\\$;{}#%\n\t \u00a0é\U0001f600/.a0"
HOSTS = ("127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "127.9.9.9", "10.0.0.7")
words = st.text(alphabet=st.one_of(st.sampled_from(NASTY), st.characters(codec="utf-8")), min_size=1, max_size=30)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,12}\Z")
keys = st.from_regex(r"\A(?:[A-Za-z0-9@._-]{1,10}: )?[A-Za-z0-9._~+/-]{16,40}={0,2}\Z")


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory for everything that nginx opens."""
    with tempfile.TemporaryDirectory(prefix="idn", dir="/tmp") as folder:
        yield Path(folder)


def plan(text: str, base: Path) -> tuple[ServerSpec, ...]:
    """Resolve a config, or () when it is refused."""
    (base / "t").mkdir(exist_ok=True)
    options = ResolveOptions(project_dir="/p", engine_python="/py", run_dir=str(base / "r"), tmp_dir=str(base / "t"))
    try:
        return resolve(text, source="f.toml", options=options, host=NoHost()).servers
    except ConfigError as error:
        assert all(fault.startswith(("f.toml: ", "AUTO_")) and "\n" not in fault for fault in error.faults)
        return ()


def test_nginx(base: Path, text: str, found: tuple[ApiKey, ...] | None = None, ready: int = -1) -> str:
    """Return what nginx says against it, "" for nothing, "refused" when it never gets there."""
    *servers, spec = plan(text, base) or (None,)
    if spec is None:
        return "refused"
    Path(dict(spec.environment)["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    rendered, _ = render_nginx(spec, [server for server in servers if server][: ready if ready >= 0 else None], found)
    conf = base / "nginx.conf"
    conf.write_text(rendered, encoding="utf-8")
    done = subprocess.run(
        [str(NGINX), "-t", "-q", "-e", "stderr", "-p", f"{base}/", "-c", str(conf)], capture_output=True, timeout=20
    )
    return find_complaint(done.stderr.decode(errors="replace")) if done.returncode else ""


test_nginx.__test__ = False  # type: ignore[attr-defined]


def config(base: Path, port: int, servers: dict[str, str], **gateway: object) -> str:
    table = {"port": port, "log_dir": str(base / "log"), **gateway}
    (base / "log").mkdir(exist_ok=True)
    lines = ["[instance.control]", "gpu_ids = 'none'", "[gateway]"]
    lines += [f"{key} = {render_toml(value)}" for key, value in table.items()]
    for number, (name, more) in enumerate(servers.items()):
        lines += [f'[instance."{name}".server]', 'model_path = "org/m"', f"port = {31000 + number}", more]
    return "\n".join(lines)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    instances=st.lists(names, unique=True, min_size=1, max_size=5),
    hosts=st.lists(st.sampled_from(HOSTS), min_size=5, max_size=5),
    ready=st.integers(0, 5),
    lines=st.lists(keys, max_size=6),
    rate=st.one_of(st.just(0), st.floats(0.001, 1000), st.integers(1, 10**6)),
    burst=st.integers(0, 1000),
    connections=st.integers(0, 10_000),
    body=st.integers(1, 2**62),
    seconds=st.floats(0.001, 31_536_000),
    host=st.sampled_from(HOSTS[:-1]),
)  # fmt: skip
def test_every_config_that_resolves_is_one_that_nginx_reads(
    base: Path,
    instances: list[str],
    hosts: list[str],
    ready: int,
    lines: list[str],
    rate: float,
    burst: int,
    connections: int,
    body: int,
    seconds: float,
    host: str,
) -> None:
    told = config(
        base,
        free_port(),
        {name: f"host = '{hosts[number]}'" for number, name in enumerate(instances)},
        host=host,
        rate_per_s=rate,
        burst=burst,
        max_connections=connections,
        max_body_bytes=body,
        client_timeout_s=seconds,
        read_timeout_s=seconds,
    )
    found = parse_keys("\n".join(lines)) if lines else KeysFile()
    if found.problems:  # the same key twice
        return
    if "gateway" in instances or {"control", "server"} & set(instances):
        return
    assert test_nginx(base, told, found.keys if lines else None, ready) == ""


@settings(max_examples=EXAMPLES, deadline=None)
@given(folder=words, key=words)
def test_odd_paths_and_keys_of_servers_survive_or_are_refused(base: Path, folder: str, key: str) -> None:
    folder = folder.replace("/", "_")
    try:
        place = base / f"x{folder}"
        place.mkdir(exist_ok=True)
    except (OSError, ValueError):
        return
    told = config(base, free_port(), {"a": f"api_key = {render_toml(key)}"}, log_dir=str(place))
    assert test_nginx(base, told, (ApiKey(name="x", key="sk-0123456789abcdef"),)) in ("", "refused")


@settings(max_examples=EXAMPLES, deadline=None)
@given(name=words, host=words)
def test_odd_names_and_hosts_are_refused_or_survive(base: Path, name: str, host: str) -> None:
    told = config(base, free_port(), {"a": f"host = {render_toml(host)}"}, instances=["a"])
    told = told.replace('[instance."a".server]', f"[instance.{render_toml(name)}.server]").replace(
        'instances = ["a"]', f"instances = [{render_toml(name)}]"
    )
    complaint = test_nginx(base, told)
    assert complaint in ("", "refused") or "host not found in upstream" in complaint


def test_largest_fleet_and_most_keys_are_read(base: Path) -> None:
    told = config(base, free_port(), {"a": ""}).replace("gpu_ids = 'none'", "gpu_ids = 'none'\nreplicas = 256")
    found = parse_keys("\n".join(f"client-{number}: sk-{number:040d}" for number in range(1000)))
    assert len(found.keys) == 1000
    assert test_nginx(base, told, found.keys) == ""
