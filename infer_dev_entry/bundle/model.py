"""A bundle as data: what it holds, for which platform, and what is expected of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

PIXI_PACK = "pixi-pack"
WHEELS = "wheels"

SIDECAR_NAME = "infer-dev-bundle.json"
SIDECAR_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package file of a bundle.

    `path` is relative to the bundle's root, with `/`. `sha256` (hex) is what the bundle's own records expect: repodata
    for conda packages, the hashes of requirements.txt or the sidecar for wheels; "" when none records it. `size` is in
    bytes, 0 when not recorded.
    """

    kind: str  # "conda" or "wheel"
    path: str
    name: str
    version: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """What a bundle says of itself.

    `kind` is PIXI_PACK or WHEELS; `platform` is conda's word (`linux-64`); `python` is the minor version that wheels
    are for (`3.12`), "" when a conda Python is among the packages. `verify_command` and `activation` come from the
    sidecar. `warnings` are whole sentences.
    """

    kind: str
    platform: str
    python: str
    packages: tuple[Package, ...]
    verify_command: tuple[str, ...] = ()
    activation: tuple[tuple[str, str], ...] = ()
    has_sidecar: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def conda_packages(self) -> tuple[Package, ...]:
        """The conda packages, in the bundle's order."""
        return tuple(package for package in self.packages if package.kind == "conda")

    @property
    def wheels(self) -> tuple[Package, ...]:
        """The wheels, in the bundle's order."""
        return tuple(package for package in self.packages if package.kind == "wheel")

    def find_version(self, name: str) -> str:
        """Return the version of the package of that name, or ""."""
        wanted = name.lower().replace("_", "-")
        found = (package.version for package in self.packages if package.name.lower().replace("_", "-") == wanted)
        return next(found, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedBundle:
    """A bundle whose files lie in the directory `root`, every one of them hashed while it was written.

    `digest` is the sha256 of the archive (of a directory: of its sorted `path\\0sha256\\n` lines), `size_bytes` the
    archive's size, `files` maps relative path → sha256 of what lies there.
    """

    root: str
    info: BundleInfo
    digest: str
    size_bytes: int
    files: tuple[tuple[str, str], ...]
