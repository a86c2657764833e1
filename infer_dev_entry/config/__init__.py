"""TOML text → servers: `resolve` reads, merges, fans out and checks a config, and names all its faults at once.

Names load at first use: PID 1 needs `facts` and `faults` alone, and the rest would cost its boot time and memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer_dev_entry.config.facts import Gpu, Host, NoHost
    from infer_dev_entry.config.plan import resolve
    from infer_dev_entry.config.programs import ResolveOptions

__all__ = ["Gpu", "Host", "NoHost", "ResolveOptions", "resolve"]

_HOMES = {"Gpu": "facts", "Host": "facts", "NoHost": "facts", "ResolveOptions": "programs", "resolve": "plan"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
