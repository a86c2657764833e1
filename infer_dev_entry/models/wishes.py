"""Read from a config what is to be downloaded, and open the hubs for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from infer_dev_entry.config import NoHost, ResolveOptions
from infer_dev_entry.errors import SettingsError
from infer_dev_entry.host import expand_path, read_config
from infer_dev_entry.models.hub import Hub
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.settings import Settings


class TextHost(NoHost):
    """A host of which only the paths and the variables matter."""

    def knows_variables(self) -> bool:
        """True: what a variable stands for is what is downloaded."""
        return True

    def expand(self, path: str, /) -> str:
        """The absolute path, with a leading `~` expanded."""
        return expand_path(path)


def read_wishes(settings: Settings, environ: Mapping[str, str], config_path: str = "") -> tuple[ModelWish, ...]:
    """Return the downloads of a config (`config_path`, else the settings'); of the machine only `environ` is looked at.

    Raises:
        SettingsError: no config is named.
        ConfigError: the config's text has faults.
    """
    from infer_dev_entry.config.plan import resolve_downloads

    path = config_path or settings.config
    if not path:
        raise SettingsError(
            "cannot download models: no config is named; set AUTO_INFER_SGLANG_CONFIG to a TOML file, or name one"
        )
    options = ResolveOptions(
        overrides=settings.overrides,
        project_dir=settings.project_dir,
        engine_python=sys.executable,
        run_dir="/run",
        tmp_dir="/tmp",
        model_source=settings.model_source,
    )
    return resolve_downloads(read_config(path), source=path, options=options, host=TextHost(environ=environ))


class Hubs:
    """Opens each hub once; the libraries are imported only then."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._open: dict[str, Hub] = {}

    def __call__(self, wish: ModelWish) -> Hub:
        """Return the hub of a wish.

        Raises:
            ModelError: its library is not installed.
        """
        if wish.source not in self._open:
            self._open[wish.source] = _open(wish.source, self._environ)
        return self._open[wish.source]


def _open(source: str, environ: Mapping[str, str]) -> Hub:
    if source == "modelscope":
        from infer_dev_entry.models.modelscope import ModelScopeHub

        return ModelScopeHub(environ, os.environ)
    from infer_dev_entry.models.huggingface import HuggingFaceHub

    return HuggingFaceHub(environ, os.environ)
