"""The wheelhouse backend: a venv of the image's Python, filled by uv from the bundle's wheels, offline and by hash."""

from __future__ import annotations

import os
import shutil
import sys

from infer_dev_entry.bundle.model import WHEELS, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH, plain_activation
from infer_dev_entry.install.model import InstallRequest, Progress
from infer_dev_entry.install.processes import run_tool
from infer_dev_entry.install.store import Store, explain_os_error
from infer_dev_entry.install.uv import explain_uv, find_uv, install_wheels, render_uv_environment

VENV_TIMEOUT_S = 120.0


class WheelhouseBackend:
    """Installs a wheels bundle."""

    name = "wheelhouse"

    def problem(self, bundle: UnpackedBundle) -> str:
        """Say why this backend cannot install that bundle here (with the mend), or ""."""
        if bundle.info.kind != WHEELS:
            return f"it installs {WHEELS} bundles, and this one is of kind {bundle.info.kind}"
        if not find_uv():
            return "uv is neither installed nor on PATH; install it with: pip install uv"
        wanted = bundle.info.python
        if not find_python(wanted):
            return (
                f"its wheels are for Python {wanted}, and the image has no python{wanted} (this is {_own_minor()}); "
                f"install python{wanted}, or build the bundle for {_own_minor()}"
            )
        return ""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        """Make the venv at `prefix` and install every wheel of the bundle into it.

        uv writes absolute paths into scripts, so `prefix` has to be the final one.

        Raises:
            InstallError: uv failed; the message has its reason.
        """
        python = find_python(bundle.info.python)
        if python == find_python(""):
            _make_own_venv(prefix)
        else:
            _make_venv(prefix, python, Store(request.project_dir))
        install_wheels(bundle, python=f"{prefix}/bin/python", project_dir=request.project_dir, progress=progress)

    def activation(self, prefix: str) -> tuple[tuple[str, str], ...]:
        """Return the variables that activation would set for `prefix`, PATH included."""
        return plain_activation(prefix)


def _make_own_venv(prefix: str) -> None:
    """Make a venv of the Python that we run on, which needs no process: uv's own takes 0.1 s to ask it what it is."""
    import venv

    try:
        venv.EnvBuilder(symlinks=True, with_pip=False).create(prefix)
    except OSError as error:
        raise InstallError(f"cannot make a venv at {prefix}: {explain_os_error(error)}") from error


def _make_venv(prefix: str, python: str, store: Store) -> None:
    work = f"{store.cache_dir}/venv"
    os.makedirs(work, exist_ok=True)
    argv = [find_uv(), "venv", "--offline", "--no-config", "--no-project", "--no-python-downloads"]
    result = run_tool([*argv, "--python", python, prefix], env=render_uv_environment(work), timeout_s=VENV_TIMEOUT_S)
    if result.returncode != 0:
        raise InstallError(f"cannot make a venv at {prefix}: {explain_uv(result)}")
    store.remove(work)


def find_python(wanted: str) -> str:
    """Return a Python of that minor version, the one we run on before others; "" when there is none."""
    if wanted in ("", _own_minor()):
        # A venv of a venv's Python would die with that venv: take the one below it.
        return str(getattr(sys, "_base_executable", "") or sys.executable)
    return shutil.which(f"python{wanted}", path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH) or ""


def _own_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
