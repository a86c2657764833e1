"""Verify a fresh environment: run the bundle's own command, or import what matters, and look for the GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.bundle.model import BundleInfo
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import Variables, activated_environ
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.processes import ToolResult, run_tool

# The import of torch and sglang from a cold network disk takes minutes.
VERIFY_TIMEOUT_S = 600.0

_OUTPUT_MAX_CHARS = 8192
_IMPORTS = ("torch", "sglang")
_ANSWER = "infer-dev-probe: "

# Runs in the environment's Python; argv names what to import. CUDA through torch where there is one, else its driver.
_PROBE = """
import ctypes, importlib, json, platform, sys
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    versions[name] = str(getattr(importlib.import_module(name), "__version__", ""))
torch = sys.modules.get("torch")
if torch is not None and hasattr(torch, "cuda"):
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
else:
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        gpus = count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except OSError:
        gpus = 0
print("\\ninfer-dev-probe: " + json.dumps({"versions": versions, "gpus": gpus}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the verification saw. `versions` are those that the environment itself told."""

    output: str
    versions: Mapping[str, str]
    gpus: int
    warnings: tuple[str, ...]


def verify_env(
    prefix: str,
    info: BundleInfo,
    activation: Variables,
    environ: Mapping[str, str],
    *,
    require_gpu: bool,
    progress: Progress,
) -> Verified:
    """Prove that the environment works; a machine without a GPU is a warning unless one is required.

    Raises:
        InstallError: it does not work, or takes longer than 600 s.
    """
    env = activated_environ(environ, activation)
    output = _run_command(prefix, info.verify_command, env, progress) if info.verify_command else ""
    imports = () if info.verify_command else tuple(name for name in _IMPORTS if info.find_version(name))
    probe = run_tool([_python(prefix), "-I", "-c", _PROBE, *imports], env=env, cwd=prefix, timeout_s=VERIFY_TIMEOUT_S)
    if probe.returncode != 0:
        what = f"import of {' and '.join(imports)}" if imports else "its Python"
        raise InstallError(f"cannot verify {prefix}: {what} failed: {_reason(probe)}; {_mend(probe)}")
    answer = _parse_answer(probe)
    gpus = int(answer.get("gpus", 0))
    wants_gpu = bool(info.find_version("torch"))
    if require_gpu and not gpus:
        raise InstallError(
            f"cannot verify {prefix}: CUDA sees no GPU, and one is required; start the container with --gpus all "
            "(NVIDIA container toolkit), or leave --require-gpu out"
        )
    warnings = (
        ("no GPU is visible to CUDA; the environment was verified without one",) if wants_gpu and not gpus else ()
    )
    output = output or f"imported {', '.join(imports) or 'nothing'}; GPUs: {gpus}"
    return Verified(
        output=output[-_OUTPUT_MAX_CHARS:], versions=dict(answer.get("versions", {})), gpus=gpus, warnings=warnings
    )


def _run_command(prefix: str, command: tuple[str, ...], env: Mapping[str, str], progress: Progress) -> str:
    own = f"{prefix}/bin/{command[0]}"
    argv = [own if "/" not in command[0] and os.path.exists(own) else command[0], *command[1:]]
    result = run_tool(
        argv, env=env, cwd=prefix, timeout_s=VERIFY_TIMEOUT_S, on_line=lambda line: progress.note(f"verify: {line}")
    )
    if result.returncode != 0:
        raise InstallError(
            f"cannot verify {prefix}: the bundle's command {' '.join(command)[:200]!r} ended with {result.ending}: "
            f"{result.last_line}; {_mend(result)}"
        )
    return "\n".join(result.tail)


def _python(prefix: str) -> str:
    path = f"{prefix}/bin/python"
    if not os.path.exists(path):
        raise InstallError(f"cannot verify {prefix}: it has no bin/python; build the bundle with a Python in it")
    return path


def _reason(result: ToolResult) -> str:
    """The exception's line, which need not be the last: libraries write more at exit."""
    errors = [line for line in result.tail if "Error: " in line or "No module named" in line]
    return errors[-1] if errors else f"{result.last_line} ({result.ending})"


def _mend(result: ToolResult) -> str:
    text = "\n".join(result.tail)
    if "GLIBC" in text or "GLIBCXX" in text:
        return "the image's libc is older than the bundle's packages want; use a newer base image"
    if "cannot open shared object file" in text:
        return "a library is missing; add its package to the bundle or to the image"
    return "build the bundle again, or see what is wrong with --skip-verify"


def _parse_answer(result: ToolResult) -> Mapping[str, Any]:
    for line in reversed(result.tail):
        if line.startswith(_ANSWER):
            try:
                data = json.loads(line.removeprefix(_ANSWER))
            except ValueError:
                continue
            return data if isinstance(data, dict) else {}
    return {}
