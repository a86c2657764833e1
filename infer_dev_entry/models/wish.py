"""What shall be downloaded, and the rules for its names: nothing of it may lead out of its directory. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

SOURCES = ("huggingface", "modelscope")
MARKER_NAME = ".infer-dev-model.json"
# Ours beside and in a model's directory; a repository's file of such a name could pose as a record of ours.
OWN_PREFIX = ".infer-dev-"

MAX_PATTERNS = 200
_MAX_NAME_BYTES = 255  # of one component, ext4's and most others' limit
_MAX_PATH_BYTES = 1024
_MAX_DEPTH = 32

_REPO_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,199}")
_SPLIT_GGUF = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.gguf")
_UNPRINTABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWish:
    """One model directory to be: `target` is absolute.

    `revision` "" is the repository's default branch. `needed` are the files, relative to `target`, that a server will
    open; a repository without one of them is not what was meant. `names` are the instances that asked.
    """

    source: str
    repo_id: str
    target: str
    revision: str = ""
    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """`org/name`, with the revision where one is asked for."""
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id

    def joined(self, other: ModelWish) -> ModelWish | None:
        """Return both as one, when they want files of the same repository in the same place; None when they clash."""
        alike = replace(self, allow_patterns=(), needed=(), names=()) == replace(
            other, allow_patterns=(), needed=(), names=()
        )
        if not alike:
            return None
        everything = not self.allow_patterns or not other.allow_patterns
        return replace(
            self,
            allow_patterns=() if everything else _merged(self.allow_patterns, other.allow_patterns),
            needed=_merged(self.needed, other.needed),
            names=_merged(self.names, other.names),
        )


def _merged(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def default_target(models_dir: str, repo_id: str) -> str:
    """Return where a repository goes when nothing names a directory."""
    return f"{models_dir.rstrip('/')}/{repo_id}"


def repo_problem(repo_id: str) -> str:
    """Say why this is no `org/name` of a hub, or ""."""
    parts = repo_id.split("/")
    if len(parts) != 2:
        return "expected org/name"
    if not all(_REPO_PART.fullmatch(part) for part in parts):
        return "expected org/name of letters, digits, dots, dashes and underscores, at most 96 each"
    if ".." in repo_id or any(part.endswith(".") for part in parts):
        return "holds .., or a part that ends with a dot"
    return ""


def revision_problem(revision: str) -> str:
    """Say why this is no branch, tag or commit, or ""."""
    if not _REVISION.fullmatch(revision):
        return "expected a branch, tag or commit of at most 200 letters, digits and ._/+@-"
    if ".." in revision or "//" in revision or revision.endswith(("/", ".lock")):
        return "is no name that git takes"
    return ""


def pattern_problem(pattern: str) -> str:
    """Say why this is no pattern of files in a repository, or ""."""
    if not pattern or len(pattern) > _MAX_PATH_BYTES:
        return f"expected 1 to {_MAX_PATH_BYTES} characters"
    if _UNPRINTABLE.search(pattern):
        return "holds a control character"
    if pattern.startswith("/") or ".." in pattern.split("/"):
        return "is matched against paths within the repository: no leading / and no .."
    return ""


def target_problem(target: str) -> str:
    """Say why no model can be put in this directory, or ""."""
    if not target.startswith("/"):
        return "is not an absolute path"
    if _UNPRINTABLE.search(target):
        return "holds a control character"
    parts = PurePosixPath(target).parts
    if ".." in parts:
        return "holds .."
    if len(parts) < 2:
        return "is the root directory"
    if any(len(part.encode()) > _MAX_NAME_BYTES - 32 for part in parts):  # staging's name is a little longer
        return "has too long a name in it"
    return ""


def file_problem(path: str) -> str:
    """Say why a file of that name in a repository is refused, or ""."""
    if not path or _UNPRINTABLE.search(path):
        return "an empty name, or one with control characters"
    if path.startswith("/") or "\\" in path:
        return "an absolute path, or one with backslashes"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "a path that leads elsewhere"
    if any(part.lower() == ".git" for part in parts):
        return "a path into .git"
    if parts[0].lower().startswith(OWN_PREFIX):
        return "a name that is kept for infer-dev"
    if len(parts) > _MAX_DEPTH or len(path.encode()) > _MAX_PATH_BYTES:
        return "too long a path"
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return "too long a name"
    return ""


def patterns_for(needed: str) -> tuple[str, ...]:
    """Return the patterns of one GGUF file and, of a split one, of its other parts."""
    split = _SPLIT_GGUF.fullmatch(needed)
    if not split:
        return (escape_pattern(needed),)
    return (f"{escape_pattern(split[1])}-?????-of-{split[2]}.gguf",)


def escape_pattern(text: str) -> str:
    """Return the pattern that matches this text alone."""
    return re.sub(r"([*?[])", r"[\1]", text)
