"""The words of a diagnosis: what is known of an end, the rules that explain it, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """What follows from an end. What has served with its present configuration is started again, but for a lost GPU."""

    RETRY = "retry"  # back off and start; counts towards max_restarts
    WAIT = "wait"  # the fault lies outside: back off and start, for ever
    # Something on this machine is missing: failed at once, waited for if the server had it before. A lost GPU is never
    # waited for: it comes back into another container only.
    HOLD = "hold"
    NEVER = "never"  # the configuration cannot work: failed at once


UNKNOWN = "unknown"
HUNG = "hung"
HOST_OOM = "host-oom"
GPU_LOST = "gpu-lost"
PORT_IN_USE = "port-in-use"
DISK_FULL = "disk-full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table; it applies when all that it names is so.

    `raised` are patterns of the message of an exception, `said` of a line that only the program itself begins like
    this; both are matched from their start. A rule with neither goes by the status alone. An exception outside of a
    traceback does not make a server fail at once: a prompt that is logged may look like one. `vague` rules explain what
    is often a mere consequence, and count when nothing else does. In `mend`, `{key}` becomes the key of the TOML with
    its present value.
    """

    kind: str
    policy: Policy
    summary: str
    mend: str
    engine: str = ""
    raised: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()
    signals: tuple[int, ...] = ()
    vague: bool = False

    @property
    def stops(self) -> bool:
        """True when a server that has never served is not started again."""
        return self.policy in (Policy.HOLD, Policy.NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """What is known of an end. `exit_code` or `signal` is None when the process ended otherwise, both when unknown.

    `ended` says it for people ("exited with status 2"); `oom` says whose memory was used up when the kernel killed for
    want of it. `log` is what this run wrote last.
    """

    engine: str
    argv: tuple[str, ...]
    ended: str
    exit_code: int | None = None
    signal: int | None = None
    oom: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What an end was. `line` is the line of the log that tells it, raw; `is_last`: it is merely the last one."""

    kind: str
    policy: Policy
    ended: str
    summary: str = ""
    mend: str = ""
    line: str = ""
    is_last: bool = False
