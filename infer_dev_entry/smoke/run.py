"""Run the checks one after the other, each in a thread that is left behind when its time is up."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from infer_dev_entry.client.connection import import_openai
from infer_dev_entry.client.failures import failure_of_status
from infer_dev_entry.doctor.environment import read_installed
from infer_dev_entry.doctor.environment_checks import check_installed
from infer_dev_entry.doctor.rows import Verdict as DoctorVerdict
from infer_dev_entry.errors import BrokenAnswerError, ClientError, RefusedKeyError
from infer_dev_entry.redact import redact_line
from infer_dev_entry.settings import parse_settings
from infer_dev_entry.smoke import basics, structured
from infer_dev_entry.smoke.asker import Asker
from infer_dev_entry.smoke.facts import ServerFacts
from infer_dev_entry.smoke.rows import Outcome, Row, Verdict, failed, passed, skipped

ENVIRONMENT = "environment"
CHECKS: Mapping[str, Callable[[Asker], Outcome]] = {
    "models": basics.check_models,
    "chat": basics.check_chat,
    "completion": basics.check_completion,
    "streaming": basics.check_streaming,
    "json-schema": structured.check_json_schema,
    "tool-call": structured.check_tool_call,
    "reasoning": structured.check_reasoning,
    "long-prompt": basics.check_long_prompt,
    "unknown-model": basics.check_unknown_model,
    "concurrency": basics.check_concurrency,
    "speed": basics.check_speed,
}
NAMES = (ENVIRONMENT, *CHECKS)
_LONGEST_SEEN = 500


def check_environment(environ: Mapping[str, str]) -> Outcome:
    """The installed environment is the one in use, complete, and was verified when it was installed."""
    installed = read_installed(parse_settings(environ).project_dir)
    row = check_installed(installed, is_needed=installed.has_file)
    if row.verdict is DoctorVerdict.FAIL:
        return failed(row.seen, row.mend)
    if row.verdict is DoctorVerdict.SKIP:
        return skipped(row.seen)
    return passed(row.seen)


def run_environment(environ: Mapping[str, str]) -> Row:
    """Return the row of the environment, which is the container's and not a server's."""
    began = time.monotonic()
    return _row("", ENVIRONMENT, check_environment(environ), began)


def row_of_unasked(server: str, error: ClientError) -> Row:
    """Return the row of a server among several that could not be asked anything; one whose key we lack may be well."""
    outcome = skipped(str(error)) if isinstance(error, RefusedKeyError) else failed(str(error))
    return _row(server, "models", outcome, time.monotonic())


def run_checks(facts: ServerFacts, names: Sequence[str], timeout_s: float) -> Iterator[Row]:
    """Yield a row for each of these checks; each takes at most `timeout_s`."""
    for name in names:
        asker = Asker(facts, timeout_s)
        began = time.monotonic()
        outcome = _bounded(partial(_judge, CHECKS[name], asker), timeout_s)
        yield _row(facts.label, name, _cleaned(outcome, facts.api_key), began)
        if outcome.verdict is not Verdict.FAIL:  # one that hangs in a read would hold up its close
            asker.close()


def _cleaned(outcome: Outcome, api_key: str) -> Outcome:
    """Cut what a server said, and blot out the key, which it may say as well."""
    seen = redact_line(outcome.seen, (api_key,) if api_key else ())
    seen = seen if len(seen) <= _LONGEST_SEEN else f"{seen[:_LONGEST_SEEN]}…"
    # JSON has neither NaN nor infinity; both come of counts that a server made up.
    finite = tuple((name, value) for name, value in outcome.measures if math.isfinite(value))
    return replace(outcome, seen=seen, measures=finite)


def _row(server: str, name: str, outcome: Outcome, began: float) -> Row:
    return Row(
        server=server,
        check=name,
        verdict=outcome.verdict,
        seconds=time.monotonic() - began,
        seen=outcome.seen,
        mend=outcome.mend,
        measures=outcome.measures,
    )


def _bounded(check: Callable[[], Outcome], timeout_s: float) -> Outcome:
    answer: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(check()), daemon=True).start()
    try:
        return answer.get(timeout=timeout_s)
    except queue.Empty:
        return failed(
            f"not done in {timeout_s:g} s", "see infer-dev status whether it hangs; or give a longer --timeout"
        )


def _judge(check: Callable[[Asker], Outcome], asker: Asker) -> Outcome:
    """Run a check; what it raises is a failure with its reason."""
    try:
        return check(asker)
    except basics.SomeFailedError as error:
        cause = _explain(error.__cause__ or error, asker)
        return failed(f"{error}: {cause.seen}", cause.mend)
    except Exception as error:  # the answers are foreign: anything may be missing in them
        return _explain(error, asker)


def _explain(error: BaseException, asker: Asker) -> Outcome:
    openai = import_openai()
    key = (asker.facts.api_key,) if asker.facts.api_key else ()
    if isinstance(error, openai.APIStatusError):
        return failed(redact_line(str(failure_of_status(error.status_code, error.response.content)), key))
    if isinstance(error, openai.APITimeoutError):
        return failed(f"no answer in {asker.timeout_s:g} s", "see infer-dev status whether it hangs")
    if isinstance(error, openai.APIConnectionError):
        reason = redact_line(str(error.__cause__ or error), key)
        if isinstance(error.__cause__, BrokenAnswerError):
            return failed(f"the answer cannot be used: {reason}", "see the server's log")
        return failed(f"no connection, or it broke: {reason}", "see infer-dev status and the server's log")
    reason = redact_line(f"{type(error).__name__}: {error}"[:200], key)
    return failed(f"the answer cannot be used: {reason}", "see the server's log")
