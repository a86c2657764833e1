"""Find the lines of a log that may tell why a server ended."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_LINE_CHARS = 2000
_MAX_CAUSE_LINES = 12
# What engines write before a message: SGLang's clock and rank, uvicorn's level, llama.cpp's clock, torch's rank.
_PREFIX = re.compile(
    r"(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]\n]{0,40}\] ?)?(?:\[rank\d{1,5}\]: ?)?(?:(?:ERROR|CRITICAL):\s{1,8})?"
    r"(?:\d{1,4}\.\d\d\.\d{3}\.\d{3} [A-Z] )?"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_TRACEBACK = re.compile(r"(?:[\w .:-]{1,80}: )?Traceback \(most recent call last\):\s*$")
_CHAINED = re.compile(r"(?:During handling of|The above exception was) ")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]{0,120}(?:: |$)")
_WHAT = re.compile(r"\s{0,8}what\(\):\s")
_TROUBLE = (
    *("error", "fail", "cannot", "can't", "couldn't", "could not", "no such", "no space", "no module", "not enough"),
    *("not supported", "insufficient", "memory", "lost", "fallen", "killed", "crashed", "invalid", "unable", "unknown"),
    *("must be", "too old", "terminate called", "xid", "nccl warn"),
)
# A server that still worked after a fault did not die of it.
_WORK = re.compile(r"(?:Prefill|Decode) batch[,. \[]|slot +(?:release|print_timing)\b|srv +log_server_r\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A line that looks like trouble. `raised`: it ends a traceback.

    `text` goes on with the lines of its message, and with the exceptions that it was raised from.
    """

    line: str
    text: str
    raised: bool


def parse_causes(log: str) -> tuple[Cause, ...]:
    """Return what looks like trouble, in the order of the log; only what follows the last work, if there is any.

    Of exceptions raised from one another the last comes first: it is what the program makes of the others.
    """
    lines = [_clean(line) for line in re.split(r"[\r\n]+", log)]
    messages = [line[_prefix_length(line) :] for line in lines]
    worked = max((number for number, text in enumerate(messages) if _WORK.match(text)), default=-1)
    return _find_causes(lines[worked + 1 :], messages[worked + 1 :]) or _find_causes(lines, messages)


def last_line(log: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in map(_clean, reversed(re.split(r"[\r\n]+", log))) if line.strip()), "")


def _clean(line: str) -> str:
    return _CONTROL.sub("", line[: 2 * _MAX_LINE_CHARS])[:_MAX_LINE_CHARS]


def _prefix_length(line: str) -> int:
    found = _PREFIX.match(line)
    return found.end() if found else 0


def _find_causes(lines: list[str], messages: list[str]) -> tuple[Cause, ...]:
    found: list[Cause] = []
    in_traceback = False
    chain: int | None = None  # where in `found` the exceptions begin from which the next one is raised
    for number, text in enumerate(messages):
        if _TRACEBACK.match(text):
            in_traceback = True
        elif in_traceback and (not text or text[0].isspace()):
            continue
        elif in_traceback and _EXCEPTION.match(text):
            in_traceback = False
            raised = _cause(lines, messages, number, raised=True)
            if chain is None:
                chain = len(found)
            found.insert(chain, _chain(raised, found[chain:]))
        elif _CHAINED.match(text):
            continue
        elif _WHAT.match(text):
            found.append(_cause(lines, messages, number, raised=True))
        elif text and not text[0].isspace():
            in_traceback, chain = False, None
            if _is_trouble(text):
                found.append(_cause(lines, messages, number, raised=False))
    return tuple(found)


def _chain(raised: Cause, before: list[Cause]) -> Cause:
    text = "\n".join((raised.text, *(cause.text for cause in before[:1])))
    return Cause(line=raised.line, text=text[: 2 * _MAX_LINE_CHARS], raised=True)


def _is_trouble(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _TROUBLE)


def _cause(lines: list[str], messages: list[str], number: int, *, raised: bool) -> Cause:
    """Take the lines that a message goes on with: up to the next one that the program begins with its clock."""
    end = number + 1
    while end < min(len(lines), number + _MAX_CAUSE_LINES) and not _prefix_length(lines[end]):
        if _TRACEBACK.match(messages[end]) or _CHAINED.match(messages[end]):
            break
        end += 1
    text = "\n".join(messages[number:end])[: 2 * _MAX_LINE_CHARS]
    return Cause(line=messages[number].strip(), text=text.lstrip(), raised=raised)
