"""Wheel locks as text: read what uv resolved, choose one wheel a package, render requirements with hashes. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infer_dev_entry.errors import BuildError

_HASH = re.compile(r"--hash[= ]sha256:([0-9a-f]{64})")
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(?:===?\s*([^\s;#\\]+)|@\s*[^\s;]+)")
_SIZE = re.compile(r"\s*#\s*(\d+) bytes\s*")
_MANYLINUX = re.compile(r"manylinux_2_(\d+)_")
# The glibc minors that the older names of manylinux stand for (PEP 600).
_OLD_MANYLINUX = (("manylinux2014", 17), ("manylinux2010", 12), ("manylinux1", 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One wheel of a lock. `size` is in bytes, 0 when nobody told it; `url` is where to get it (or a file's path)."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int = 0
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a lock says of one package: its version ("" for a direct URL), the hashes to accept, a size noted there."""

    name: str
    version: str
    hashes: tuple[str, ...]
    size: int = 0


def normalize(name: str) -> str:
    """Return the package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_pins(text: str) -> tuple[Pin, ...]:
    """Parse the pinned requirements of a file; other lines (options, unpinned requirements) are left out.

    A comment `# 123 bytes` right after an entry is its wheel's size, as `render_requirements` writes it.
    """
    pins: list[Pin] = []
    for line in text.replace("\\\n", " ").splitlines():
        size = _SIZE.fullmatch(line)
        if size and pins:
            pins[-1] = replace(pins[-1], size=int(size.group(1)))
        elif match := _PIN.match(line.strip()):
            name, version = normalize(match.group(1)), match.group(2) or ""
            pins.append(Pin(name=name, version=version, hashes=tuple(_HASH.findall(line))))
    return tuple(pins)


def is_lock(text: str) -> bool:
    """Say whether every requirement of the file is pinned and has hashes, so that nothing is left to resolve."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    return bool(wanted) and all(_PIN.match(line) and _HASH.search(line) for line in wanted)


def parse_pylock(text: str, python: str, pins: Mapping[str, Pin]) -> tuple[Wheel, ...]:
    """Choose one wheel of every package in uv's pylock.toml, which lists only those that the target can install.

    `python` is the target's minor version, `3.12`. A package in `pins` may use the hashes of its pin alone.

    Raises:
        BuildError: the text is no such lock, or packages have no wheel that can be used; every one is named.
    """
    try:
        packages = tomllib.loads(text)["packages"]
        faults: list[str] = []
        wheels = [_choose(package, python, pins.get(normalize(package["name"])), faults) for package in packages]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise BuildError(
            f"cannot read what uv resolved: {error!r}; uv is too old or too new for this release"
        ) from error
    if faults:
        count = "1 package" if len(faults) == 1 else f"{len(faults)} packages"
        raise BuildError(f"cannot use {count} of the resolution:\n" + "\n".join(faults))
    return tuple(sorted((wheel for wheel in wheels if wheel), key=lambda wheel: wheel.name))


def _choose(package: Mapping[str, Any], python: str, pin: Pin | None, faults: list[str]) -> Wheel | None:
    """Return the package's best wheel, or note a fault."""
    name, version = normalize(package["name"]), str(package.get("version", ""))
    entries = [entry for key in ("wheels", "archive") for entry in _as_list(package.get(key))]
    found = [wheel for entry in entries if (wheel := _read_entry(name, version, entry))]
    if not found:
        faults.append(f"{name} {version}: it has no wheel with a sha256 for this target; pin a version that has one")
        return None
    allowed = [wheel for wheel in found if pin is None or not pin.hashes or wheel.sha256 in pin.hashes]
    if not allowed:
        faults.append(f"{name} {version}: no wheel for this target has a hash of the lock; lock it again")
        return None
    best = max(allowed, key=lambda wheel: rank_wheel(wheel.filename, python))
    if pin is None or not pin.size or best.size or len(pin.hashes) > 1:
        return best
    return replace(best, size=pin.size)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_entry(name: str, version: str, entry: Mapping[str, Any]) -> Wheel | None:
    """Return the wheel of a pylock entry; None for what is no wheel or has no sha256."""
    url = str(entry.get("url") or entry.get("path") or "")
    filename = str(entry.get("name") or _unquote(re.split(r"[?#]", url)[0].rpartition("/")[2]))
    sha256 = str(entry.get("hashes", {}).get("sha256", ""))
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6) or len(sha256) != 64:
        return None
    size = int(entry.get("size", 0))
    return Wheel(name=name, version=version or parts[1], filename=filename, sha256=sha256, size=size, url=url)


def _unquote(name: str) -> str:
    """Return the file name that a URL's last part stands for: names of wheels are ASCII, `+` may be written %2B."""
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), name)


def rank_wheel(filename: str, python: str) -> tuple[int, int, int, int]:
    """Rank a wheel that the target can install, the highest first choice, in the order of installers (PEP 425).

    Its ABI is worth most, then the Python it was made for, then the newest glibc, then the build number.
    """
    *front, pythons, abis, platforms = filename.removesuffix(".whl").split("-")
    minor = python.replace(".", "")
    abi = 0
    if f"cp{minor}" in abis.split("."):
        abi = 3
    elif "abi3" in abis.split("."):
        abi = 2
    elif f"cp{minor}" in pythons.split("."):
        abi = 1
    newest = max(int(re.sub(r"\D", "", tag)[1:] or 0) for tag in pythons.split("."))
    build = int(re.match(r"\d*", front[2]).group() or 0) if len(front) == 3 else 0  # type: ignore[union-attr]
    return abi, newest, max(_glibc(tag) for tag in platforms.split(".")), build


def _glibc(tag: str) -> int:
    """Return the glibc minor that a platform tag asks for: 1 for a bare platform, 0 for any."""
    if match := _MANYLINUX.match(tag):
        return int(match.group(1))
    return next((minor for prefix, minor in _OLD_MANYLINUX if tag.startswith(prefix)), 0 if tag == "any" else 1)


def render_requirements(wheels: Iterable[Wheel], *, header: Iterable[str] = (), sizes: bool = False) -> str:
    """Return requirements with one hash each, sorted, without URLs; with `sizes`, a comment tells each wheel's."""
    lines = [f"# {line}".rstrip() for line in header]
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        lines += [f"{wheel.name}=={wheel.version} \\", f"    --hash=sha256:{wheel.sha256}"]
        if sizes and wheel.size:
            lines.append(f"    # {wheel.size} bytes")
    return "\n".join(lines) + "\n"
