"""Read what a config's downloads left on this disk, and whether the clients that fetch them are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from infer_dev_entry.doctor.download_checks import Download
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.models.inventory import row_of
from infer_dev_entry.models.wishes import read_wishes
from infer_dev_entry.settings import Settings

_CLIENTS = {"huggingface": "huggingface_hub", "modelscope": "modelscope_hub"}


def read_downloads(path: str, settings: Settings, environ: Mapping[str, str]) -> tuple[Download, ...]:
    """Look at every download of a config; none where it has faults, which are told as such."""
    if not path:
        return ()
    try:
        wishes = read_wishes(settings, environ, path)
    except ConfigError:
        return ()
    rows = [(wish, row_of(wish.target, wish)) for wish in wishes]
    return tuple(
        Download(
            names=wish.names,
            path=wish.target,
            source=wish.source,
            repo=wish.shown,
            state=row.state,
            note=row.note,
            size_bytes=row.size_bytes,
        )
        for wish, row in rows
    )


def lacking_sources() -> tuple[str, ...]:
    """Return the sources whose client is not installed beside us."""
    return tuple(source for source, package in _CLIENTS.items() if importlib.util.find_spec(package) is None)
