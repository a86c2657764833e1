"""The first thing a user does: the bundle is installed at boot, its servers serve, and the next boot finds it done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine import INSTALL, PROJECT_DIR, SERVE, Engine, chat, get, mounts
from serving import serve


@pytest.mark.timeout(900, func_only=True)
def test_boot_installs_serves_and_a_new_container_skips_the_install(engine: Engine, fresh: Path) -> None:
    options = [*mounts(fresh), "-p", "127.0.0.1::30000"]
    with engine.container(options=options, environ=serve() | INSTALL) as first:
        first.wait_health("healthy")
        assert first.events("bundle.installed")[0]["backend"] == "wheelhouse"
        port = first.port()
        assert json.loads(get(port, "/v1/models")[1])["data"][0]["id"] == "gemma"
        assert chat(port).strip()
        # Servers and the environment belong to `me`, PID 1 is root.
        pid = first.row("gemma")["pid"]
        assert first.exec("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == "me"
        assert first.exec("stat", "-c", "%U", PROJECT_DIR).stdout.strip() == "me"
        engine.docker("restart", "-t", "30", first.name, timeout_s=90)
        first.wait_health("healthy")
        assert len(first.events("bundle.unchanged")) == 1
        assert chat(first.port()).strip()
    # With the gates alone the engine has as many threads as the machine. They wait for each other in a busy loop: on a
    # busy machine a boot and an answer take minutes.
    with engine.container(options=options, environ=SERVE | INSTALL) as second:
        second.wait_health("healthy")
        assert second.events("bundle.unchanged")
        assert not second.events("bundle.installed")
        assert chat(second.port(), timeout_s=300).strip()
