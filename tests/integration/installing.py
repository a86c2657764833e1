"""Run the installer as PID 1 does, as a child with the settings in its environment, and look at what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from bundles import check_records

import infer_dev_entry

PREFIX = "AUTO_INFER_SGLANG_"
TIMEOUT_S = 60.0


def make_base() -> Path:
    """Make a directory for a workspace, open to all; in memory where programs may run there, as a disk is synced."""
    shm = "/dev/shm"
    in_memory = os.access(shm, os.W_OK) and not os.statvfs(shm).f_flag & os.ST_NOEXEC
    roomy = in_memory and shutil.disk_usage(shm).free > 50_000_000
    base = Path(tempfile.mkdtemp(prefix="idi", dir=shm if roomy else "/tmp"))
    base.chmod(0o755)
    return base


class Workspace:
    """A project directory below `base`, and runs of the installer on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.project = base / "project"
        self.python = sys.executable
        self.environ: dict[str, str] = {}
        self._runs = 0

    @property
    def env(self) -> Path:
        return self.project / "env"

    def use_python_for(self, uid: int) -> bool:
        """Have the installer run on a Python and a copy of the package that this user may read; say if there is one."""
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            return False
        library = self.base / "library"
        shutil.copytree(Path(infer_dev_entry.__file__).parent, library / "infer_dev_entry")
        paths = os.pathsep.join((str(library), str(Path(structlog.__file__).parent.parent)))
        code = "import sys, hashlib; print(sys.base_prefix, hashlib.__file__); import infer_dev_entry.install.run, uv"
        for python in (sys.executable, "/usr/bin/python3"):
            argv = [python, "-c", code]
            environ = {"PYTHONPATH": paths, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
            drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            runs = [
                subprocess.run([*before, *argv], env=environ, cwd="/", capture_output=True, timeout=60, check=False)
                for before in ((), drop)
            ]
            if runs[0].stdout == runs[1].stdout and runs[1].returncode == 0:
                self.python, self.environ = python, environ
                return True
        return False

    def start(self, bundle: Path, *, before: Sequence[str] = (), **settings: str) -> Run:
        """Start an install; `before` is a command to run it under, `settings` are variables without their prefix."""
        self._runs += 1
        answer = self.base / f"answer-{self._runs}.json"
        environ = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "INFER_DEV_"))}
        environ |= self.environ
        environ |= {PREFIX + "BUNDLE_PATH": str(bundle), PREFIX + "PIXI_PROJECT_DIR": str(self.project)}
        for name, value in settings.items():
            environ[name if name.startswith("UV_") else PREFIX + name] = value
        argv = [*before, self.python, "-m", "infer_dev_entry.install.child", str(answer)]
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        return Run(process, answer)

    def install(self, bundle: Path, *, before: Sequence[str] = (), **settings: str) -> dict[str, Any]:
        """Install, and return the child's answer."""
        return self.start(bundle, before=before, **settings).finish()

    def marker(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.project / ".installed-from.json").read_text(encoding="utf-8"))
        return data

    def names(self) -> list[str]:
        return sorted(os.listdir(self.project / "envs"))

    def check(self, packages: int) -> None:
        """Hold what is in use to be complete, hash-clean, that of the marker, and alone but for the one before it."""
        assert (self.env / ".complete").is_file()
        assert check_records(self.env) == packages
        marker = self.marker()
        assert os.path.realpath(self.env) == os.path.realpath(marker["prefix"])
        assert set(self.names()) == {os.path.basename(marker["prefix"]), marker["previous"]} - {""}
        assert os.listdir(self.project / ".staging") == []

    def say(self, command: str) -> str:
        """Run a console script of the environment in use."""
        run = subprocess.run([self.env / "bin" / command], capture_output=True, text=True, timeout=20, check=True)
        return run.stdout.strip()


class Run:
    """One run of the installer."""

    def __init__(self, process: subprocess.Popen[str], answer: Path) -> None:
        self.process = process
        self._answer = answer
        self.log = ""

    def finish(self, *, code: int = 0) -> dict[str, Any]:
        """Wait for its end, and return its answer."""
        try:
            _, self.log = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert self.process.returncode == code, (self.process.returncode, self.log)
        if code != 0:
            return {}
        answer: dict[str, Any] = json.loads(self._answer.read_text(encoding="utf-8")) | {"log": self.log}
        return answer

    def kill(self) -> None:
        """SIGKILL it alone, as an out-of-memory killer does: its tools must follow by themselves."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=TIMEOUT_S)
