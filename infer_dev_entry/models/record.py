"""The record of a downloaded model, as JSON in its directory: its origin, and every file's size and digest. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.models.listing import MAX_FILES, RemoteFile, digest_fits
from infer_dev_entry.models.wish import SOURCES, ModelWish, file_problem

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file as it lay on the disk when its digest had been checked."""

    remote: RemoteFile
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model that is whole. `revision` is what was asked for ("": the default branch), `commit` what that was then."""

    source: str
    repo_id: str
    revision: str
    commit: str
    allow_patterns: tuple[str, ...]
    ignore_patterns: tuple[str, ...]
    files: tuple[KeptFile, ...]
    downloaded_at_unix: int

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.remote.size for file in self.files)

    def fulfils(self, wish: ModelWish) -> bool:
        """Say whether this is what is wished for; a commit may also be asked for by its id."""
        asked = (wish.source, wish.repo_id, set(wish.allow_patterns), set(wish.ignore_patterns))
        have = (self.source, self.repo_id, set(self.allow_patterns), set(self.ignore_patterns))
        names = {file.remote.path for file in self.files}
        same_revision = wish.revision in ((self.revision, self.commit) if self.commit else (self.revision,))
        return asked == have and same_revision and names.issuperset(wish.needed)


def render_record(record: ModelRecord) -> str:
    """Return the record as JSON text."""
    data = {
        "version": RECORD_VERSION,
        "source": record.source,
        "repo_id": record.repo_id,
        "revision": record.revision,
        "commit": record.commit,
        "allow_patterns": list(record.allow_patterns),
        "ignore_patterns": list(record.ignore_patterns),
        "downloaded_at_unix": record.downloaded_at_unix,
        "size_bytes": record.size_bytes,
        "files": [
            {
                "path": file.remote.path,
                "size": file.remote.size,
                "algorithm": file.remote.algorithm,
                "digest": file.remote.digest,
                "mtime_ns": file.mtime_ns,
            }
            for file in record.files
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def parse_record(text: str) -> ModelRecord:
    """Parse a record that anybody may have written.

    Raises:
        ValueError: it is none, or names files outside its directory.
    """
    try:
        data = json.loads(text)
        if data["version"] != RECORD_VERSION or data["source"] not in SOURCES:
            raise ValueError("of another version")
        files = data["files"]
        if not files or len(files) > MAX_FILES:
            raise ValueError("no files, or too many")
        return ModelRecord(
            source=data["source"],
            repo_id=_text(data["repo_id"]),
            revision=_text(data["revision"]),
            commit=_text(data["commit"]),
            allow_patterns=tuple(_text(item) for item in data["allow_patterns"]),
            ignore_patterns=tuple(_text(item) for item in data["ignore_patterns"]),
            files=tuple(_parse_file(file) for file in files),
            downloaded_at_unix=_number(data["downloaded_at_unix"]),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of a model: {error}") from error


def _parse_file(data: Mapping[str, Any]) -> KeptFile:
    path = _text(data["path"])
    algorithm, digest = _text(data["algorithm"]), _text(data["digest"])
    if file_problem(path) or not digest_fits(algorithm, digest):
        raise ValueError("a name or digest that no record has")
    remote = RemoteFile(path=path, size=_number(data["size"]), algorithm=algorithm, digest=digest)
    return KeptFile(remote=remote, mtime_ns=_number(data["mtime_ns"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("a count is expected")
    return value
