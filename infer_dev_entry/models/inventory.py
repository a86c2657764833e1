"""What models lie on this machine's disk, and how complete each is; nothing is read but records and sizes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from infer_dev_entry.models.content import is_as_recorded, lies_as_kept
from infer_dev_entry.models.place import Place, place_of
from infer_dev_entry.models.record import ModelRecord
from infer_dev_entry.models.wish import ModelWish

_MAX_ENTRIES = 10_000
_STAGING_END = ".incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model. `state` is one of:

    `complete`; `changed` (a file is not as recorded); `outdated` (complete, but not what the config asks for);
    `incomplete` (a download was cut; `size_bytes` is what is there); `missing`; `foreign` (not infer-dev's).
    """

    path: str
    state: str
    source: str = ""
    repo_id: str = ""
    revision: str = ""
    commit: str = ""
    size_bytes: int = 0
    instances: tuple[str, ...] = ()
    note: str = ""


def find_models(folder: str) -> tuple[str, ...]:
    """Return the paths below a directory, `<name>` and `<org>/<name>`, that hold a model, or a begun one."""
    found: dict[str, None] = {}
    for path in _folders(folder):
        if _looks_like_model(path):
            found[path] = None
        else:
            found.update(dict.fromkeys(below for below in _folders(path) if _looks_like_model(below)))
    return tuple(sorted(found))


def _folders(folder: str) -> Iterator[str]:
    """Yield sub-directories; a begun model is told by its place, which may not be there yet."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(_MAX_ENTRIES), entries, strict=False):
            if entry.name.startswith(".") and entry.name.endswith(_STAGING_END):
                yield f"{folder.rstrip('/')}/{entry.name[1 : -len(_STAGING_END)]}"
            elif not entry.name.startswith(".") and entry.is_dir():
                yield entry.path


def _looks_like_model(path: str) -> bool:
    place = Place(path)
    return place.record() is not None or os.path.isdir(place.staging) or os.path.isfile(f"{path}/config.json")


def row_of(path: str, wish: ModelWish | None) -> Row:
    """Look at one model's directory."""
    place = place_of(path)
    record = place.record()
    names = wish.names if wish else ()
    if record is not None:
        return _row_of_record(path, place, record, wish)
    source, repo_id, revision = (wish.source, wish.repo_id, wish.revision) if wish else ("", "", "")
    row = Row(path=path, state="missing", source=source, repo_id=repo_id, revision=revision, instances=names)
    if place.is_foreign():
        note = "infer-dev did not put it there; it is served as it is"
        return replace(row, state="foreign", note=note)
    if os.path.isdir(place.staging):
        note = "a download was cut: infer-dev model pull goes on with it"
        return replace(row, state="incomplete", size_bytes=_size_of(place.staging), note=note)
    return row


def _row_of_record(path: str, place: Place, record: ModelRecord, wish: ModelWish | None) -> Row:
    state, note = "complete", ""
    if not is_as_recorded(place.target, record):
        bad = next(kept.remote.path for kept in record.files if not lies_as_kept(place.target, kept, follow=True))
        state, note = "changed", f"{bad} is not as recorded; look closer with: infer-dev model verify {path}"
    elif wish is not None and not record.fulfils(wish):
        state, note = "outdated", f"the config asks for {wish.shown}: infer-dev model pull"
    if not note and os.path.isdir(place.staging):
        note = f"{place.staging} holds another download that was cut"
    return Row(
        path=path,
        state=state,
        source=record.source,
        repo_id=record.repo_id,
        revision=record.revision,
        commit=record.commit,
        size_bytes=record.size_bytes,
        instances=wish.names if wish else (),
        note=note,
    )


def _size_of(folder: str) -> int:
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{below}/{name}").st_size
    return total
