"""The Hugging Face hub, through huggingface_hub's client: its endpoint, tokens, proxies and errors are the library's.

The bytes are streamed here: since version 2, hf_hub_download writes to a file of a random name that it deletes when it
fails (`_download_to_tmp_and_move`), so that nothing of it outlives a kill.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any

from infer_dev_entry import __version__
from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.hub import (
    INSTALL_MEND,
    PASSING,
    HubError,
    Stream,
    kind_of_status,
    one_line,
    parse_retry_after,
    stream_of,
)
from infer_dev_entry.models.listing import GIT_SHA1, MAX_FILES, SHA256, Listing, RemoteFile
from infer_dev_entry.models.wish import ModelWish

LIST_TIMEOUT_S = 60.0
MAX_PAGES = 2000  # of a listing; the hub's hold 1000 files
STREAM_TIMEOUT_S = 30.0  # without a byte

# The library reads them when it is imported. Xet would bypass plain HTTP, whose ranges we resume by; HF_DEBUG prints
# every request as a curl command.
_FORCED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
}
_AGENT: Mapping[str, Any] = {"library_name": "infer-dev", "library_version": __version__}
_REMOVED = ("HF_DEBUG", "HF_HUB_ENABLE_HF_TRANSFER")


class HuggingFaceHub:
    """The hub that `HF_ENDPOINT` names, with the token that huggingface_hub finds (HF_TOKEN, or its token file)."""

    def __init__(self, environ: Mapping[str, str], process: MutableMapping[str, str] = os.environ) -> None:
        """Import the library under that environment, which becomes the process's own.

        Raises:
            ModelError: it is not installed.
        """
        process.update(environ)
        process.update(_FORCED)
        for name in _REMOVED:
            process.pop(name, None)
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "huggingface_hub":
                raise  # something below it, which this user may not read
            raise ModelError(f"cannot download from huggingface: {error}; {INSTALL_MEND}") from error
        self._api = huggingface_hub.HfApi(endpoint=environ.get("HF_ENDPOINT") or None, **_AGENT)
        self._url = huggingface_hub.hf_hub_url
        self._utils: Any = utils
        self._errors: Any = errors
        self._http: Any = _http_module()
        self._pages = 0
        _take_over_retries(self._count_page)

    def list_files(self, wish: ModelWish) -> Listing:
        """Resolve the revision, then list the files of exactly that commit."""
        with self._translated(wish):
            revision = wish.revision or "main"
            info = self._api.model_info(wish.repo_id, revision=revision, timeout=LIST_TIMEOUT_S)
            commit = str(info.sha or "")
            if not commit.isalnum():
                raise HubError("other", "the hub tells no commit; does HF_ENDPOINT lead to a Hugging Face hub?")
            self._pages = 0
            tree = self._api.list_repo_tree(wish.repo_id, revision=commit, recursive=True)
            found = (_remote(item) for item in tree if hasattr(item, "blob_id"))
            return Listing(commit=commit, files=tuple(islice(found, MAX_FILES + 1)))

    def _count_page(self, response: Any) -> None:
        """End a listing whose pages lead to each other."""
        if "/tree/" not in response.url.path or not response.url.path.startswith("/api/"):
            return
        self._pages += 1
        if self._pages > MAX_PAGES:
            raise HubError("other", f"its listing has more than {MAX_PAGES} pages")

    @contextlib.contextmanager
    def open_file(self, wish: ModelWish, commit: str, path: str, offset: int) -> Iterator[Stream]:
        """Begin to read a file; the token stays with the hub's own host when it redirects to its storage."""
        headers = dict(self._utils.build_hf_headers(**_AGENT)) | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        url = self._url(wish.repo_id, path, revision=commit, endpoint=self._api.endpoint)
        with self._translated(wish):
            client = self._utils.get_session()
            with client.stream("GET", url, headers=headers, timeout=STREAM_TIMEOUT_S) as response:
                self._utils.hf_raise_for_status(response)
                yield stream_of(response, self._pieces(response, wish))

    def _pieces(self, response: Any, wish: ModelWish) -> Iterator[bytes]:
        with self._translated(wish):
            yield from response.iter_bytes()

    @contextlib.contextmanager
    def _translated(self, wish: ModelWish) -> Iterator[None]:
        """Turn the library's errors into HubError."""
        errors = self._errors
        try:
            yield
        except errors.HfHubHTTPError as error:
            raise self._trouble(error, wish) from error
        except errors.OfflineModeIsEnabled as error:
            raise HubError("other", "HF_HUB_OFFLINE is set") from error
        except self._http.HTTPError as error:  # timeouts, cut connections, refused ones
            raise HubError("connection", f"{type(error).__name__}: {one_line(error)}") from error
        except (self._http.InvalidURL, errors.HFValidationError, ValueError, KeyError, TypeError) as error:
            raise HubError("other", f"an answer that is no hub's: {one_line(error)}") from error

    def _trouble(self, error: Any, wish: ModelWish) -> HubError:
        errors, status = self._errors, error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            return HubError("gated", f"HTTP {status}: {wish.repo_id} is gated")
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError("revision", f"HTTP {status}: no such revision")
        if status in (401, 403):
            return HubError("auth", f"HTTP {status}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return HubError("repo", f"HTTP {status}: no such repository")
        if status == 404 and "/api/" in str(error.response.url):
            return HubError("repo", f"HTTP {status}")
        return HubError(kind_of_status(status), f"HTTP {status}")


def _http_module() -> Any:
    """Return the HTTP library of the installed huggingface_hub: httpx2 since its version 2, httpx before."""
    from huggingface_hub.utils import _http

    return getattr(_http, "httpx2", None) or _http.httpx  # type: ignore[attr-defined]


def _take_over_retries(look: Callable[[Any], None]) -> None:
    """Have every answer that is worth another try raised at once: the library would sleep as long as a hub asks for.

    `look` sees every answer.
    """
    from huggingface_hub.utils import _http

    def raise_passing(response: Any) -> None:
        look(response)
        kind = kind_of_status(response.status_code)
        if kind in PASSING:
            wait_s = parse_retry_after(response.headers.get("Retry-After"), time.time())
            raise HubError(kind, f"HTTP {response.status_code}", wait_s)

    def make_client() -> Any:
        client = _http.default_client_factory()
        client.event_hooks = client.event_hooks | {"response": [*client.event_hooks["response"], raise_passing]}
        return client

    _http.set_client_factory(make_client)


def _remote(item: Any) -> RemoteFile:
    if item.lfs is not None:
        digest = str(item.lfs.sha256).lower()
        return RemoteFile(path=str(item.path), size=int(item.lfs.size), algorithm=SHA256, digest=digest)
    return RemoteFile(path=str(item.path), size=int(item.size), algorithm=GIT_SHA1, digest=str(item.blob_id).lower())
