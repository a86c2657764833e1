"""The backend `pixi`: pixi itself solves and installs the template's manifest from the bundle's channel, offline."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from infer_dev_entry.bundle.model import PIXI_PACK, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH, Variables
from infer_dev_entry.install.conda_activation import bare_environment, changed_variables
from infer_dev_entry.install.model import InstallRequest, Progress
from infer_dev_entry.install.pixi_manifest import has_task, patch_manifest
from infer_dev_entry.install.prefix import check_prefix
from infer_dev_entry.install.processes import RunTool, run_tool
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.uv import join_causes

TIMEOUT_S = 3600.0
HOOK_TIMEOUT_S = 120.0

_MANIFEST = "pixi.toml"
_MANIFEST_MAX_BYTES = 1 << 20
_HOOK_MAX_BYTES = 4 << 20
# The manifest that comes with the package, and where it lies in a checkout.
_TEMPLATES = ("sglang-pixi-template", "../docker/sglang-pixi-template")


class PixiBackend:
    """Makes `prefix` a pixi workspace, and links what an environment has at its top to the one that pixi made in it.

    pixi always installs into `<workspace>/.pixi/envs/<name>` and bakes that path in. So the workspace lies at its final
    place, and `bin`, `lib` and the others at its top are links: `<prefix>/bin/python` works as in every other backend.
    """

    name = "pixi"

    def __init__(self, program: str = "", run: RunTool = run_tool) -> None:
        self._program = program
        self._run = run

    def problem(self, bundle: UnpackedBundle) -> str:
        """Say why this backend cannot install that bundle here (with the mend), or ""."""
        if bundle.info.kind != PIXI_PACK:
            return f"it installs {PIXI_PACK} bundles, and this one is of kind {bundle.info.kind}"
        if not self._find():
            return "pixi is not on PATH; install pixi in the image"
        if importlib.util.find_spec("tomlkit") is None:
            return "tomlkit is not installed; install it with: pip install tomlkit"
        return ""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        """Install into `prefix`; see `Backend.install`.

        Raises:
            InstallError: the template or the prefix will not do, or pixi failed.
        """
        environment = request.pixi_environment
        real_prefix = f"{prefix}/.pixi/envs/{environment}"
        check_prefix(real_prefix)
        source = find_template(request.pixi_template_dir)
        manifest = patch_manifest(
            _read(source),
            source=source,
            environment=environment,
            platform=bundle.info.platform,
            has_wheels=bool(bundle.info.wheels),
        )
        store = Store(request.project_dir)
        work = f"{store.cache_dir}/pixi"
        store.remove(work)
        os.makedirs(f"{work}/tmp")
        os.makedirs(prefix)
        Path(prefix, _MANIFEST).write_text(manifest, encoding="utf-8")
        at = ("--environment", environment, "--manifest-path", f"{prefix}/{_MANIFEST}")
        with _beside_manifest(bundle.root, prefix):
            # The template's lock names the channels of its build, so it is solved anew, from what the bundle has.
            self._step(progress, ("lock", *at[2:]), prefix, work)
            self._step(progress, ("install", "--frozen", *at), prefix, work)
            if not os.path.isdir(f"{real_prefix}/conda-meta"):
                raise InstallError(
                    f"cannot install with pixi: it ended well and made no environment at {real_prefix}; "
                    "set AUTO_INFER_SGLANG_INSTALLER=rattler"
                )
            if has_task(manifest, "verify") and not request.skip_verify:
                self._step(progress, ("run", "--as-is", *at, "verify"), prefix, work)
        link_top(prefix, environment)
        store.remove(work)

    def activation(self, prefix: str) -> Variables:
        """Return what pixi's own activation of the environment sets.

        Raises:
            InstallError: pixi fails, or answers something else.
        """
        answer = f"{prefix}/.pixi/activation.json"
        environment = _find_environment(prefix)
        # A shell, as the answer is one long line of JSON, which the tail of a tool's output would cut.
        argv = (
            *("/bin/sh", "-c", 'answer=$1; shift; exec "$@" > "$answer"', "sh", answer),
            *(self._find(), "shell-hook", "--json", "--frozen", "--no-install"),
            *("--environment", environment, "--manifest-path", f"{prefix}/{_MANIFEST}"),
        )
        env = bare_environment() | {"PIXI_NO_CONFIG": "1", "PIXI_OFFLINE": "1", "NO_COLOR": "1"}
        result = self._run(argv, env=env, cwd=prefix, timeout_s=HOOK_TIMEOUT_S)
        if result.returncode != 0:
            raise InstallError(
                f"cannot activate {prefix}: pixi shell-hook: {join_causes(result)} ({result.ending}); "
                f"see the scripts in {prefix}/etc/conda/activate.d"
            )
        return changed_variables(parse_hook(_read(answer, _HOOK_MAX_BYTES)), bare_environment())

    def _step(self, progress: Progress, words: Sequence[str], prefix: str, work: str) -> None:
        program = self._find()
        if not program:
            raise InstallError("cannot install with pixi: it is not on PATH; install pixi in the image")
        progress.stage(f"pixi {words[0]}")
        result = self._run(
            (program, *words),
            env=render_environment(work),
            cwd=prefix,
            timeout_s=TIMEOUT_S,
            on_tick=lambda: progress.advance(0),
        )
        if result.returncode != 0:
            raise InstallError(
                f"cannot install with pixi: pixi {words[0]}: {join_causes(result)} ({result.ending}); "
                "check that the template is the one that the bundle was built from, "
                "or set AUTO_INFER_SGLANG_INSTALLER=rattler"
            )

    def _find(self) -> str:
        return shutil.which(self._program or "pixi") or ""


def render_environment(work: str) -> dict[str, str]:
    """Render pixi's whole environment: no user configuration, no network, caches on the environment's filesystem."""
    return {
        "PATH": SYSTEM_PATH,
        "HOME": work,
        "TMPDIR": f"{work}/tmp",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "PIXI_CACHE_DIR": f"{work}/cache",
        "PIXI_HOME": f"{work}/home",
        "PIXI_NO_CONFIG": "1",
        "PIXI_NO_PROGRESS": "1",
        "PIXI_OFFLINE": "1",
    }


def find_template(template_dir: str) -> str:
    """Return the path of the manifest to use: of the given template, else of the packaged one.

    Raises:
        InstallError: there is none.
    """
    package = Path(__file__).parent.parent
    folders = [Path(template_dir)] if template_dir else [package / name for name in _TEMPLATES]
    for folder in folders:
        if (folder / _MANIFEST).is_file():
            return str((folder / _MANIFEST).resolve())
    raise InstallError(
        f"cannot find {_MANIFEST} in {folders[0]}; set AUTO_INFER_SGLANG_PIXI_TEMPLATE_DIR to the bundle's template"
    )


def link_top(prefix: str, environment: str) -> None:
    """Link everything at the environment's top from the workspace's top, where nothing of that name is in the way."""
    real = f".pixi/envs/{environment}"
    for name in sorted(os.listdir(f"{prefix}/{real}")):
        if not os.path.lexists(f"{prefix}/{name}"):
            os.symlink(f"{real}/{name}", f"{prefix}/{name}")


def parse_hook(text: str) -> dict[str, str]:
    """Parse what `pixi shell-hook --json` answers.

    Raises:
        InstallError: it is something else.
    """
    try:
        found = json.loads(text)["environment_variables"]
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstallError(
            f"cannot read what pixi shell-hook --json answered: {type(error).__name__}: {text[:60]!r}; use another pixi"
        ) from error


@contextlib.contextmanager
def _beside_manifest(root: str, prefix: str) -> Iterator[None]:
    """Have the bundle's channel and wheels beside the manifest while pixi works; the bundle is deleted afterwards."""
    names = [name for name in ("channel", "pypi") if os.path.isdir(f"{root}/{name}")]
    for name in names:
        os.symlink(f"{root}/{name}", f"{prefix}/{name}")
    yield
    for name in names:
        os.unlink(f"{prefix}/{name}")


def _find_environment(prefix: str) -> str:
    found = sorted(path.parent.name for path in Path(prefix, ".pixi/envs").glob("*/conda-meta"))
    if len(found) != 1:
        raise InstallError(
            f"cannot activate {prefix}: {len(found)} environments in .pixi/envs; install again with --force"
        )
    return found[0]


def _read(path: str, limit_bytes: int = _MANIFEST_MAX_BYTES) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(limit_bytes)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InstallError(f"cannot read {path}: {reason}; check the file") from error
