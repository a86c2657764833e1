"""Judge the downloads that a config asks for: there, begun, not what is asked for, and can boot fetch them? Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from infer_dev_entry.config.checks import DOWNLOAD_GATE
from infer_dev_entry.doctor.rows import Row, fail, ok, size, skip, warn
from infer_dev_entry.models.hub import INSTALL_MEND

_SERVED = {"outdated": warn, "changed": warn}
_UNREADY = ("missing", "incomplete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One directory to be downloaded; `state` and `note` are those of `infer-dev model list`."""

    names: tuple[str, ...]
    path: str
    source: str
    repo: str
    state: str
    note: str = ""
    size_bytes: int = 0


def check_downloads(downloads: Sequence[Download], *, gate: bool, offline: bool, lacking: Collection[str]) -> list[Row]:
    """Judge each download. `lacking` are the sources whose client is not installed."""
    if gate and not downloads:
        return [warn("download", f"{DOWNLOAD_GATE} is on, and no instance has a model table with repo_id")]
    return [_check(download, gate=gate, offline=offline, lacks=download.source in lacking) for download in downloads]


def will_download(model: str, downloads: Sequence[Download], *, gate: bool) -> bool:
    """Say whether boot fetches what a server will open, so that it need not be there yet."""
    return gate and any(
        download.state in _UNREADY and (model == download.path or model.startswith(f"{download.path}/"))
        for download in downloads
    )


def check_coming(server: str) -> Row:
    """Return the row of a model that boot will fetch."""
    return skip(f"model of {server}", "it is not there yet; boot downloads it")


def _check(download: Download, *, gate: bool, offline: bool, lacks: bool) -> Row:
    check = f"download of {', '.join(download.names)}"
    if download.state == "complete":
        return ok(check, f"{download.path}: {download.repo}, {size(download.size_bytes)}, as recorded")
    note = f": {download.note}" if download.note else ""
    seen = f"{download.path} is {download.state}{note}"
    if download.state == "foreign":
        return ok(check, seen)
    judge = _SERVED.get(download.state, fail)
    if offline:
        return judge(check, f"{seen}; HF_HUB_OFFLINE forbids a download", "unset it, or put the model there")
    if lacks:
        judge = fail if gate else judge
        return judge(check, f"{seen}; the client of {download.source} is not installed", INSTALL_MEND)
    if gate:
        return warn(check, f"{seen}; the next boot downloads it")
    return judge(check, seen, f"infer-dev model pull {download.names[0]}, or set {DOWNLOAD_GATE}=1")
