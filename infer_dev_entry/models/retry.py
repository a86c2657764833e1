"""How often and how long to try again: bounded while nothing comes, afresh when something came. Pure."""

from __future__ import annotations

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.hub import PASSING, HubError
from infer_dev_entry.models.wish import ModelWish

MAX_TRIES = 6  # in a row without progress: about a minute of waiting
MAX_WAIT_S = 600.0  # a hub that asks for more is not waited for
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_AFTER_PROGRESS_S = 0.2
# A connection that brings less than this before it is cut is none that a download ever ends by.
PROGRESS_BYTES = 64 * 1024

_TOKEN_MENDS = {
    "huggingface": "set HF_TOKEN to a token that may read it",
    "modelscope": "set MODELSCOPE_API_TOKEN to a token that may read it",
}


class Patience:
    """The patience with one file, or with the listing."""

    def __init__(self, wish: ModelWish, what: str) -> None:
        """`what` is the file's name, or "" for the listing."""
        self._wish = wish
        self._what = what
        self._tries = 0

    def progressed(self) -> None:
        """Something came: count afresh."""
        self._tries = 0

    def wait_s(self, trouble: HubError) -> float:
        """Return how long to wait before the next try.

        Raises:
            ModelError: no further try makes sense.
        """
        if trouble.kind not in (*PASSING, "range"):
            raise explain_trouble(self._wish, self._what, trouble) from trouble
        self._tries += 1
        if self._tries >= MAX_TRIES or trouble.retry_after_s > MAX_WAIT_S:
            raise explain_trouble(self._wish, self._what, trouble) from trouble
        if trouble.retry_after_s:
            return trouble.retry_after_s
        if self._tries == 1 and trouble.kind == "connection":
            return _AFTER_PROGRESS_S
        return float(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self._tries - 1)))


def explain_trouble(wish: ModelWish, what: str, trouble: HubError) -> ModelError:
    """Return the error that says what failed, where, and what to do."""
    file = f" {what}" if what else ""
    text = f"cannot download{file} of {wish.shown} from {wish.source}: {trouble}"
    return ModelError(f"{text.replace('download of', 'download')}; {_mend(wish, what, trouble)}")


def _mend(wish: ModelWish, what: str, trouble: HubError) -> str:
    token = _TOKEN_MENDS[wish.source]
    if trouble.kind == "gated":
        return f"accept its licence on the model's page, then {token}"
    if trouble.kind == "auth":
        return f"it is private or gated, or the token is not valid: {token}"
    if trouble.kind == "repo":
        return f"correct repo_id, or, if it is private, {token}"
    if trouble.kind == "revision":
        return "correct revision"
    if trouble.kind == "file":
        return "the repository changed meanwhile: try again" if what else "correct repo_id and revision"
    if trouble.kind == "busy":
        wait = f" in {trouble.retry_after_s:.0f} s" if trouble.retry_after_s else " later"
        return f"try again{wait}; a token raises the hub's limits"
    if trouble.kind == "server":
        return "the hub is not well: try again later"
    if trouble.kind == "connection":
        return "check network, proxy and HF_ENDPOINT; what was downloaded is kept, and the next run continues it"
    return "try again later"
