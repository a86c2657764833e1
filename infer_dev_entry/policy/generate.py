"""Ask a served model for policies, check them, and choose by expected free energy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from infer_dev_entry.config.faults import Faults, shown
from infer_dev_entry.errors import BadRequestError, PolicyAnswerError, PolicyInputError
from infer_dev_entry.policy.answer import MAX_CANDIDATES, Proposal, parse_answer, render_schema
from infer_dev_entry.policy.checked import MAX_STATE_CHARACTERS, copy_json, parse_levels
from infer_dev_entry.policy.model import Levels, PolicySelection, Refusal
from infer_dev_entry.policy.prompt import Messages, render_messages, render_repair
from infer_dev_entry.policy.score import rank_policies

DEFAULT_CANDIDATES = 4
TOKENS_PER_CANDIDATE = 512  # a bound for whoever writes on and on: an answer of full length has some 300
_QUOTED_CHARACTERS = 300
_TEMPLATE_TOKENS = 64


class Answer(Protocol):
    """What a runtime returns: the text, and why it ended ("stop", "length")."""

    @property
    def text(self) -> str:
        """The model's words."""

    @property
    def finish_reason(self) -> str:
        """The server's word for why it ended."""


class ChatRuntime(Protocol):
    """What is needed of a runtime; `infer_dev_entry.client.Runtime` is one."""

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        /,
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        json_schema: Mapping[str, object] | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        chat_template_kwargs: Mapping[str, object] = ...,
    ) -> Answer:
        """Ask, with the server's structured output holding the answer to the schema."""


class PolicyGenerator:
    """Generate policies with a runtime and choose the one of the smallest expected free energy."""

    def __init__(
        self,
        runtime: ChatRuntime,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        temperature: float = 0.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        thinking: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Take a runtime and the options of a request; `timeout_s` is that of each of at most two requests.

        `max_new_tokens` is by default 512 a candidate, or where the model's context has no room for those what it has.
        Without `thinking` a model that would think first is told not to (SGLang's and llama.cpp's
        `chat_template_kwargs`); with it the thoughts come out of the same tokens.

        Raises:
            PolicyInputError: `candidates` is not from 1 to 16.
        """
        if type(candidates) is not int or not 1 <= candidates <= MAX_CANDIDATES:
            raise PolicyInputError((f"candidates: expected 1 to {MAX_CANDIDATES}, got {shown(candidates)}",))
        self._runtime = runtime
        self._candidates = candidates
        self._temperature = temperature
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._other = {} if thinking else {"chat_template_kwargs": {"enable_thinking": False}}
        self._timeout_s = timeout_s

    def generate_policy(
        self, sensory_state: object, workspace_contents: object, neurotransmitters: Mapping[str, object]
    ) -> PolicySelection:
        """Ask for candidates, score them, and return them with the chosen one. Nothing given is changed.

        States are anything that JSON can hold, up to 65,536 characters each. An answer that is not usable is asked for
        once more, with what was wrong with it.

        Raises:
            PolicyInputError: what was given cannot be used; it holds every fault.
            PolicyAnswerError: the second answer is not usable either; it holds both, whole.
            ClientError: the runtime's own errors pass.
        """
        messages, levels = _prepare(self._candidates, sensory_state, workspace_contents, neurotransmitters)
        proposals, refused = self._ask(messages)
        if refused is not None:
            try:
                proposals, last = self._ask(render_repair(messages, refused.raw_text, refused.faults))
            except BadRequestError as error:  # it is longer than the first, which the server took
                raise _answer_error(refused, Refusal(faults=(str(error),), raw_text=refused.raw_text)) from error
            if last is not None:
                raise _answer_error(refused, last)
        ranked = rank_policies(
            [proposal.policy for proposal in proposals],
            {"dopamine": levels.dopamine, "serotonin": levels.serotonin, "cortisol": levels.cortisol},
            [proposal.claims for proposal in proposals],
        )
        return PolicySelection(policy=ranked[0].policy, candidates=ranked, refused=refused)

    def _ask(self, messages: Messages) -> tuple[tuple[Proposal, ...], Refusal | None]:
        limit = self._limit(messages) if self._max_new_tokens is None else self._max_new_tokens
        answer = self._runtime.chat(
            messages,
            temperature=self._temperature,
            max_new_tokens=limit,
            json_schema=render_schema(self._candidates),
            seed=self._seed,
            timeout_s=self._timeout_s,
            **self._other,
        )
        faults = Faults("answer")
        if answer.finish_reason == "length":
            faults.add_line(
                f"cut off at max_new_tokens = {limit}; raise max_new_tokens or answer shorter"
                if limit
                else "cut off at the end of the model's context; answer shorter, or serve it with a longer one"
            )
            return (), Refusal(faults=faults.faults, raw_text=answer.text)
        proposals = parse_answer(answer.text, self._candidates, faults)
        return proposals, Refusal(faults=faults.faults, raw_text=answer.text) if faults.faults else None

    def _limit(self, messages: Messages) -> int | None:
        """The bound of an answer; None leaves it to the server, which then stops where the context ends.

        SGLang and vLLM refuse a request whose prompt and bound do not fit the context together. How many tokens a
        prompt has only the server knows; they are at most its bytes, and those that a chat template adds.
        """
        wanted = TOKENS_PER_CANDIDATE * self._candidates
        ask = getattr(self._runtime, "context_tokens", None)
        context = ask() if callable(ask) else 0
        size = sum(len(message["content"].encode()) for message in messages) + _TEMPLATE_TOKENS
        return None if context and size + wanted > context else wanted


def _prepare(
    count: int, sensory_state: object, workspace_contents: object, neurotransmitters: object
) -> tuple[Messages, Levels]:
    faults = Faults("cannot ask for policies")
    states = []
    for name, value in (("sensory_state", sensory_state), ("workspace_contents", workspace_contents)):
        states.append(copy_json(value, faults, (name,)))
        size = len(json.dumps(states[-1], ensure_ascii=False))
        if size > MAX_STATE_CHARACTERS:
            mend = "leave out what the choice does not need"
            faults.add((name,), f"has {size} characters of JSON, more than {MAX_STATE_CHARACTERS}", mend)
    levels = parse_levels(neurotransmitters, faults, ("neurotransmitters",))
    if faults.faults:
        raise PolicyInputError(faults.faults)
    return render_messages(count, states[0], states[1], levels), levels


def _answer_error(first: Refusal, last: Refusal) -> PolicyAnswerError:
    faults = "; ".join(last.faults[:3]) + (f"; and {len(last.faults) - 3} more" if len(last.faults) > 3 else "")
    raw = ascii(last.raw_text[:_QUOTED_CHARACTERS]) + ("…" if len(last.raw_text) > _QUOTED_CHARACTERS else "")
    return PolicyAnswerError(
        f"the model gives no usable policies, also after a repair: {faults}; it wrote {raw}; "
        "does the server hold answers to json_schema? see infer-dev smoke",
        faults=last.faults,
        raw_text=last.raw_text,
        first_raw_text=first.raw_text,
    )
