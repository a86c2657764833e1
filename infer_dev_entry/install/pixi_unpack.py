"""The backend `pixi-unpack`: pixi-pack's own unpacker, for images that bring it and no py-rattler."""

from __future__ import annotations

import os
import shutil

from infer_dev_entry.bundle.model import PIXI_PACK, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH, Variables, conda_activation
from infer_dev_entry.install.conda_activation import read_activation
from infer_dev_entry.install.model import InstallRequest, Progress
from infer_dev_entry.install.prefix import check_prefix
from infer_dev_entry.install.processes import RunTool, run_tool
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.uv import join_causes

TIMEOUT_S = 3600.0

# pixi-unpack leaves its script beside the environment, where the next one would overwrite it; it is kept in here.
_SCRIPT = "conda-meta/activate.sh"


class PixiUnpackBackend:
    """Runs `pixi-unpack -o DIR -e NAME BUNDLE`, which makes DIR/NAME and bakes that path in.

    So DIR and NAME are chosen such that the environment is born at its final prefix; it could not be moved there later.
    The bundle is given as the directory that was hashed by us before, as pixi-unpack verifies no sha256.
    """

    name = "pixi-unpack"

    def __init__(self, program: str = "", run: RunTool = run_tool) -> None:
        self._program = program
        self._run = run

    def problem(self, bundle: UnpackedBundle) -> str:
        """Say why this backend cannot install that bundle here (with the mend), or ""."""
        if bundle.info.kind != PIXI_PACK:
            return f"it installs {PIXI_PACK} bundles, and this one is of kind {bundle.info.kind}"
        if not _find(self._program):
            where = f"{self._program} is not a program" if self._program else "pixi-unpack is not on PATH"
            return f"{where}; set AUTO_INFER_SGLANG_PIXI_UNPACK_BIN to its path"
        return ""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        """Install into `prefix`; see `Backend.install`.

        Raises:
            InstallError: pixi-unpack is missing or failed, or left something else than an environment at `prefix`.
        """
        check_prefix(prefix)
        program = _find(request.pixi_unpack_bin or self._program)
        if not program:
            raise InstallError(
                "cannot install with pixi-unpack: there is none; set AUTO_INFER_SGLANG_PIXI_UNPACK_BIN to its path"
            )
        store = Store(request.project_dir)
        work = f"{store.cache_dir}/pixi-unpack"
        store.remove(work)
        os.makedirs(f"{work}/tmp")
        folder = os.path.dirname(prefix)
        os.makedirs(folder, exist_ok=True)
        progress.stage("unpack with pixi-unpack")
        argv = render_argv(program, bundle.root, prefix)
        result = self._run(
            argv, env=render_environment(work), cwd=work, timeout_s=TIMEOUT_S, on_tick=lambda: progress.advance(0)
        )
        if result.returncode != 0:
            raise InstallError(
                f"cannot install with pixi-unpack: {join_causes(result)} ({result.ending}); "
                "check the bundle with: infer-dev bundle verify, or set AUTO_INFER_SGLANG_INSTALLER=rattler"
            )
        if not os.path.isdir(f"{prefix}/conda-meta"):
            raise InstallError(
                f"cannot install with pixi-unpack: it ended well and made no environment at {prefix}; "
                "use the pixi-unpack that fits the bundle's pixi-pack, or set AUTO_INFER_SGLANG_INSTALLER=rattler"
            )
        _keep_script(folder, prefix)
        store.remove(work)

    def activation(self, prefix: str) -> Variables:
        """Return what pixi-unpack's own script sets; without one, the plain variables of a conda environment.

        Raises:
            InstallError: the script fails.
        """
        script = f"{prefix}/{_SCRIPT}"
        if not os.path.exists(script):
            return conda_activation(prefix)
        return read_activation(prefix, f". '{script}'")


def render_argv(program: str, bundle_dir: str, prefix: str) -> tuple[str, ...]:
    """Render the command line; the shell is named, as pixi-unpack would else guess it from its parent."""
    folder, name = os.path.split(prefix)
    return (program, "--output-directory", folder, "--env-name", name, "--shell", "bash", bundle_dir)


def render_environment(work: str) -> dict[str, str]:
    """Render the tool's whole environment; what it unpacks and caches stays on the filesystem of the environment."""
    return {
        "PATH": SYSTEM_PATH,
        "HOME": work,
        "TMPDIR": f"{work}/tmp",
        "XDG_CACHE_HOME": f"{work}/cache",
        "RATTLER_CACHE_DIR": f"{work}/cache/rattler",
        "UV_CACHE_DIR": f"{work}/cache/uv",
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
    }


def _find(program: str) -> str:
    """Return the program's path, of the given one or the one on PATH; "" when it cannot be run."""
    return shutil.which(program or "pixi-unpack") or ""


def _keep_script(folder: str, prefix: str) -> None:
    script = f"{folder}/activate.sh"
    if os.path.isfile(script):
        os.replace(script, f"{prefix}/{_SCRIPT}")
