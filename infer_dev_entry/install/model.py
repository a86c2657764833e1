"""What the installer and its backends exchange. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from infer_dev_entry.bundle.model import UnpackedBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """What to install, and how. Paths are absolute; empty strings mean "not given"."""

    bundle_path: str
    project_dir: str
    expected_sha256: str = ""
    verify_always: bool = False
    backend: str = "auto"
    pixi_environment: str = "default"
    pixi_template_dir: str = ""
    pixi_unpack_bin: str = ""
    require_gpu: bool = False
    skip_verify: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEnv:
    """An environment that is complete and was verified.

    `prefix` is its real directory, `link` the stable path of the one in use (`<project_dir>/env`). `activation` is what
    an activated shell would add to the environment of a server.
    """

    prefix: str
    link: str
    backend: str
    bundle_sha256: str
    versions: Mapping[str, str]
    activation: tuple[tuple[str, str], ...]
    was_installed: bool  # False: the marker said that nothing was to be done


class Progress(Protocol):
    """Where long work reports; see install/progress.py for the bar and the log line."""

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        """A new stage begins; `total` 0 means unknown."""

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""

    def note(self, message: str) -> None:
        """Say something worth a line."""


class Backend(Protocol):
    """One way to turn an unpacked bundle into an environment."""

    name: str

    def problem(self, bundle: UnpackedBundle) -> str:
        """Say why this backend cannot install that bundle here (with the mend), or ""."""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        """Install into `prefix`, which does not exist yet and is final: prefixes are baked in.

        Every package of `bundle` has been hashed against its record already.

        Raises:
            InstallError: it failed; `prefix` is then removed by the caller.
        """

    def activation(self, prefix: str) -> tuple[tuple[str, str], ...]:
        """Return the variables that activation would set for `prefix`, PATH included."""
