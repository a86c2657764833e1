"""Judge the installed environment: marker, torch's CUDA against the driver, the rights of the servers' user. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infer_dev_entry.doctor.gpu_checks import GpuFacts
from infer_dev_entry.doctor.rows import Row, fail, ok, skip, warn

# The oldest driver that serves every minor version of a CUDA major: NVIDIA's "CUDA Compatibility" has 450.80.02, 525
# and 580, the toolkit's release notes the first driver of each branch.
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
_CUDNN_FLOOR = (9, 15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What torch/version.py says. `cuda` is None for a build without CUDA."""

    version: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Versions in one environment; "" is not installed."""

    prefix: str
    is_there: bool = True
    sglang: str = ""
    torch: str = ""
    torch_cuda: tuple[int, int] | None = None
    cudnn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What the marker says, and whether it is true. Without a prefix there is no marker that can be read."""

    project_dir: str
    has_file: bool
    prefix: str = ""
    backend: str = ""
    is_in_use: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    verify_output: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the servers' user can run and read: pairs of a path and why not ("" for yes). `reads` None: not known."""

    user: str
    runs: tuple[tuple[str, str], ...]
    reads: tuple[tuple[str, str], ...] | None


def parse_torch(text: str) -> Torch | None:
    """Parse torch/version.py as text; None when it is not that."""
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"\n]{1,80})['\"]", text, re.MULTILINE)
    if version is None:
        return None
    cuda = re.search(r"^cuda\s*(?::[^=\n]*)?=\s*['\"](\d{1,3})\.(\d{1,3})", text, re.MULTILINE)
    return Torch(version=version[1], cuda=(int(cuda[1]), int(cuda[2])) if cuda else None)


def check_torch(environment: Environment, gpus: GpuFacts, *, wants_gpu: bool) -> list[Row]:
    """Judge whether the driver serves the CUDA that torch was built for, and cuDNN where SGLang minds it."""
    check = "torch and CUDA"
    if not environment.is_there:
        return [skip(check, f"there is no environment at {environment.prefix}")]
    if not environment.torch:
        mend = "install the bundle (infer-dev install), or correct python_path"
        return [fail(check, f"{environment.prefix} has no torch", mend) if wants_gpu else skip(check, "no torch here")]
    cuda = environment.torch_cuda
    if cuda is None:
        seen = f"torch {environment.torch} is built without CUDA"
        return [fail(check, seen, "build the bundle from a CUDA lock") if wants_gpu else ok(check, seen)]
    built = f"torch {environment.torch} is built for CUDA {_dotted(cuda)}"
    if gpus.cuda is None:
        return [skip(check, f"{built}; no driver to compare it with")]
    return [_check_cuda(check, built, cuda, gpus, gpus.cuda), *_check_cudnn(environment)]


def _check_cuda(check: str, built: str, cuda: tuple[int, int], gpus: GpuFacts, serves: tuple[int, int]) -> Row:
    has = f"driver {gpus.driver} serves CUDA {_dotted(serves)}"
    if serves >= cuda:
        return ok(check, f"{built}; {has}")
    oldest = OLDEST_DRIVER.get(cuda[0], "")
    if serves[0] < cuda[0]:
        least = f" to {oldest} or newer" if oldest else ""
        return fail(check, f"{built}; {has}", f"update the driver{least}, or install a bundle for CUDA {serves[0]}")
    if oldest and _numbers(gpus.driver) < _numbers(oldest):
        return fail(check, f"{built}; {has}", f"update the driver to {oldest} or newer")
    return ok(check, f"{built}; {has}, by minor-version compatibility")


def _check_cudnn(environment: Environment) -> list[Row]:
    """SGLang refuses to start with torch 2.9.1 beside a cuDNN that has a bug in Conv3d."""
    if not (environment.sglang and environment.torch.startswith("2.9.1") and environment.cudnn):
        return []
    if _numbers(environment.cudnn)[:2] >= _CUDNN_FLOOR:
        return [ok("cuDNN", environment.cudnn)]
    mend = "bundle nvidia-cudnn-cu12 9.15 or newer, or set SGLANG_DISABLE_CUDNN_CHECK=1 in [instance.<n>.env]"
    return [warn("cuDNN", f"{environment.cudnn} with torch {environment.torch}: SGLang may refuse to start", mend)]


def check_installed(installed: Installed, *, is_needed: bool) -> Row:
    """Judge the installed environment as a whole."""
    check = "installed environment"
    mend = "run infer-dev install, or set AUTO_INFER_SGLANG_BUNDLE_ON_BOOT=1 and AUTO_INFER_SGLANG_BUNDLE_PATH"
    if not installed.prefix:
        what = "a marker that cannot be read" if installed.has_file else "nothing is installed"
        seen = f"{installed.project_dir}: {what}"
        return fail(check, seen, mend) if is_needed else skip(check, seen)
    known = [
        f"{name} {installed.versions[name]}" for name in ("python", "torch", "sglang") if name in installed.versions
    ]
    seen = f"{installed.prefix}: {', '.join(known) or 'versions not known'} ({installed.backend})"
    if not installed.is_in_use:
        broken = f"{seen}: not in use, or not complete; a workspace must be mounted where it was installed"
        return fail(check, broken, mend) if is_needed else warn(check, broken, mend)
    if installed.warnings:
        return warn(check, f"{seen}; {installed.warnings[0]}")
    if not installed.verify_output:
        return warn(check, f"{seen}; it was never verified", "run infer-dev install --force, without --skip-verify")
    return ok(check, f"{seen}, verified")


def check_access(access: Access) -> list[Row]:
    """Judge what the servers' user may do."""
    check = f"files for user {access.user}"
    bad_runs = [f"cannot run {path}: {reason}" for path, reason in access.runs if reason]
    bad_reads = [f"cannot read {path}: {reason}" for path, reason in access.reads or () if reason]
    problems = [*bad_runs, *bad_reads]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        mend = f"give {access.user} the right (chmod, chown, or a mount with its uid), or set AUTO_INFER_SGLANG_USER"
        return [fail(check, "; ".join(problems[:3]) + more, mend)]
    if access.reads is None:
        return [skip(check, f"cannot look as {access.user}: no Python here can be run by that user")]
    if not access.runs and not access.reads:
        return []
    return [ok(check, f"{_count(access.runs, 'interpreter')} run, {_count(access.reads, 'file')} can be read")]


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:4])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
