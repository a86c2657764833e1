"""One server behind the `openai` client: requests out, bounded bytes in, and every failure as one of our errors."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from infer_dev_entry.client.failures import failure_of_status
from infer_dev_entry.client.sse import DONE, EventSplitter
from infer_dev_entry.errors import (
    AnswerTimeoutError,
    BrokenAnswerError,
    ClientError,
    UnreachableError,
)
from infer_dev_entry.redact import MASK

# A server on this machine takes the connection at once; one that is far gets this long.
CONNECT_TIMEOUT_S = 10.0
# A stream may be long, but no model writes for a day.
LONGEST_STREAM_S = 24 * 3600.0
LARGEST_ANSWER_BYTES = 64 * 1024 * 1024
LARGEST_ERROR_BYTES = 64 * 1024
_SHORTEST_SECRET = 4  # a shorter key would blot out half of every message
TRUST_MEND = "name the server as its certificate does, and set SSL_CERT_FILE to a file with that, or with who signed it"
# What the HTTP library raises where nobody answers; which library that is depends on the client's version.
_NO_CONNECTION = ("ConnectError", "UnsupportedProtocol", "InvalidURL", "LocalProtocolError")
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "anyio")
UNPACKED = {"Accept-Encoding": "identity"}
_NO_KEY = "none"  # the client insists on one; servers without a key do not look at it


def import_openai() -> Any:
    """Return the module; it takes a second to import, so only who asks a server pays for it.

    Raises:
        ClientError: it is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise ClientError(
            "cannot ask a server: the package openai is not installed; run: pip install 'infer-dev-entry[client]'"
        ) from error
    return openai


def check_encoding(response: Any) -> None:
    """Refuse what is packed: none was asked for, and a few bytes can unpack to more than there is memory.

    Raises:
        BrokenAnswerError: it has a Content-Encoding.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise BrokenAnswerError(f"the answer is packed as {encoding[:40]!r}, which was not asked for")


def read_trust(ca_file: str) -> ssl.SSLContext | bool:
    """Return whom to trust behind https: those in the file alone, or for "" those that the client brings.

    Raises:
        ClientError: the file is none of certificates.
    """
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise ClientError(
            f"cannot use SSL_CERT_FILE={ca_file}: {error.strerror or error}; give a file of certificates as PEM"
        ) from error


class _StatusSeenError(Exception):
    """An answer that is no success, with the beginning of its body."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


async def _stop_at_failure(response: Any) -> None:
    """Read no more of a failure than a message needs: the client would read all of it, and it may never end."""
    check_encoding(response)
    if response.status_code < 300:
        return
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > LARGEST_ERROR_BYTES:
            break
    raise _StatusSeenError(response.status_code, body[:LARGEST_ERROR_BYTES])


class Connection:
    """Asks one base URL. Lives in one event loop; opens nothing before the first request."""

    def __init__(self, url: str, api_key: str, ca_file: str = "") -> None:
        self._url = url
        self._trust = read_trust(ca_file)
        self._api_key = api_key
        self._openai = import_openai()
        self._client: Any = None

    async def get_models(self, timeout_s: float) -> bytes:
        """Return the body of /v1/models.

        Raises:
            ClientError: of every kind.
        """
        return await self._read(self._open().models.with_streaming_response.list(), timeout_s)

    async def ask(self, body: Mapping[str, Any], *, chat: bool, timeout_s: float) -> bytes:
        """Send a completion or a chat and return the whole answer; `timeout_s` is for all of it.

        Raises:
            ClientError: of every kind.
        """
        return await self._read(self._create(body, chat=chat, stream=False), timeout_s)

    async def stream(self, body: Mapping[str, Any], *, chat: bool, timeout_s: float) -> AsyncGenerator[str, None]:
        """Yield the data of each event; `timeout_s` bounds the silence before each. Ended early, it hangs up.

        Raises:
            ClientError: of every kind.
        """
        splitter = EventSplitter()
        clock = asyncio.get_running_loop().time
        ends = clock() + LONGEST_STREAM_S
        due = clock() + timeout_s
        async with contextlib.AsyncExitStack() as stack:
            with self._failures(timeout_s):
                async with asyncio.timeout(timeout_s):
                    response = await stack.enter_async_context(self._create(body, chat=chat, stream=True))
            parts = aiter(response.iter_bytes())
            while True:
                with self._failures(timeout_s):
                    # Only an event counts: bytes that never become one are silence as well.
                    async with asyncio.timeout_at(min(due, ends)):
                        part = await anext(parts, b"")
                if not part:
                    return
                with self.naming():
                    events = splitter.feed(part)
                for event in events:
                    if event.strip() == DONE:
                        return
                    yield event
                    due = clock() + timeout_s

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Name the address in the errors of whoever reads an answer of ours."""
        try:
            yield
        except ClientError as error:
            raise self._named(error) from error.__cause__

    async def close(self) -> None:
        """Close what is open."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _open(self) -> Any:
        if self._client is None:
            # No retries: a caller's time is the caller's. No proxies from the environment: the servers are ours.
            http = self._openai.DefaultAsyncHttpxClient(
                verify=self._trust,
                trust_env=False,
                follow_redirects=False,
                headers=UNPACKED,
                event_hooks={"response": [_stop_at_failure]},
            )
            self._client = self._openai.AsyncOpenAI(
                base_url=f"{self._url}/v1", api_key=self._api_key or _NO_KEY, max_retries=0, http_client=http
            )
        return self._client

    def _create(self, body: Mapping[str, Any], *, chat: bool, stream: bool) -> Any:
        client = self._open()
        resource = client.chat.completions if chat else client.completions
        first = "messages" if chat else "prompt"
        rest = {name: value for name, value in body.items() if name not in ("model", first)}
        if stream:
            rest["stream_options"] = {"include_usage": True}
        return resource.with_streaming_response.create(
            model=body["model"],
            **{first: body[first]},
            stream=stream,
            extra_body=rest,
            # Ours is the limit, for all of it; the client's own would only be for each read.
            timeout=self._openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )

    async def _read(self, opening: Any, timeout_s: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        with self._failures(timeout_s):
            async with asyncio.timeout(timeout_s), opening as response:
                async for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST_ANSWER_BYTES:
                        raise BrokenAnswerError(f"the answer has more than {LARGEST_ANSWER_BYTES >> 20} MiB")
        return b"".join(parts)

    @contextlib.contextmanager
    def _failures(self, timeout_s: float) -> Iterator[None]:
        """Turn what the client and the network raise into our errors, with the address and without the key."""
        try:
            yield
        except _StatusSeenError as seen:
            raise self._named(failure_of_status(seen.status, seen.body)) from None
        except ClientError as error:
            raise self._named(error) from error.__cause__
        except TimeoutError:
            raise self._late(timeout_s) from None
        except self._openai.APITimeoutError:  # only the connect has a limit of the client's own
            raise UnreachableError(
                f"cannot ask {self._url}: no connection within {CONNECT_TIMEOUT_S:g} s; is the host up?"
            ) from None
        except self._openai.OpenAIError as error:
            raise self._of_connection(error) from None
        except UnicodeEncodeError as error:
            raise ClientError(
                f"cannot ask {self._url}: the request has half of a surrogate pair, which is no text; leave it out"
            ) from error
        except Exception as error:  # the HTTP library's own, which the client lets through while a body is read
            if type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
                raise
            raise self._cut(error) from None

    def _of_connection(self, error: Exception) -> ClientError:
        """Say why there was no answer, by what the client gives as the cause, and that as its own."""
        causes = [error]
        while isinstance(cause := causes[-1].__cause__ or causes[-1].__context__, Exception):
            causes.append(cause)
        for cause in causes:
            if isinstance(cause, _StatusSeenError):
                return self._named(failure_of_status(cause.status, cause.body))
        if type(error.__cause__ or error).__name__ not in _NO_CONNECTION:
            return self._cut(error.__cause__ or error)
        reason = self._clean(str(causes[-1]) or type(causes[-1]).__name__)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return UnreachableError(f"cannot reach {self._url}: {reason}; {TRUST_MEND}")
        return UnreachableError(f"cannot reach {self._url}: {reason}; is the server running? see infer-dev status")

    def _cut(self, error: BaseException) -> BrokenAnswerError:
        reason = self._clean(str(error) or type(error).__name__)
        return BrokenAnswerError(
            f"cannot ask {self._url}: the connection broke, or what came is no HTTP: {reason}; see the server's log"
        )

    def _late(self, timeout_s: float) -> AnswerTimeoutError:
        return AnswerTimeoutError(
            f"cannot ask {self._url}: no answer within {timeout_s:.3g} s; give a longer timeout_s, or see "
            "infer-dev status whether it hangs"
        )

    def _named(self, error: ClientError) -> ClientError:
        return type(error)(f"cannot ask {self._url}: {self._clean(str(error))}")

    def _clean(self, text: str) -> str:
        return text.replace(self._api_key, MASK) if len(self._api_key) >= _SHORTEST_SECRET else text
