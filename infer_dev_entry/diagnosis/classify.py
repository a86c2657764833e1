"""Classify an end: the first cause in the log beats the last line, and the most specific rule beats the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from infer_dev_entry.diagnosis.causes import Cause, last_line, parse_causes
from infer_dev_entry.diagnosis.model import HOST_OOM, UNKNOWN, Death, Diagnosis, Policy, Rule
from infer_dev_entry.diagnosis.rules import RULES

_KEY = re.compile(r"\{([a-z_]+)\}")


def classify(death: Death) -> Diagnosis:
    """Say why a server ended, as far as it can be told."""
    if death.oom:
        return _diagnose_oom(death)
    rules = [rule for rule in RULES if _may_apply(rule, death)]
    causes = parse_causes(death.log)
    for vague in (False, True):
        told = [rule for rule in rules if (rule.raised or rule.said) and rule.vague is vague]
        for cause in causes:
            for rule in told:
                if _explains(rule, cause):
                    return _diagnosis(rule, death, cause)
    mute = next((rule for rule in rules if not (rule.raised or rule.said)), None)
    raised = next((cause for cause in reversed(causes) if cause.raised), None)
    if mute is not None and raised is None:
        return _diagnosis(mute, death, None)
    line = raised.line if raised else last_line(death.log)
    return Diagnosis(kind=UNKNOWN, policy=Policy.RETRY, ended=death.ended, line=line, is_last=raised is None)


def _diagnose_oom(death: Death) -> Diagnosis:
    """The kernel's own word needs no log."""
    killed = death.signal == 9
    ended = f"was killed by the kernel: {death.oom}"
    if not killed:
        ended = f"{death.ended} after the kernel had killed a process: {death.oom}"
    line = last_line(death.log)
    return Diagnosis(kind=HOST_OOM, policy=Policy.RETRY, ended=ended, line=line, is_last=True)


def _may_apply(rule: Rule, death: Death) -> bool:
    return (
        rule.engine in ("", death.engine)
        and (not rule.exit_codes or death.exit_code in rule.exit_codes)
        and (not rule.signals or death.signal in rule.signals)
    )


def _explains(rule: Rule, cause: Cause) -> bool:
    if rule.said and _pattern(rule.said).match(cause.text):
        return True
    believed = cause.raised or not rule.stops
    return bool(rule.raised) and believed and _pattern(rule.raised).match(cause.text) is not None


@cache
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compiled at the first crash: most fleets never need them."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.DOTALL)


def _diagnosis(rule: Rule, death: Death, cause: Cause | None) -> Diagnosis:
    return Diagnosis(
        kind=rule.kind,
        policy=rule.policy,
        ended=death.ended,
        summary=rule.summary,
        mend=fill_keys(rule.mend, death.argv),
        line=cause.line if cause else last_line(death.log),
        is_last=cause is None,
    )


def fill_keys(mend: str, argv: Iterable[str]) -> str:
    """Replace each `{key}` by the key and its value in `argv`: `mem_fraction_static (now 0.9)`."""
    words = tuple(argv)
    return _KEY.sub(lambda match: _with_value(match[1], words), mend)


def _with_value(key: str, argv: tuple[str, ...]) -> str:
    value = _find_value(f"--{key.replace('_', '-')}", argv)
    return f"{key} (now {value})" if value else key


def _find_value(flag: str, argv: tuple[str, ...]) -> str:
    """Return the value of the flag's last occurrence, as argparse would."""
    for index in range(len(argv) - 1, -1, -1):
        if argv[index] == flag and index + 1 < len(argv):
            return argv[index + 1]
        if argv[index].startswith(f"{flag}="):
            return argv[index].partition("=")[2]
    return ""
