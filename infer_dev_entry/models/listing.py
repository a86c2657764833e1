"""What a repository holds, and which of it is wanted: patterns, names that are refused, files that must be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.wish import ModelWish, file_problem

MAX_FILES = 100_000
_SHOWN_FILES = 5

# How a digest was made: of the content, or git's way, with a header before it (`blob <size>\0`).
SHA256 = "sha256"
GIT_SHA1 = "git-sha1"
SIZE_ALONE = ""
_DIGEST_LENGTHS = {SHA256: 64, GIT_SHA1: 40, SIZE_ALONE: 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository. `digest` is lower-case hex; "" where the hub tells none (`algorithm` is then "")."""

    path: str
    size: int
    algorithm: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All files of a repository at one commit; `commit` is "" where the hub tells none."""

    commit: str
    files: tuple[RemoteFile, ...]


def digest_fits(algorithm: str, digest: str) -> bool:
    """Say whether this may be a digest of that kind."""
    length = _DIGEST_LENGTHS.get(algorithm, -1)
    return len(digest) == length and all(character in "0123456789abcdef" for character in digest)


def select_files(listing: Listing, wish: ModelWish) -> tuple[RemoteFile, ...]:
    """Return the wanted files, sorted by path.

    Raises:
        ModelError: the repository holds a hostile name, too many files, or not what is needed.
    """
    _check_names(listing.files, wish)
    wanted = [file for file in listing.files if is_wanted(file.path, wish)]
    missing = [name for name in wish.needed if name not in {file.path for file in wanted}]
    if missing:
        raise ModelError(f"cannot download {wish.shown}: {_explain_missing(missing[0], listing.files)}")
    if not wanted:
        patterns = ", ".join(wish.allow_patterns) or "all"
        raise ModelError(
            f"cannot download {wish.shown}: none of its {len(listing.files)} files is wanted "
            f"(allow_patterns: {patterns}); correct the patterns"
        )
    return tuple(sorted(wanted, key=lambda file: file.path))


def is_wanted(path: str, wish: ModelWish) -> bool:
    """Say whether the patterns let a file through; as the hub's own, `*` also matches `/`, and `dir/` is all below."""
    if wish.allow_patterns and not _matches(path, wish.allow_patterns):
        return False
    return not _matches(path, wish.ignore_patterns)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _check_names(files: Sequence[RemoteFile], wish: ModelWish) -> None:
    refused = f"refuse {wish.shown}: "
    if len(files) > MAX_FILES:
        raise ModelError(f"{refused}it holds {len(files)} files, and more than {MAX_FILES} are not taken")
    seen: set[str] = set()
    for file in files:
        problem = file_problem(file.path)
        if problem:
            raise ModelError(f"{refused}it holds {problem}: {file.path[:200]!r}; do not trust that repository")
        if file.size < 0 or not digest_fits(file.algorithm, file.digest):
            raise ModelError(f"{refused}the hub tells no usable size or digest of {file.path!r}; try again later")
        if file.path in seen:
            raise ModelError(f"{refused}it lists {file.path!r} twice; do not trust that repository")
        seen.add(file.path)
    for path in seen:
        above = path
        while above := above.rpartition("/")[0]:
            if above in seen:
                raise ModelError(f"{refused}{above!r} is a file and a directory; do not trust that repository")


def _explain_missing(name: str, files: Sequence[RemoteFile]) -> str:
    alike = [file.path for file in files if file.path.endswith(name[name.rfind(".") :])] if "." in name else []
    there = f"it has {', '.join(alike[:_SHOWN_FILES])}{', …' if len(alike) > _SHOWN_FILES else ''}; " if alike else ""
    return f"the server needs {name!r}, which is not among the wanted files; {there}correct the model's path"
