"""One profile an engine: how its servers are called, probed and stopped. Pure data, read by the other rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLAG_KINDS = ("switch", "pair", "value", "list", "optional")
FLAG_TYPES = ("str", "int", "float", "json", "suffixed_int")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSpec:
    """A command-line flag. `name` has dashes.

    `kind` is `switch` (bare), `pair` (`--x` and `--no-x`), `value`, `list` (`--x a b`) or `optional` (`--x [value]`).
    `type` is `str`, `int`, `float`, `json` or `suffixed_int` (`32k`). `deprecated` names what replaces the flag ("-":
    nothing does). `versions` are those that have the flag in exactly this form; empty for engines that have one form.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = "value"
    type: str = "str"
    choices: tuple[str, ...] = ()
    deprecated: str = ""
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What the configuration, the prober and the stopper need to know of an engine."""

    name: str
    module: str
    default_host: str
    default_port: int
    model_flag: str
    startup_path: str
    liveness_path: str
    startup_deadline_s: float
    period_s: float
    timeout_s: float
    failure_threshold: int
    stall_timeout_s: float = 0.0
    progress_paths: tuple[str, ...] = ()
    counters_first: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    refused_environment: Mapping[str, str] = field(default_factory=dict)  # "NAME=value" → why it must not be set
    foreign_flags: Mapping[str, str] = field(default_factory=dict)  # another server's name for a flag → the mend
    translations: Mapping[str, str] = field(
        default_factory=dict
    )  # another engine's name → this engine's, accepted with a warning
    value_mends: Mapping[str, str] = field(default_factory=dict)  # "flag=value" → the value that was meant
    secret_flags: tuple[str, ...] = ()
    shorthands: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"


def profile_of(name: str) -> EngineProfile:
    """Return the profile of an engine; KeyError for a name that is not in `ENGINE_NAMES` or `GATEWAY_NAMES`."""
    return _profiles()[name]


ENGINE_NAMES = ("sglang", "llama_cpp")
GATEWAY_NAMES = ("nginx", "sglang-router")


def _profiles() -> Mapping[str, EngineProfile]:
    from infer_dev_entry.engines import llama_cpp, nginx, sglang, sglang_router  # they import this module's classes

    profiles = (sglang.PROFILE, llama_cpp.PROFILE, nginx.PROFILE, sglang_router.PROFILE)
    return {profile.name: profile for profile in profiles}
