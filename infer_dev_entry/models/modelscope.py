"""The ModelScope hub, through modelscope_hub's client: its endpoint, token and listing are the library's.

It tells no commit of a branch, so files are asked for by the revision itself; their sha256, which it does tell, shows
when the branch moved meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.hub import (
    INSTALL_MEND,
    HubError,
    Stream,
    kind_of_status,
    one_line,
    parse_retry_after,
    stream_of,
)
from infer_dev_entry.models.listing import SHA256, SIZE_ALONE, Listing, RemoteFile, digest_fits
from infer_dev_entry.models.wish import ModelWish

_DEFAULT_REVISION = "master"
_PIECE_BYTES = 64 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Listing retries by itself; a hub that stays away must still be told within minutes.
_ENVIRON = {"MODELSCOPE_INTRA_CLOUD_ACCELERATION": "false"}


class ModelScopeHub:
    """The hub that `MODELSCOPE_ENDPOINT` names, with the token of MODELSCOPE_API_TOKEN or of a log-in."""

    def __init__(self, environ: Mapping[str, str], process: MutableMapping[str, str] = os.environ) -> None:
        """Import the library under that environment, which becomes the process's own.

        Raises:
            ModelError: it is not installed.
        """
        process.update(environ)
        process.update(_ENVIRON)
        try:
            import modelscope_hub
            import requests
            from modelscope_hub import errors
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "modelscope_hub":
                raise  # something below it, which this user may not read
            raise ModelError(f"cannot download from modelscope: {error}; {INSTALL_MEND}") from error
        self._errors: Any = errors
        self._requests: Any = requests
        with self._translated():
            self._api: Any = modelscope_hub.HubApi(_quiet_config(modelscope_hub))

    def list_files(self, wish: ModelWish) -> Listing:
        """List the files of the revision."""
        with self._translated():
            found = self._api.list_repo_files(
                wish.repo_id, "model", revision=wish.revision or _DEFAULT_REVISION, recursive=True
            )
            if getattr(self._api.legacy._read_state, "listing_incomplete", False):
                raise HubError("other", "the hub lists only a part of that repository")
            files = tuple(_remote(item) for item in found if not item.is_dir)
        return Listing(commit=wish.revision if _COMMIT.fullmatch(wish.revision) else "", files=files)

    @contextlib.contextmanager
    def open_file(self, wish: ModelWish, _commit: str, path: str, offset: int) -> Iterator[Stream]:
        """Begin to read a file."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._translated():
            response = self._api.legacy.download_stream(
                wish.repo_id, "model", path, revision=wish.revision or _DEFAULT_REVISION, headers=headers
            )
            with contextlib.closing(response):
                yield stream_of(response, self._pieces(response))

    def _pieces(self, response: Any) -> Iterator[bytes]:
        with self._translated():
            yield from response.iter_content(_PIECE_BYTES)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the library's errors into HubError."""
        errors = self._errors
        try:
            yield
        except errors.APIError as error:
            raise self._trouble(error) from error
        except (errors.NetworkError, self._requests.RequestException) as error:
            raise HubError("connection", f"{type(error).__name__}: {one_line(error)}") from error
        except (errors.HubError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError("other", f"an answer that is no hub's: {one_line(error)}") from error

    def _trouble(self, error: Any) -> HubError:
        status = int(getattr(error, "status_code", 0) or getattr(getattr(error, "response", None), "status_code", 0))
        if isinstance(error, self._errors.NotExistError) or status == 404:
            return HubError("file", f"HTTP {status or 404}")
        response = getattr(error, "response", None)
        wait_s = parse_retry_after(response.headers.get("Retry-After"), time.time()) if response is not None else 0.0
        if isinstance(error, self._errors.RateLimitError):
            return HubError("busy", "HTTP 429", wait_s)
        return HubError(kind_of_status(status), f"HTTP {status}" if status else one_line(error), wait_s)


def _quiet_config(library: Any) -> Any:
    """Return the default configuration without the stable id of this machine that would go into every User-Agent."""

    class QuietConfig(library.HubConfig):  # type: ignore[misc]
        __slots__ = ()

        def get_session_id(self) -> str:
            return "0" * 32

    return QuietConfig()


def _remote(item: Any) -> RemoteFile:
    digest = str(item.sha256 or "").lower()
    algorithm = SHA256 if digest_fits(SHA256, digest) else SIZE_ALONE
    return RemoteFile(path=str(item.path), size=int(item.size), algorithm=algorithm, digest=digest if algorithm else "")
