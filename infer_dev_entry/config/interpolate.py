"""`${NAME}` in the strings of a document → the variables of this machine's environment: strict, once, and bounded.

What a variable holds is foreign: it is put in before the document is cleaned, so it passes the checks of a literal, and
it is never read again for more variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import REFUSED, Faults, Path
from infer_dev_entry.variables import FALSE_WORDS, TRUE_WORDS

# All that interpolation may add to one document; a file of references to one long variable must not fill the memory.
MAX_ADDED_CHARACTERS = 4 * 1024 * 1024

# `$${NAME}` is the text `${NAME}`. Anything else with a dollar sign ($HOME, ${1}, ${{ x }}) is left as it is.
_REFERENCE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")
# The shell's and Compose's other forms, which a person may take for ours; `$${NAME:?}` says that it is meant.
_OTHER_FORM = re.compile(r"(?<!\$)\$\{[A-Za-z_][A-Za-z0-9_]*(?::[?=+]|[-?=+])")
_INT = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?")


def interpolate_document(document: Mapping[str, object], host: Host, faults: Faults) -> dict[str, object]:
    """Return the document with the references in its strings, not its keys, replaced by what variables hold.

    A string with a variable that is not set is a fault and becomes REFUSED; on a host whose environment is not known it
    becomes REFUSED with a warning.
    """
    interpolator = _Interpolator(host, faults)
    found = {key: interpolator.replace(value, (key,)) for key, value in document.items()}
    interpolator.report()
    return found


class _Interpolator:
    """Walks one document; a variable is asked for once."""

    def __init__(self, host: Host, faults: Faults) -> None:
        self._host = host
        self._faults = faults
        self._values: dict[str, str | None] = {}
        self._unknown: dict[str, Path] = {}
        self._left = MAX_ADDED_CHARACTERS

    def replace(self, value: object, path: Path) -> object:
        if isinstance(value, dict):
            return {key: self.replace(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.replace(item, (*path, f"[{index}]")) for index, item in enumerate(value)]
        return self._replace_text(value, path) if isinstance(value, str) and "${" in value else value

    def _replace_text(self, text: str, path: Path) -> object:
        other = _OTHER_FORM.search(text)
        if other:
            mend = "write ${NAME} or ${NAME:-text}"
            self._faults.warn(path, f"{other[0]}…}} is no form that is read here, and stays as it is", mend)
        names = tuple(match[2] for match in _REFERENCE.finditer(text) if not match[1])
        missing = [match[2] for match in _REFERENCE.finditer(text) if self._is_missing(match)]
        if missing:
            self._take_missing(dict.fromkeys(missing), path)
            return REFUSED
        found = _REFERENCE.sub(self._value, text)
        self._left -= max(0, len(found) - len(text))
        if self._left < 0:
            return REFUSED  # `report` says so, once
        if names:
            self._faults.note_variables(path, names, found)
        return found

    def _is_missing(self, match: re.Match[str]) -> bool:
        return not match[1] and match[3] is None and self._read(match[2]) is None

    def _value(self, match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        # As in a shell, `:-` also replaces what is set and empty.
        value = self._read(match[2])
        return (value or match[3]) if match[3] is not None else value or ""

    def _read(self, name: str) -> str | None:
        if name not in self._values:
            self._values[name] = self._host.variable(name)
        return self._values[name]

    def _take_missing(self, names: Mapping[str, None], path: Path) -> None:
        for name in names:
            if self._host.knows_variables():
                mend = f"set it in infer-dev's environment, or write ${{{name}:-a default}}"
                self._faults.add(path, f"variable {name} is not set", f"{mend} ($${{{name}}} is the text itself)")
            else:
                self._unknown.setdefault(name, path)

    def report(self) -> None:
        """Say what concerns several values once."""
        for name, path in self._unknown.items():
            self._faults.warn(path, f"variable {name} is not set here; what it stands for is not checked")
        if self._left < 0:
            self._faults.add_line(f"its variables hold more than {MAX_ADDED_CHARACTERS} characters; use shorter ones")


def typed(kind: str, text: str) -> object:
    """Read a text that came from a variable, for a value of this kind; one that does not fit is returned as it is.

    `kind` is `bool`, `int` or `seconds`; words for true and false are those of infer-dev's own variables.
    """
    word = text.strip()
    if kind == "bool" and word.lower() in (*TRUE_WORDS, *FALSE_WORDS) and word:
        return word.lower() in TRUE_WORDS
    if kind == "int" and _INT.fullmatch(word):
        return int(word)
    if kind == "seconds" and _NUMBER.fullmatch(word):
        return float(word)
    return text
