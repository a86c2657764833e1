"""What the environment asks for, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.variables import (
    DEFAULT_HELPER_DIR,
    DEFAULT_MODELS_DIR,
    DEFAULT_PROJECT_DIR,
    DEFAULT_RUN_DIR,
    FALSE_WORDS,
    INTERNAL_VARIABLES,
    MARK_VARIABLE,
    PREFIX,
    TRUE_WORDS,
    VARIABLES,
    read_values,
)

__all__ = [
    "DEFAULT_HELPER_DIR",
    "DEFAULT_MODELS_DIR",
    "DEFAULT_PROJECT_DIR",
    "DEFAULT_RUN_DIR",
    "FALSE_WORDS",
    "INTERNAL_VARIABLES",
    "MARK_VARIABLE",
    "PREFIX",
    "TRUE_WORDS",
    "VARIABLES",
    "Settings",
    "parse_settings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment asks for. Empty strings mean "not set". `warnings` are whole sentences for the log."""

    bundle_on_boot: bool
    bundle_path: str
    bundle_sha256: str
    bundle_verify: str
    project_dir: str
    pixi_environment: str
    pixi_template_dir: str
    installer: str
    pixi_unpack_bin: str
    on_boot: bool
    config: str
    overrides: str
    python: str
    user: str
    exit_on_error: bool
    model_download_on_boot: bool
    model_source: str
    log_format: str
    log_level: str
    log_mirror: bool
    run_dir: str
    helper_dir: str
    status_addr: str
    warnings: tuple[str, ...]

    @property
    def any_gate(self) -> bool:
        """True when boot has anything to do; otherwise PID 1 is a pure proxy for its CMD."""
        return self.bundle_on_boot or self.on_boot or self.model_download_on_boot


def parse_settings(environ: Mapping[str, str]) -> Settings:
    """Parse the environment; never raises, as odd values warn and fall back to the default."""
    values, warnings = read_values(environ)
    return Settings(**values, warnings=warnings)  # type: ignore[arg-type]
