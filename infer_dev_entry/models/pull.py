"""Make a model directory be what is wished for: at once when its record proves it, else downloaded and swapped in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.content import file_fault, is_as_recorded
from infer_dev_entry.models.fetch import Fetcher
from infer_dev_entry.models.hub import Hub, HubError
from infer_dev_entry.models.listing import Listing, RemoteFile, select_files
from infer_dev_entry.models.lock import model_lock
from infer_dev_entry.models.place import Place, explained, place_of, refuse_foreign, write_record
from infer_dev_entry.models.progress import ModelProgress
from infer_dev_entry.models.record import KeptFile, ModelRecord
from infer_dev_entry.models.retry import Patience
from infer_dev_entry.models.staging import Staging
from infer_dev_entry.models.verify import refresh_record
from infer_dev_entry.models.wish import ModelWish

OpenHub = Callable[[ModelWish], Hub]
_TRUE = ("1", "true", "yes", "on")
_RESERVE_BYTES = 16 * 1024 * 1024
_SHOWN_FAULTS = 3
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What became of a wish. `how` is `downloaded`, `unchanged`, `adopted` (all was there already) or `foreign`.

    A foreign directory is not ours and serves as it is.
    """

    repo_id: str
    target: str
    how: str
    commit: str = ""
    size_bytes: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0


def is_offline(environ: Mapping[str, str]) -> bool:
    """Say whether the environment forbids the network, in huggingface_hub's words; they hold for both hubs."""
    word = environ.get("HF_HUB_OFFLINE", "") or environ.get("TRANSFORMERS_OFFLINE", "")
    return word.strip().lower() in _TRUE


def is_settled(wish: ModelWish) -> bool:
    """Say whether the model is there and needs no network: a record of this wish, and files that are as recorded."""
    place = place_of(wish.target)
    record = place.record()
    return record is not None and record.fulfils(wish) and is_as_recorded(place.target, record)


def pull(
    wish: ModelWish, open_hub: OpenHub, progress: ModelProgress, environ: Mapping[str, str], *, latest: bool
) -> Pulled:
    """Have the wished model in its directory, whole.

    `latest` asks the hub whether the revision has moved, as somebody does by hand; without it a model that is whole
    needs no network, and a directory that is not ours is left as it is.

    Raises:
        ModelError: it cannot be downloaded; what came is kept, and the next run goes on from there.
        ModelFilesError: something else lies in its directory.
    """
    began = time.monotonic()
    place = place_of(wish.target)
    if (not latest or is_offline(environ)) and is_settled(wish):
        return _unchanged(wish, place)
    if not latest and place.is_foreign():
        return _check_foreign(wish, place)
    with explained(f"cannot download {wish.shown} to {place.target}"), model_lock(place, progress):
        place.recover()
        if (not latest or is_offline(environ)) and refresh_record(place, wish, progress):
            place.tidy()
            return _unchanged(wish, place)
        if is_offline(environ):
            raise ModelError(
                f"cannot download {wish.shown}: HF_HUB_OFFLINE is set, and {place.target} is not there whole; "
                "unset it for the download, or put the model there"
            )
        pulled = _Pull(wish, place, open_hub(wish), progress).run()
    return replace(pulled, seconds=time.monotonic() - began)


class _Pull:
    """One download, with the lock held."""

    def __init__(self, wish: ModelWish, place: Place, hub: Hub, progress: ModelProgress) -> None:
        self._wish, self._place, self._hub, self._progress = wish, place, hub, progress

    def run(self) -> Pulled:
        self._progress.stage(f"list {self._wish.shown}")
        listing = self._list()
        files = select_files(listing, self._wish)
        before = self._place.record()
        if before is not None and _same_files(before, files) and is_as_recorded(self._place.target, before):
            return self._rerecord(listing, before.files)
        if self._place.is_foreign():
            return self._adopt(listing, files)
        self._place.prepare()
        staging = Staging(self._place)
        lacking = staging.open(files, before)
        need = sum(file.size for file in lacking) - staging.begun_bytes(lacking)
        self._check_room(need)
        self._progress.stage(f"download {self._wish.shown}", sum(file.size for file in lacking))
        Fetcher(self._hub, self._wish, listing.commit, staging).fetch(
            lacking, self._progress.advance, self._progress.note
        )
        for path in staging.carry_over(before) if before is not None else ():
            self._progress.note(f"{self._place.target}: {path} was added there, and gives way to the repository's")
        self._record(self._place.staging, listing, staging.close())
        staging.forget()
        self._place.publish()
        return self._pulled("downloaded", listing, files, need)

    def _list(self) -> Listing:
        patience = Patience(self._wish, "")
        while True:
            try:
                return self._hub.list_files(self._wish)
            except HubError as trouble:
                wait_s = patience.wait_s(trouble)
                self._progress.note(f"{self._wish.shown}: {trouble}; trying again in {wait_s:.1f} s")
                time.sleep(wait_s)

    def _check_room(self, need: int) -> None:
        """Refuse what cannot fit, before hours have gone into it."""
        need += _RESERVE_BYTES + need // 100 if need else 0
        free = shutil.disk_usage(self._place.staging).free
        if need > free:
            raise ModelError(
                f"cannot download {self._wish.shown} to {self._place.target}: {need / 1e9:.2f} GB are needed, "
                f"{free / 1e9:.2f} GB are free; free space there, or name another directory with local_dir"
            )

    def _adopt(self, listing: Listing, files: Sequence[RemoteFile]) -> Pulled:
        """Take a directory that somebody else filled, if every file in it proves to be the hub's."""
        target = self._place.target
        if not os.path.isdir(target):
            raise refuse_foreign(self._place, "it is no directory")
        self._progress.stage(f"check {target}", sum(file.size for file in files))
        faults = [fault for file in files if (fault := file_fault(target, file, self._progress.advance))]
        if faults:
            more = f" and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
            raise refuse_foreign(
                self._place,
                f"{len(faults)} files are not {self._wish.shown}'s: {'; '.join(faults[:_SHOWN_FAULTS])}{more}",
            )
        kept = [KeptFile(remote=file, mtime_ns=os.stat(f"{target}/{file.path}").st_mtime_ns) for file in files]
        self._record(target, listing, kept)
        return self._pulled("adopted", listing, files, 0)

    def _rerecord(self, listing: Listing, kept: Sequence[KeptFile]) -> Pulled:
        """The files are the wished ones; the record may be of another name for them."""
        if not is_settled(self._wish):
            self._record(self._place.target, listing, kept)
        self._place.tidy()
        return self._pulled("unchanged", listing, [file.remote for file in kept], 0)

    def _record(self, folder: str, listing: Listing, kept: Sequence[KeptFile]) -> None:
        wish = self._wish
        record = ModelRecord(
            source=wish.source,
            repo_id=wish.repo_id,
            revision=wish.revision,
            commit=listing.commit,
            allow_patterns=wish.allow_patterns,
            ignore_patterns=wish.ignore_patterns,
            files=tuple(kept),
            downloaded_at_unix=int(time.time()),
        )
        write_record(folder, record)

    def _pulled(self, how: str, listing: Listing, files: Sequence[RemoteFile], fetched: int) -> Pulled:
        return Pulled(
            repo_id=self._wish.repo_id,
            target=self._place.target,
            how=how,
            commit=listing.commit,
            size_bytes=sum(file.size for file in files),
            fetched_bytes=fetched,
        )


def _same_files(record: ModelRecord, files: Sequence[RemoteFile]) -> bool:
    return all(file.digest for file in files) and {kept.remote for kept in record.files} == set(files)


def _unchanged(wish: ModelWish, place: Place) -> Pulled:
    record = place.record()
    return Pulled(
        repo_id=wish.repo_id,
        target=place.target,
        how="unchanged",
        commit=record.commit if record else "",
        size_bytes=record.size_bytes if record else 0,
    )


def _check_foreign(wish: ModelWish, place: Place) -> Pulled:
    """Let a directory of somebody else's serve, unless it is plainly not whole."""
    from infer_dev_entry.doctor.model_files import read_model

    for path in [f"{place.target}/{name}" for name in wish.needed] or [place.target]:
        found = read_model(path, limit_s=30.0)
        faults = [found.problem] if found.problem else [fault.text for fault in found.faults if fault.certain]
        if not faults and found.is_directory and found.config is None:
            faults = ["it has no config.json"]
        if not faults and found.is_directory and not any(name.endswith(_WEIGHTS) for name in found.names):
            faults = ["it has no weights"]
        if faults:
            raise refuse_foreign(place, f"it is not whole: {faults[0]}")
    return Pulled(repo_id=wish.repo_id, target=place.target, how="foreign")
