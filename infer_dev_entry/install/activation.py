"""The activation environment: what an activated shell would add, worked out once, so that servers start without one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Where the NVIDIA container runtime and the CUDA images put their tools, then what every image has.
SYSTEM_PATH = "/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Variables = tuple[tuple[str, str], ...]

_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# What another activated environment left behind must not lead an interpreter astray.
_STRAY = ("PYTHON", "UV_", "VIRTUAL_ENV", "CONDA_", "PIXI_", "PIP_")


def plain_activation(prefix: str) -> Variables:
    """Return the activation of a venv, which is no more than its bin directory first on PATH."""
    return (("PATH", f"{prefix}/bin:{SYSTEM_PATH}"), ("VIRTUAL_ENV", prefix))


def conda_activation(prefix: str) -> Variables:
    """Return a conda environment's activation without its scripts, for one whose installer is not known."""
    return (
        ("CONDA_DEFAULT_ENV", prefix),
        ("CONDA_PREFIX", prefix),
        ("CONDA_SHLVL", "1"),
        ("PATH", f"{prefix}/bin:{SYSTEM_PATH}"),
    )


def merge_activation(base: Variables, extra: Variables, prefix: str) -> Variables:
    """Return `base` with the bundle's own variables over it; `$PREFIX`, `$CONDA_PREFIX` and variables of `base` expand.

    References to anything else stay as they are.
    """
    known = {"PREFIX": prefix, "CONDA_PREFIX": prefix} | dict(base)
    merged = dict(base)
    for name, value in extra:
        merged[name] = _REFERENCE.sub(lambda found: known.get(found[1] or found[2], found[0]), value)
        known[name] = merged[name]
    return tuple(sorted(merged.items()))


def activated_environ(environ: Mapping[str, str], activation: Variables) -> dict[str, str]:
    """Return an environment to run a program of the installed env in.

    The caller's own PATH entries come after the activation's; its Python, uv and conda variables are left out.
    """
    result = {name: value for name, value in environ.items() if not name.startswith(_STRAY)}
    own_path = result.get("PATH", "")
    result.update(activation)
    result["PATH"] = ":".join(_unique([*result.get("PATH", "").split(":"), *own_path.split(":")]))
    return result


def _unique(parts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(part for part in parts if part))
