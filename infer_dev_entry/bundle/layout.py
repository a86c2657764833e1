"""What a bundle holds, from its metadata and the list of its files: packages, records, and what does not fit. Pure.

Errors give reason and mend; `unpack` puts `cannot use bundle PATH: ` in front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from infer_dev_entry.bundle.contents import render_name
from infer_dev_entry.bundle.metadata import (
    PIXI_PACK_NAME,
    REQUIREMENTS_NAME,
    Requirement,
    Sidecar,
    normalise_name,
    parse_pixi_pack,
    parse_repodata,
    parse_requirements,
    parse_sidecar,
    parse_wheel_name,
)
from infer_dev_entry.bundle.model import PIXI_PACK, SIDECAR_NAME, WHEELS, BundleInfo, Package
from infer_dev_entry.errors import BundleError

ROOT_MARKS = (PIXI_PACK_NAME, SIDECAR_NAME, REQUIREMENTS_NAME)
_NO_SIDECAR = Sidecar(kind="", platform="", python="", files={}, activation=(), verify_command=())
_CONDA_SUFFIXES = (".conda", ".tar.bz2")
_MACHINES = {"x86_64": "64", "amd64": "64", "i686": "32", "arm64": "arm64", "aarch64": "aarch64", "ppc64le": "ppc64le"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A bundle's description: `info` for others, and the records that only the check of its files needs."""

    info: BundleInfo
    sidecar: Sidecar
    requirements: tuple[Requirement, ...]


def parse_layout(texts: Mapping[str, bytes], digests: Mapping[str, str]) -> Layout:
    """Parse a bundle's metadata (path → text), given its files: path → sha256, or "" where it was not computed.

    Raises:
        BundleError: it is no bundle, of another version, or its metadata is of the wrong form or contradicts itself.
    """
    sidecar = parse_sidecar(texts[SIDECAR_NAME]) if SIDECAR_NAME in texts else _NO_SIDECAR
    kind = sidecar.kind or (PIXI_PACK if PIXI_PACK_NAME in texts else WHEELS if REQUIREMENTS_NAME in texts else "")
    if not kind:
        raise BundleError(
            f"it holds neither {PIXI_PACK_NAME} nor {REQUIREMENTS_NAME}, so it is no bundle; make one with "
            "infer-dev bundle build, or with pixi-pack"
        )
    needed = PIXI_PACK_NAME if kind == PIXI_PACK else REQUIREMENTS_NAME
    if needed not in texts:
        raise BundleError(f"{SIDECAR_NAME} says that it is of kind {kind}, but {needed} is missing; build it again")
    parse = _parse_pixi_pack_layout if kind == PIXI_PACK else _parse_wheels_layout
    return parse(texts, digests, sidecar)


def _parse_pixi_pack_layout(texts: Mapping[str, bytes], digests: Mapping[str, str], sidecar: Sidecar) -> Layout:
    platform = parse_pixi_pack(texts[PIXI_PACK_NAME])
    if sidecar.platform not in ("", platform):
        raise BundleError(
            f"{PIXI_PACK_NAME} says platform {platform}, {SIDECAR_NAME} says {sidecar.platform}; build it again"
        )
    conda = tuple(_read_channels(texts, platform))
    wheels = tuple(
        _wheel_package(path, sha256=_choose(digests[path], _sidecar_hashes(sidecar, path)))
        for path in _wheel_paths(digests, "pypi")
    )
    info = BundleInfo(
        kind=PIXI_PACK,
        platform=platform,
        python="" if any(package.name == "python" for package in conda) else sidecar.python or _guess_python(wheels),
        packages=conda + wheels,
        verify_command=sidecar.verify_command,
        activation=sidecar.activation,
        has_sidecar=sidecar is not _NO_SIDECAR,
        warnings=tuple(_warn_unhashed(conda + wheels)),
    )
    return Layout(info=info, sidecar=sidecar, requirements=())


def _read_channels(texts: Mapping[str, bytes], platform: str) -> Iterator[Package]:
    for path in sorted(texts):
        if not path.startswith("channel/"):
            continue
        subdir = path.split("/")[1]
        if subdir not in (platform, "noarch"):
            raise BundleError(f"it has packages in {render_name(path)}, but is for platform {platform}; build it again")
        yield from parse_repodata(texts[path], subdir)


def _parse_wheels_layout(texts: Mapping[str, bytes], digests: Mapping[str, str], sidecar: Sidecar) -> Layout:
    requirements = parse_requirements(texts[REQUIREMENTS_NAME])
    allowed = _allowed_hashes(requirements)
    wheels = []
    for path in _wheel_paths(digests, "wheels"):
        hashes = allowed.get(normalise_name(parse_wheel_name(path)[0]), frozenset())
        noted = _sidecar_hashes(sidecar, path)
        wheels.append(_wheel_package(path, sha256=_choose(digests[path], hashes & noted or noted or hashes)))
    packages = tuple(wheels)
    info = BundleInfo(
        kind=WHEELS,
        platform=sidecar.platform or _guess_platform(packages),
        python=sidecar.python or _guess_python(packages),
        packages=packages,
        verify_command=sidecar.verify_command,
        activation=sidecar.activation,
        has_sidecar=sidecar is not _NO_SIDECAR,
    )
    return Layout(info=info, sidecar=sidecar, requirements=requirements)


def _allowed_hashes(requirements: Iterable[Requirement]) -> dict[str, frozenset[str]]:
    """Return name → hashes; a package may have several lines, for several machines."""
    allowed: dict[str, frozenset[str]] = {}
    for requirement in requirements:
        allowed[requirement.name] = allowed.get(requirement.name, frozenset()) | requirement.hashes
    return allowed


def find_faults(layout: Layout, digests: Mapping[str, str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Name everything in which the bundle's files (path → sha256, path → size) differ from its own records."""
    faults: dict[str, str] = {}
    for package in layout.info.packages:
        _note_difference(faults, package.path, package.sha256, digests)
        if package.size and package.size != sizes.get(package.path, package.size):
            reason = f"has {sizes[package.path]} bytes, the record says {package.size}"
            faults.setdefault(package.path, reason)
    for path, sha256 in layout.sidecar.files.items():
        _note_difference(faults, path, sha256, digests)
    allowed = _allowed_hashes(layout.requirements)
    for package in layout.info.wheels:
        hashes = allowed.get(normalise_name(package.name), frozenset())
        if hashes and digests.get(package.path, "") not in hashes:
            faults.setdefault(package.path, "is corrupt: requirements.txt has other hashes for it")
    for path in _find_unrecorded(layout, digests):
        faults.setdefault(path, "is recorded nowhere")
    named = [f"{render_name(path)} {reason}" for path, reason in sorted(faults.items())]
    return (*named, *_find_absent(layout))


def _note_difference(faults: dict[str, str], path: str, sha256: str, digests: Mapping[str, str]) -> None:
    if path not in digests:
        faults.setdefault(path, "is missing")
    elif sha256 and sha256 != digests[path]:
        faults.setdefault(path, f"is corrupt: its sha256 is {digests[path][:12]}…, the record says {sha256[:12]}…")


def _find_unrecorded(layout: Layout, paths: Iterable[str]) -> Iterator[str]:
    """Yield every package file that a backend could pick up although nothing vouches for it."""
    conda = {package.path for package in layout.info.conda_packages}
    names = {requirement.name for requirement in layout.requirements}
    files = layout.sidecar.files
    for path in paths:
        is_wheel, is_conda = path.endswith(".whl"), path.startswith("channel/") and path.endswith(_CONDA_SUFFIXES)
        is_unknown = is_wheel and layout.info.kind == WHEELS and normalise_name(parse_wheel_name(path)[0]) not in names
        if is_unknown or (is_conda and path not in conda) or ((is_wheel or is_conda) and files and path not in files):
            yield path


def _find_absent(layout: Layout) -> Iterator[str]:
    """Name every requirement without a wheel; one with a marker may be for other machines."""
    there = {normalise_name(package.name) for package in layout.info.packages}
    for requirement in layout.requirements:
        if requirement.name not in there and not requirement.is_conditional and layout.info.kind == WHEELS:
            yield f"the wheel of {requirement.name}=={requirement.version} is missing"


def _wheel_paths(paths: Iterable[str], folder: str) -> list[str]:
    return sorted(
        path for path in paths if path.startswith(f"{folder}/") and path.endswith(".whl") and path.count("/") == 1
    )


def _wheel_package(path: str, *, sha256: str) -> Package:
    name, version, *_ = parse_wheel_name(path)
    return Package(kind="wheel", path=path, name=name, version=version, sha256=sha256, size=0)


def _sidecar_hashes(sidecar: Sidecar, path: str) -> frozenset[str]:
    return frozenset({sidecar.files[path]}) if path in sidecar.files else frozenset()


def _choose(found: str, allowed: Collection[str]) -> str:
    """Return the record that a file is held to: the one that it meets, else any; "" when it cannot be told yet."""
    if found in allowed:
        return found
    return min(allowed, default="") if found or len(allowed) == 1 else ""


def _warn_unhashed(packages: Iterable[Package]) -> Iterator[str]:
    unhashed = sum(not package.sha256 for package in packages)
    if unhashed:
        yield (
            f"the bundle records no sha256 for {unhashed} of its packages (pixi-pack drops those of wheels), so only "
            "AUTO_INFER_SGLANG_BUNDLE_SHA256 vouches for them; infer-dev bundle build records them all"
        )


def _guess_python(wheels: Iterable[Package]) -> str:
    """Return the minor version that the wheels' tags agree on, or ""."""
    found = set()
    for package in wheels:
        _, _, pythons, abis, _ = parse_wheel_name(package.path)
        # An abi3 wheel serves later versions too.
        found |= {tag for tag in pythons if tag in abis and tag.startswith("cp3") and tag[3:].isdigit()}
    return f"3.{found.pop()[3:]}" if len(found) == 1 else ""


def _guess_platform(wheels: Iterable[Package]) -> str:
    """Return the platform, in conda's words, that the wheels' tags agree on, or ""."""
    tags = {tag for package in wheels for tag in parse_wheel_name(package.path)[4] if tag != "any"}
    found = {_conda_platform(tag) for tag in tags}
    return found.pop() if len(found) == 1 else ""


def _conda_platform(tag: str) -> str:
    system = next((name for word, name in (("linux", "linux"), ("macosx", "osx"), ("win", "win")) if word in tag), "")
    machine = next((word for word in _MACHINES if tag.endswith(word)), "")
    return f"{system}-{_MACHINES[machine]}" if system and machine else ""
