"""Ask a server through the plain `openai` client, as its users do, with a limit on everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.client.connection import UNPACKED, check_encoding, import_openai, read_trust
from infer_dev_entry.errors import BrokenAnswerError
from infer_dev_entry.smoke.facts import LLAMA_CPP, SGLANG, ServerFacts

# Far more than any question here is answered with; the client by itself reads on until its time is up.
LARGEST_ANSWER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A streamed piece with text in it, and when it came (monotonic seconds)."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A whole stream. `completion_tokens` is 0 where the server tells none."""

    began: float
    pieces: tuple[Piece, ...]
    finish_reason: str
    completion_tokens: int

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


class Asker:
    """One server's client. `timeout_s` is for each read; the runner bounds a check as a whole."""

    def __init__(self, facts: ServerFacts, timeout_s: float) -> None:
        self.facts = facts
        self.timeout_s = timeout_s
        self._openai = import_openai()
        self.client: Any = self._openai.OpenAI(
            base_url=f"{facts.url}/v1",
            api_key=facts.api_key or "none",
            max_retries=0,
            timeout=self._openai.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            http_client=self._openai.DefaultHttpxClient(
                verify=read_trust(facts.ca_file),
                trust_env=False,
                follow_redirects=False,
                headers=UNPACKED,
                event_hooks={"response": [check_encoding, _bound]},
            ),
        )

    @property
    def refused(self) -> type[Exception]:
        """What the client raises for a 400."""
        return self._openai.BadRequestError  # type: ignore[no-any-return]

    @property
    def free(self) -> dict[str, Any]:
        """Options with which random weights write text too: greedy ones repeat one token, or end at once."""
        return {"temperature": 1, "extra_body": {"ignore_eos": True}} if self.facts.is_dummy else {}

    @property
    def unthinking(self) -> dict[str, Any]:
        """Options that keep a thinking model from spending the tokens of an answer on its thoughts."""
        known = self.facts.make in (SGLANG, LLAMA_CPP)  # others may refuse what they do not know
        off = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}} if known else {}
        # Greedy random weights pad their JSON with blanks for ever, which its grammar allows.
        return {"temperature": 1, **off} if self.facts.is_dummy else off

    def close(self) -> None:
        """Close its connections; a check that hangs in one ends then."""
        self.client.close()

    def chat(self, content: str, **options: Any) -> Any:
        """Ask one question and return the client's ChatCompletion. Greedy, so that a rerun says the same."""
        return self.client.chat.completions.create(
            model=self.facts.model,
            messages=[{"role": "user", "content": content}],
            **({"temperature": 0} | options),
        )

    def stream_chat(self, content: str, *, max_tokens: int) -> Streamed:
        """Ask one question in plain text and take the answer as it comes."""
        began = time.monotonic()
        pieces: list[Piece] = []
        finish_reason, tokens = "", 0
        stream = self.chat(
            content, max_tokens=max_tokens, stream=True, stream_options={"include_usage": True}, **self.free
        )
        with stream:
            for chunk in stream:
                if chunk.usage is not None:
                    tokens = chunk.usage.completion_tokens
                for choice in chunk.choices[:1]:
                    finish_reason = choice.finish_reason or finish_reason
                    pieces.extend(_pieces(choice.delta))
        return Streamed(began=began, pieces=tuple(pieces), finish_reason=finish_reason, completion_tokens=tokens)


def _bound(response: Any) -> None:
    """Let no more of an answer come than is of use; all that reads one goes through its `iter_raw`."""
    read = response.iter_raw

    def iter_raw(chunk_size: int | None = None) -> Iterator[bytes]:
        size = 0
        for part in read(chunk_size):
            size += len(part)
            if size > LARGEST_ANSWER_BYTES:
                raise BrokenAnswerError(f"the answer has more than {LARGEST_ANSWER_BYTES >> 20} MiB")
            yield part

    response.iter_raw = iter_raw


def _pieces(delta: Any) -> Iterator[Piece]:
    """A thinking model's first words are reasoning, which streams just so."""
    text = delta.content or getattr(delta, "reasoning_content", None)
    if text:
        yield Piece(at=time.monotonic(), text=text)
