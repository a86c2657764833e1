"""The checks that every server has to pass: models, answers, streams, prompts of every size, many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import pairwise

from infer_dev_entry.foreign_text import shown
from infer_dev_entry.smoke.asker import Asker, Streamed
from infer_dev_entry.smoke.facts import LLAMA_CPP, SGLANG
from infer_dev_entry.smoke.rows import Outcome, failed, passed, skipped

QUESTION = "Count from one to twenty in words."
AT_ONCE = 8
_STREAM_TRIES = 3
_FEWEST_PIECES = 8
_MOST_AN_ARRIVAL = 4
_QUICK_S = 0.1
# Longer prompts take minutes on a CPU; users of long contexts have benchmarks for that.
LONGEST_PROMPT_TOKENS = 8192
_UNKNOWN_PROMPT_TOKENS = 1000
_NO_MODEL = "infer-dev-smoke-no-such-model"
# What comes in one read is parsed in less than this; tokens are milliseconds apart.
_APART_S = 0.001


def check_models(server: Asker) -> Outcome:
    """The list of models has the one that is asked below."""
    ids = [model.id for model in server.client.models.list().data]
    if not ids:
        return failed("/v1/models lists none", "see the server's log")
    context = f"; {server.facts.context_tokens} tokens of context" if server.facts.context_tokens else ""
    return passed(f"{', '.join(ids)[:120]}{context}")


def check_chat(server: Asker) -> Outcome:
    """A chat has an answer with words in it, and says why it ended."""
    answer = server.chat(QUESTION, max_tokens=32, **server.free)
    choice = answer.choices[0]
    text = choice.message.content or getattr(choice.message, "reasoning_content", None) or ""
    if not text:
        return failed("the answer is empty", "see the model's chat template, and the server's log")
    if not choice.finish_reason:
        return failed(f"no finish_reason behind {shown(text)}", "see what stands between the client and the server")
    return passed(f"{shown(text)}, {_counted(answer.usage)}")


def check_completion(server: Asker) -> Outcome:
    """A plain prompt is completed."""
    answer = server.client.completions.create(
        model=server.facts.model, prompt="Once upon a time", max_tokens=16, temperature=0
    )
    text = answer.choices[0].text
    return passed(f"{shown(text)}, {_counted(answer.usage)}") if text else failed("the completion is empty")


def _counted(usage: object) -> str:
    tokens = getattr(usage, "completion_tokens", None)
    return f"{tokens} tokens" if tokens else "tokens not counted"


def check_streaming(server: Asker) -> Outcome:
    """A stream comes piece by piece, and ends with its reason.

    One that looks buffered is asked for anew: a buffer does the same again, and a client that had to wait for its
    processor does not.
    """
    for _ in range(_STREAM_TRIES - 1):
        stream = server.stream_chat(QUESTION, max_tokens=32)
        if not stream.finish_reason or not is_buffered(stream):
            return judge_stream(stream)
    return judge_stream(server.stream_chat(QUESTION, max_tokens=32))


def judge_stream(stream: Streamed) -> Outcome:
    """Say what is wrong with a stream, if anything is."""
    count = len(stream.pieces)
    if not count:
        return failed("the stream has no text", "see the server's log")
    if not stream.finish_reason:
        return failed(
            f"the stream ended after {count} pieces without a finish_reason",
            "it was cut: see the server's log, and timeouts of what stands in between",
        )
    if count < _FEWEST_PIECES:
        return skipped(f"an answer of {count} piece{'s' if count > 1 else ''} is too short to tell")
    took_s = stream.pieces[-1].at - stream.began
    if is_buffered(stream):
        if took_s < _QUICK_S:
            return skipped(f"{count} pieces in {took_s:.3f} s came too quickly to tell")
        arrivals = count_apart(stream) + 1
        how = "all at once" if arrivals == 1 else f"in {arrivals} arrivals"
        return failed(
            f"{count} pieces came {how}, the first after {stream.pieces[0].at - stream.began:.2f} s of {took_s:.2f} s",
            "something in between buffers: nginx needs proxy_buffering off",
        )
    return passed(f"{count} pieces in {count_apart(stream) + 1} arrivals, finish_reason {stream.finish_reason}")


def is_buffered(stream: Streamed) -> bool:
    """True when many pieces came with each arrival; a buffer of a fixed size lets go of them now and then."""
    count = len(stream.pieces)
    return count >= _FEWEST_PIECES and _MOST_AN_ARRIVAL * (count_apart(stream) + 1) < count


def count_apart(stream: Streamed) -> int:
    """How often a piece came noticeably later than the one before."""
    times = [piece.at for piece in stream.pieces]
    return sum(later - earlier > _APART_S for earlier, later in pairwise(times))


def check_long_prompt(server: Asker) -> Outcome:
    """A prompt that fills three quarters of the context is read to its end."""
    context = server.facts.context_tokens
    wanted = min(context * 3 // 4, LONGEST_PROMPT_TOKENS) if context else _UNKNOWN_PROMPT_TOKENS
    # A common word with its blank is a token in most vocabularies; where it is two, half as many still fit.
    sample = server.client.completions.create(model=server.facts.model, prompt="word " * 32, max_tokens=1)
    told = sample.usage.prompt_tokens if sample.usage else 0
    words = int(wanted * 32 / max(told, 32))
    answer = server.client.completions.create(
        model=server.facts.model, prompt="word " * words, max_tokens=4, temperature=0
    )
    read = answer.usage.prompt_tokens if answer.usage else 0
    of = f" of a context of {context}" if context else "; the server does not tell its context"
    if told and read < words * 3 // 4:
        return failed(
            f"only {read} tokens of a prompt of {words} words were read", "it was cut: see the context length"
        )
    return passed(f"a prompt of {read or words} tokens{of}", prompt_tokens=read)


def check_unknown_model(server: Asker) -> Outcome:
    """A model that is not there is refused, where the server looks at the name at all."""
    from openai import APIStatusError

    try:
        server.client.completions.create(model=_NO_MODEL, prompt="Hello", max_tokens=1)
    except APIStatusError as error:
        if 400 <= error.status_code < 500:
            return passed(f"refused with {error.status_code}")
        return failed(f"it answers {error.status_code}, and should refuse with 404", "see the server's log")
    if server.facts.make in (LLAMA_CPP, SGLANG):
        return skipped(f"{server.facts.make} serves one model and does not look at the name")
    return failed("a model that is not there was answered for", "route by model name, or serve one model a URL")


def check_concurrency(server: Asker) -> Outcome:
    """Eight questions at a time are all answered."""

    def ask(number: int) -> float:
        began = time.monotonic()
        server.chat(f"Name {number + 2} colours.", max_tokens=8).choices[0].message  # noqa: B018
        return time.monotonic() - began

    began = time.monotonic()
    asked = [_submit(partial(ask, number)) for number in range(AT_ONCE)]
    problems = [error for future in asked if (error := future.exception())]
    if problems:
        raise problems[0] if len(problems) == AT_ONCE else SomeFailedError(len(problems)) from problems[0]
    took, slowest = time.monotonic() - began, max(future.result() for future in asked)
    return passed(f"{AT_ONCE} of {AT_ONCE} answered in {took:.2f} s, the slowest in {slowest:.2f} s", took_s=took)


def _submit(ask: Callable[[], float]) -> Future[float]:
    """Ask in a thread. An executor's threads would keep the process alive for as long as a server says nothing."""
    future: Future[float] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class SomeFailedError(Exception):
    """Some of the questions at a time failed; the cause is the first one's."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} of {AT_ONCE} at a time failed")


def check_speed(server: Asker) -> Outcome:
    """How long the first token takes, and how fast the others follow; a fact, not a judgement."""
    stream = server.stream_chat(QUESTION, max_tokens=64)
    if not stream.pieces:
        return failed("the stream has no text", "see the server's log")
    first_s = stream.pieces[0].at - stream.began
    rest_s = stream.pieces[-1].at - stream.pieces[0].at
    tokens = stream.completion_tokens or len(stream.pieces)
    if tokens < 2 or rest_s <= 0:
        return passed(f"first token after {first_s:.3f} s; the answer is too short for more", first_token_s=first_s)
    rate = (tokens - 1) / rest_s
    return passed(
        f"first token after {first_s:.3f} s, then {rate:.1f} tokens/s", first_token_s=first_s, tokens_per_s=rate
    )
