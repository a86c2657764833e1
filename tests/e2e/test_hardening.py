"""Containers with less than the usual rights: each serves, or its first error says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import INSTALL, SERVE, Engine, mounts
from inside import chat_inside
from serving import serve
from wait import wait_until

OFFLINE = ("--network", "none")
TMPFS = ("--tmpfs", "/run", "--tmpfs", "/tmp")
NEEDED = ("CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID")
NO_RIGHTS = ("--cap-drop", "ALL")
NO_NEW = ("--security-opt", "no-new-privileges")
GATEWAY_PORT = 8000
EXIT = {"AUTO_INFER_SGLANG_ON_ERROR": "exit"}


def added(*names: str) -> tuple[str, ...]:
    """Return the options of `docker run` that give these capabilities back."""
    return tuple(word for name in names for word in ("--cap-add", name))


# name → options, more environment, the uid that the server runs as
SERVING: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "read-only": (("--read-only", *TMPFS, *NO_NEW), {}, 1000),
    "needed-capabilities": ((*NO_RIGHTS, *added(*NEEDED)), {}, 1000),
    "root-without-capabilities": (NO_RIGHTS, {"AUTO_INFER_SGLANG_USER": "root"}, 0),
    "me-without-anything": (("--user", "1000:1000", "--read-only", "--tmpfs", "/tmp", *NO_RIGHTS, *NO_NEW), {}, 1000),
    "uid-without-a-name": (("--user", "12345:0"), {}, 12345),
}


@pytest.mark.parametrize("case", SERVING)
def test_container_with_few_rights_serves(engine: Engine, installed: Path, case: str) -> None:
    options, environ, uid = SERVING[case]
    settings = serve(gateway={"port": GATEWAY_PORT}) | environ
    with engine.container(options=[*mounts(installed), *OFFLINE, *options], environ=settings) as container:
        rows = container.wait_ready("gemma", "gateway")
        for name in ("gemma", "gateway"):
            assert container.exec("stat", "-c", "%u", f"/proc/{rows[name]['pid']}").stdout.strip() == str(uid)
        assert chat_inside(container)
        container.wait_event("gateway.routed")
        assert chat_inside(container, GATEWAY_PORT)
        wait_until(lambda: container.exec("infer-dev", "health").returncode == 0, 60, "health")
        # For the first second of its life a server that is ready is STARTING there.
        wait_until(lambda: container.exec("infer-dev", "ctl", "status").returncode == 0, 30, "all to be RUNNING")
        # Root that has no power over other users' processes would find only here that it cannot end them.
        container.stop(90)
        assert container.exit_code == 0
        assert container.wait_event("entry.stopped")["had_to_kill"] == []


LACKS = (
    "cannot run servers as me (uid 1000): root lacks the capabilities {names}; start the container with {options}, "
    "run it as that user (--user 1000:1000), or set AUTO_INFER_SGLANG_USER=root"
)
REFUSED: dict[str, tuple[tuple[str, ...], dict[str, str], int, str]] = {
    "no-capabilities": (
        NO_RIGHTS,
        SERVE,
        11,
        LACKS.format(names=", ".join(NEEDED), options=" ".join(added(*NEEDED))),
    ),
    "no-kill": (
        (*NO_RIGHTS, *added(*(name for name in NEEDED if name != "KILL"))),
        SERVE,
        11,
        LACKS.format(names="KILL", options="--cap-add KILL"),
    ),
    "no-run": (
        ("--read-only", "--tmpfs", "/tmp"),
        SERVE,
        12,
        "cannot write run directory /run/infer-dev: Read-only file system; set INFER_DEV_RUN_DIR to a writable "
        "directory or mount a tmpfs there",
    ),
    "no-tmp": (
        ("--read-only", "--tmpfs", "/run"),
        SERVE,
        10,
        '/model-configs/llama-cpp-cpu.toml: instance.control.log_dir: cannot write logs to "/tmp": /tmp is on a '
        "read-only filesystem; choose another log_dir",
    ),
    "not-root": (
        ("--user", "12345:0"),
        SERVE | {"AUTO_INFER_SGLANG_USER": "me"},
        11,
        "cannot run servers as AUTO_INFER_SGLANG_USER='me': the entry does not run as root",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_container_with_too_few_rights_says_what_is_missing(engine: Engine, installed: Path, case: str) -> None:
    options, environ, code, error = REFUSED[case]
    with engine.container(options=[*mounts(installed), *OFFLINE, *options], environ=environ | EXIT) as container:
        assert container.wait_exit() == code
        assert [event["error"] for event in container.events("boot.failed")] == [error]
        assert "Traceback" not in container.logs()


def test_install_into_a_workspace_of_another_user_names_uid_and_mend(engine: Engine, fresh: Path) -> None:
    options = [*mounts(fresh), *OFFLINE, "--user", "12345:0"]
    fresh.chmod(0o755)
    with engine.container(options=options, environ=INSTALL | EXIT) as container:
        assert container.wait_exit() == 21
        (failed,) = container.events("boot.failed")
        assert "Permission denied for uid 12345; give it to that user (chown)" in failed["error"]


def test_install_by_hand_without_capabilities_says_what_is_missing(engine: Engine, fresh: Path) -> None:
    with engine.container(options=[*mounts(fresh), *OFFLINE, *NO_RIGHTS]) as container:
        bundle = INSTALL["AUTO_INFER_SGLANG_BUNDLE_PATH"]
        run = container.exec("/soft/app/sglang/install-sglang-offline.sh", "--bundle", bundle)
        assert run.returncode == 11
        assert run.stderr.startswith("infer-dev install: cannot run servers as me (uid 1000): root lacks")
        assert len(run.stderr.splitlines()) == 1
