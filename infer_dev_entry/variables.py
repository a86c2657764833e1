"""The environment contract: every variable that the entry reads has its name, default and meaning here, once.

Imported on the way to CMD with all gates off, so no dataclass here: that import alone costs 12 to 17 ms.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "AUTO_INFER_SGLANG_"
DEFAULT_PROJECT_DIR = "/hard/volume/workspace/sglang-pixi-offline"
DEFAULT_RUN_DIR = "/run/infer-dev"
DEFAULT_HELPER_DIR = "/soft/app/sglang"

TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off", "")

# name → (default as documented, meaning). docs/reference.md is generated from this table.
VARIABLES: dict[str, tuple[str, str]] = {
    PREFIX + "BUNDLE_ON_BOOT": ("0", "gate: install the bundle at boot; needs `AUTO_INFER_SGLANG_BUNDLE_PATH`"),
    PREFIX + "BUNDLE_PATH": (
        "",
        "the bundle: `.tar`, `.tar.gz`, `.tgz`, `.tar.zst`, a directory, or pixi-pack's `.sh`",
    ),
    PREFIX + "BUNDLE_SHA256": ("", "expected digest of that file; a mismatch never installs"),
    PREFIX + "BUNDLE_VERIFY": (
        "auto",
        "`auto`: trust the marker while the bundle's size, mtime and inode are unchanged; `always`: hash every boot",
    ),
    PREFIX + "PIXI_PROJECT_DIR": (DEFAULT_PROJECT_DIR, "where the environment lives"),
    PREFIX + "PROJECT_DIR": ("", "alias of `AUTO_INFER_SGLANG_PIXI_PROJECT_DIR`, which wins when both are set"),
    PREFIX + "PIXI_ENVIRONMENT": ("default", "environment name in the bundle's lock"),
    PREFIX + "PIXI_TEMPLATE_DIR": ("", "manifest and lock used by the `pixi` backend (default: the packaged template)"),
    PREFIX + "INSTALLER": ("auto", "`auto`, `rattler`, `wheelhouse`, `pixi` or `pixi-unpack`"),
    PREFIX + "PIXI_UNPACK_BIN": ("", "path of pixi-unpack"),
    PREFIX + "ON_BOOT": ("0", "gate: start servers at boot; needs `AUTO_INFER_SGLANG_CONFIG`"),
    PREFIX + "CONFIG": ("", "the TOML file; alone it never starts anything"),
    PREFIX + "OVERRIDES": ("", "JSON, deep-merged over the TOML"),
    PREFIX + "PYTHON": ("", "interpreter of the servers instead of the installed environment's"),
    PREFIX + "USER": ("", "user of installer and servers (default: `me` if that user exists, else the current one)"),
    PREFIX + "ON_ERROR": (
        "stay",
        "`stay`: log, mark unhealthy, keep the container for `docker exec`; `exit`: exit with the error's code",
    ),
    PREFIX + "MODEL_DOWNLOAD_ON_BOOT": ("0", "gate: download `[instance.<n>.model]` before the servers start"),
    PREFIX + "MODEL_SOURCE": ("huggingface", "`huggingface` or `modelscope`"),
    "INFER_DEV_LOG_FORMAT": ("", "`console` or `json` (default: `console` on a TTY, else `json`)"),
    "INFER_DEV_LOG_LEVEL": ("info", "`debug`, `info`, `warning` or `error`"),
    "INFER_DEV_LOG_MIRROR": ("0", "gate: copy every server's log lines to stdout, each behind `[name]`"),
    "INFER_DEV_RUN_DIR": (
        "",
        "sockets and supervisord's files (default: `/run/infer-dev`; a private dir when not root)",
    ),
    "INFER_DEV_HELPER_DIR": (DEFAULT_HELPER_DIR, "where the helper links for `docker exec` live"),
    "INFER_DEV_API_KEY": (
        "",
        "the key that `infer-dev smoke` and `infer_dev_entry.client` send, where a server's own cannot be read",
    ),
    "INFER_DEV_STATUS_ADDR": (
        "",
        "`host:port` of a read-only HTTP endpoint with `/status` and `/health` (default: off)",
    ),
}


# The fields of Settings that give boot something to do.
GATES = ("bundle_on_boot", "on_boot", "model_download_on_boot")


def read_values(environ: Mapping[str, str]) -> tuple[dict[str, str | bool], tuple[str, ...]]:
    """Return the fields of `Settings` by name, and the warnings: odd values warn and fall back to the default."""
    reader = _Reader(environ)
    project_dir = reader.text(PREFIX + "PIXI_PROJECT_DIR", "") or reader.text(PREFIX + "PROJECT_DIR", "")
    values: dict[str, str | bool] = {
        "bundle_on_boot": reader.gate(PREFIX + "BUNDLE_ON_BOOT"),
        "bundle_path": reader.text(PREFIX + "BUNDLE_PATH"),
        "bundle_sha256": reader.text(PREFIX + "BUNDLE_SHA256"),
        "bundle_verify": reader.choice(PREFIX + "BUNDLE_VERIFY", ("auto", "always")),
        "project_dir": project_dir or DEFAULT_PROJECT_DIR,
        "pixi_environment": reader.text(PREFIX + "PIXI_ENVIRONMENT"),
        "pixi_template_dir": reader.text(PREFIX + "PIXI_TEMPLATE_DIR"),
        "installer": reader.choice(PREFIX + "INSTALLER", ("auto", "rattler", "wheelhouse", "pixi", "pixi-unpack")),
        "pixi_unpack_bin": reader.text(PREFIX + "PIXI_UNPACK_BIN"),
        "on_boot": reader.gate(PREFIX + "ON_BOOT"),
        "config": reader.text(PREFIX + "CONFIG"),
        "overrides": reader.text(PREFIX + "OVERRIDES"),
        "python": reader.text(PREFIX + "PYTHON"),
        "user": reader.text(PREFIX + "USER"),
        "exit_on_error": reader.choice(PREFIX + "ON_ERROR", ("stay", "exit")) == "exit",
        "model_download_on_boot": reader.gate(PREFIX + "MODEL_DOWNLOAD_ON_BOOT"),
        "model_source": reader.choice(PREFIX + "MODEL_SOURCE", ("huggingface", "modelscope")),
        "log_format": reader.choice("INFER_DEV_LOG_FORMAT", ("", "console", "json")),
        "log_level": reader.choice("INFER_DEV_LOG_LEVEL", ("debug", "info", "warning", "error")),
        "log_mirror": reader.gate("INFER_DEV_LOG_MIRROR"),
        "run_dir": reader.text("INFER_DEV_RUN_DIR"),
        "helper_dir": reader.text("INFER_DEV_HELPER_DIR"),
        "status_addr": reader.text("INFER_DEV_STATUS_ADDR"),
    }
    reader.warn_misspelt()
    return values, tuple(reader.warnings)


class _Reader:
    """Reads typed values out of the environment and collects a warning for every odd one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.warnings: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        fallback = VARIABLES[name][0] if default is None else default
        return self._environ.get(name, "").strip() or fallback

    def gate(self, name: str) -> bool:
        word = self._environ.get(name, "").strip().lower()
        if word in TRUE_WORDS:
            return True
        if word not in FALSE_WORDS:
            self.warnings.append(
                f"{name}={_shown(self._environ[name])} is neither true (1, true, yes, on) "
                "nor false (0, false, no, off); it counts as false"
            )
        return False

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        default = VARIABLES[name][0]
        word = self._environ.get(name, "").strip().lower() or default
        if word in choices:
            return word
        listed = ", ".join(choice for choice in choices if choice)
        self.warnings.append(
            f"{name}={_shown(self._environ[name])} is not one of {listed}; using {default or 'the default'}"
        )
        return default

    def warn_misspelt(self) -> None:
        for name in sorted(self._environ):
            if not name.startswith(("AUTO_INFER_", "INFER_DEV_")) or name in VARIABLES or name in INTERNAL_VARIABLES:
                continue
            from difflib import get_close_matches  # only a misspelt name pays for this import

            near = get_close_matches(name, list(VARIABLES), n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; see docs/reference.md for the names"
            self.warnings.append(f"{name} is not a variable that infer-dev knows{hint}")


# Set by infer-dev itself in the environment of what it starts; never by users.
MARK_VARIABLE = "INFER_DEV_MARK"
INTERNAL_VARIABLES = (MARK_VARIABLE,)


def _shown(value: str) -> str:
    """Quote a foreign value for a one-line message, cut to a readable length."""
    return repr(value if len(value) <= 60 else value[:57] + "...")
