"""Collect every fault and warning of one config, and word them: where, what was expected, what was seen, the mend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

Path = tuple[str, ...]

OVERRIDES_NAME = "AUTO_INFER_SGLANG_OVERRIDES"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
LIST_INDEX = re.compile(r"\[[0-9]+\]")
SECRET_NAME = re.compile(r"KEY|TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHOWN_CHARACTERS = 60
SHORTEST_SECRET = 6  # a shorter text is no key, and stands in many words by chance
MANY_FAULTS = 200  # comparing a name with all of SGLang's flags takes milliseconds


class Refused:
    """Stands in the document for a value that a fault was already reported for, so that it gets no second one."""


REFUSED = Refused()


class Faults:
    """The faults and warnings found so far, each one line that starts with the source."""

    def __init__(self, source: str) -> None:
        self._source = render_source(source)
        self._overrides: Mapping[str, object] = {}
        self._variables: dict[Path, tuple[tuple[str, ...], str]] = {}
        self._faults: dict[str, None] = {}
        self._warnings: dict[str, None] = {}
        self._noted: set[str] = set()

    @property
    def faults(self) -> tuple[str, ...]:
        """All faults, in the order found, each once."""
        return tuple(self._faults)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, in the order found, each once."""
        return tuple(self._warnings)

    def nearest(self, name: str, known: Iterable[str], otherwise: str = "") -> str:
        """Word the mend of an unknown name: the nearest known one, else `otherwise`. A flood of faults gets none."""
        near = _nearest(name[:SHOWN_CHARACTERS], tuple(known)) if len(self._faults) < MANY_FAULTS else ""
        return f"did you mean {near}?" if near else otherwise

    def note_overrides(self, document: Mapping[str, object]) -> None:
        """Remember the overrides, so that a fault in a value of theirs names them."""
        self._overrides = document

    def overridden(self, path: Path) -> bool:
        """Whether the value at this path comes from the overrides."""
        node: object = self._overrides
        for key in path:
            if isinstance(node, list):
                return True
            if not isinstance(node, Mapping) or key not in node:
                return False
            node = node[key]
        return True

    def note_variables(self, path: Path, names: tuple[str, ...], text: str) -> None:
        """Remember that the text at this path was made with these variables, so that a fault in it names them."""
        self._variables[path] = (tuple(dict.fromkeys(names)), text)

    def from_variables(self, path: Path) -> bool:
        """Whether the text at this path was made with variables."""
        return path in self._variables

    def secret_texts(self) -> Mapping[str, Path]:
        """The texts that were made with variables that may hold secrets, with the first path of each."""
        secret: dict[str, Path] = {}
        for path, (names, text) in self._variables.items():
            if any(is_secret(name) for name in names) and len(text) >= SHORTEST_SECRET:
                secret.setdefault(text, path)
        return secret

    def add(self, path: Path, problem: str, mend: str = "") -> None:
        """Record a fault at a path ("" problems and paths are never passed; the mend may be empty)."""
        self._faults[self._line(path, problem, mend)] = None

    def add_line(self, problem: str, source: str = "") -> None:
        """Record a fault of the whole text, or of another source such as the overrides."""
        self._faults[f"{source or self._source}: {problem}"] = None

    def warn(self, path: Path, problem: str, mend: str = "") -> None:
        """Record a warning at a path."""
        self._warnings[self._line(path, problem, mend)] = None

    def note(self, subject: str, path: Path, problem: str, mend: str = "") -> None:
        """Record a warning that is said once a subject, at the first path: 256 instances may share what it says."""
        if subject not in self._noted:
            self._noted.add(subject)
            self.warn(path, problem, mend)

    def _line(self, path: Path, problem: str, mend: str) -> str:
        origin = f" (set by {OVERRIDES_NAME})" if path and self.overridden(path) else ""
        names, text = self._variables.get(path, ((), ""))
        if names:
            origin += f" (from {', '.join(f'${{{name}}}' for name in names)})"
        if text and any(is_secret(name) for name in names):
            problem, mend = (part.replace(shown(text), '"***"').replace(text, "***") for part in (problem, mend))
        return f"{self._source}: {render_path(path)}{origin}: {problem}{'; ' if mend else ''}{mend}"


def render_source(source: str) -> str:
    """Render a file name for one line of text: control characters and lone surrogates are escaped."""
    return source if source.isprintable() else ascii(source)


def render_path(path: Path) -> str:
    """Render a path as TOML writes it: dotted, with odd keys quoted."""
    text = ".".join(key if BARE_KEY.fullmatch(key) or LIST_INDEX.fullmatch(key) else shown(key) for key in path)
    return text.replace(".[", "[")


def shown(value: object) -> str:
    """Render a foreign value for one line, as JSON cut to a readable length; tables and lists by kind only."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        cut = value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 3] + "..."
        return json.dumps(cut, ensure_ascii=not cut.isprintable())
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)
    return f"a {type(value).__name__}"


def is_secret(name: str) -> bool:
    """Whether a variable of this name may hold a secret."""
    return bool(SECRET_NAME.search(name))


@lru_cache(maxsize=1024)
def _nearest(name: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches  # only a misspelt name pays for this import

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else ""
