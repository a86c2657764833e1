"""`infer-dev gateway`: what it prints, what it never prints, and its exit codes, with the real nginx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fleet import INFER_DEV, free_ports
from gateway import needs_nginx

from infer_dev_entry.gateway.keys import parse_keys


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "AUTO_INFER_SGLANG_PYTHON": sys.executable, "INFER_DEV_RUN_DIR": str(cwd / "r")}
    command = [*INFER_DEV, "gateway", *words]
    return subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config with a gateway, and a file of one key."""
    assert run("keys", "add", str(tmp_path / "keys"), "--name", "alice", cwd=tmp_path).returncode == 0
    port, own = free_ports(2)
    path = tmp_path / "f.toml"
    path.write_text(
        f"[gateway]\nport = {own}\napi_keys_file = '{tmp_path}/keys'\nlog_dir = '{tmp_path}'\n"
        f"[instance.control]\ngpu_ids = 'none'\n[instance.a.server]\nmodel_path = 'org/m'\nport = {port}\n"
        "api_key = 'backend-secret-key'\n"
    )
    return path


def test_key_is_printed_once_alone_and_the_file_checks(tmp_path: Path) -> None:
    file = str(tmp_path / "keys")
    added = run("keys", "add", file, "--name", "alice", cwd=tmp_path)
    key = added.stdout.strip()
    assert added.returncode == 0 and parse_keys(f"alice: {key}").keys
    assert key not in added.stderr
    run("keys", "add", file, "--name", "bob", cwd=tmp_path)
    checked = run("keys", "check", file, cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "ok: 2 keys: alice, bob\n")


def test_bad_file_of_keys_exits_31_with_every_problem_and_is_not_added_to(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice: tooshort\nbob: sk-with a blank 0123\n")
    for words in (("keys", "check", str(file)), ("keys", "add", str(file), "--name", "carol")):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 31
        assert "line 1: " in done.stderr and "line 2: " in done.stderr and "blank" not in done.stderr
    assert "carol" not in file.read_text()
    assert run("keys", "check", str(tmp_path / "none"), cwd=tmp_path).returncode == 31
    assert run("keys", "add", str(tmp_path / "new"), "--name", "a b", cwd=tmp_path).returncode == 31
    assert not (tmp_path / "new").exists()


@needs_nginx
def test_render_masks_keys_and_check_has_nginx_read_the_real_ones(config: Path, tmp_path: Path) -> None:
    key = (tmp_path / "keys").read_text().partition(": ")[2].strip()
    rendered = run("render", str(config), cwd=tmp_path)
    assert rendered.returncode == 0, rendered.stderr
    assert "*** " not in rendered.stdout and '"alice";' in rendered.stdout and "Bearer ***" in rendered.stdout
    assert key not in rendered.stdout and "backend-secret-key" not in rendered.stdout
    checked = run("check", str(config), cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == "ok: /usr/sbin/nginx accepts it; 1 server\n"


@needs_nginx
def test_check_exits_30_when_nginx_refuses_and_10_without_a_gateway(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    (tmp_path / "c.pem").write_text("no certificate\n")
    tls = f"tls_certificate = '{tmp_path}/c.pem'\ntls_certificate_key = '{tmp_path}/c.pem'\n"
    config.write_text(text.replace("[gateway]\n", f"[gateway]\n{tls}"))
    refused = run("check", str(config), cwd=tmp_path)
    assert refused.returncode == 30
    assert "cannot load certificate" in refused.stderr and refused.stderr.count("\n") == 1
    config.write_text(text.replace("[gateway]\n", "[gateway]\nenable = false\n"))
    without = run("check", str(config), cwd=tmp_path)
    assert without.returncode == 10 and "has no gateway" in without.stderr
