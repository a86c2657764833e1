"""Counters: what the endpoints answer, and when they tell a busy server from a hung one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.counters import Rank, describe_counters, has_served, is_working, parse_counters, remember

# As SGLang 0.5.23 answered in the middle of a prefill in chunks: the request is neither running nor waiting.
LOAD = {
    "timestamp": 1795299293.7,
    "dp_rank": 0,
    "num_running_reqs": 0,
    "num_waiting_reqs": 0,
    "num_waiting_uncached_tokens": 1288,
    "num_used_tokens": 768,
    "token_usage": 0.1875,
    "gen_throughput": 0.0,
    "total_prefill_uncached_tokens": 285,
    "total_prefill_busy_us": 1071955,
    "decode_moments": [6.0, 6.0, 1786955.0, 6.0, 1786955.0, 6.0],
}
# 0.5.9 to 0.5.16 have no totals.
OLD_LOAD = {
    key: LOAD[key] for key in ("timestamp", "dp_rank", "num_running_reqs", "num_waiting_reqs", "num_used_tokens")
}
IDLE = Rank(running=0, queued=0, used_tokens=0, stamp=100.0, work=(0.0, 10.0), traffic=(10.0,))
BUSY = replace(IDLE, running=2, work=(0.0, 20.0), traffic=(20.0,), stamp=101.0)


def render_loads(*loads: dict[str, Any]) -> str:
    return json.dumps({"timestamp": "2026-11-21T22:15:00+00:00", "version": "0.5.23", "loads": loads})


def test_loads_are_parsed_and_a_chunked_prefill_is_busy() -> None:
    counters = parse_counters(render_loads(LOAD))
    assert counters is not None
    (rank,) = counters
    assert rank.is_busy
    assert rank.stamp == LOAD["timestamp"]
    assert rank.traffic == (285.0, 1071955.0, 6.0, 6.0, 1786955.0, 6.0, 1786955.0, 6.0)
    assert describe_counters(counters) == "0 running, 0 queued, 768 tokens in use"


@pytest.mark.parametrize("key", ["num_used_tokens", "total_prefill_uncached_tokens", "total_prefill_busy_us"])
def test_each_work_counter_is_progress(key: str) -> None:
    before, now = (parse_counters(render_loads({**LOAD, key: value})) for value in (512, 768))
    assert is_working(before, now)


def test_first_decode_is_progress() -> None:
    before, now = (parse_counters(render_loads({**LOAD, "decode_moments": moments})) for moments in (None, [1.0]))
    assert is_working(before, now)


def test_old_loads_show_progress_but_never_stand_in_for_a_probe() -> None:
    before, now = (parse_counters(render_loads({**OLD_LOAD, "num_used_tokens": used})) for used in (512, 768))
    assert is_working(before, now)
    assert not has_served(before, now, since=0.0)


def test_clock_alone_is_no_progress() -> None:
    """An idle scheduler's clock goes on while its detokenizer is frozen."""
    before, now = (parse_counters(render_loads({**LOAD, "timestamp": stamp})) for stamp in (1.0, 2.0))
    assert not is_working(before, now)
    assert not has_served(before, now, since=0.0)


def test_work_that_left_no_request_behind_is_no_excuse() -> None:
    assert not is_working((IDLE,), (replace(IDLE, work=(0.0, 11.0)),))


@pytest.mark.parametrize(
    ("before", "now", "working"),
    [
        ((IDLE, IDLE), (BUSY, replace(IDLE, stamp=101.0)), True),
        ((IDLE, IDLE), (BUSY, IDLE), False),  # the idle one's clock stands still
        ((IDLE, BUSY), (BUSY, BUSY), False),  # the second holds requests and does nothing
        ((IDLE,), (BUSY, BUSY), False),
        (None, (BUSY,), False),
        ((IDLE,), None, False),
    ],
)
def test_every_rank_must_go_on(before: Any, now: Any, working: bool) -> None:
    assert is_working(before, now) is working


def test_counters_of_two_pages_are_not_compared() -> None:
    before = parse_counters(render_loads(LOAD))
    now = parse_counters("sglang:num_running_reqs 1\nsglang:prompt_tokens_total 9\n")
    assert before and now and len(before) == len(now)
    assert not is_working(before, now)
    assert not is_working(now, before)


def test_pages_in_turn_are_each_compared_with_their_own() -> None:
    """Before SGLang 0.5.17 `/v1/loads` may come too late now and then, and `/metrics` stands in for it."""
    loads = [parse_counters(render_loads({**OLD_LOAD, "num_used_tokens": used})) for used in (1, 2, 2)]
    metrics = [parse_counters(f"sglang:num_running_reqs 1\nsglang:prompt_tokens_total {n}\n") for n in (5, 6, 6)]
    kept, working = None, []
    for now in (loads[0], metrics[0], loads[1], metrics[1], loads[2], metrics[2]):
        working.append(is_working(kept, now))
        kept = remember(kept, now)
    assert working == [False, False, True, True, False, False]
    assert kept == (*loads[2], *metrics[2])
    assert remember(kept, None) == kept


@pytest.mark.parametrize(("since", "served"), [(101.0, True), (101.5, False)])
def test_traffic_proves_life_only_of_a_scheduler_that_still_ran(since: float, served: bool) -> None:
    assert has_served((IDLE,), (BUSY,), since=since) is served


METRICS = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m, {x} 7",tp_rank="0"} 3.0
sglang:num_running_reqs{engine_type="unified",model_name="m, {x} 7",tp_rank="1"} 3.0
sglang:num_running_reqs_offline_batch{tp_rank="0"} 9.0
sglang:num_queue_reqs{tp_rank="0"} 1.0
sglang:num_used_tokens{tp_rank="0"} NaN
sglang:time_to_first_token_seconds_bucket{le="0.1"} 5.0
sglang:prompt_tokens_total{model_name="m"} 1024.0
sglang:realtime_tokens_total{mode="prefill_compute"} 512.0
sglang:realtime_tokens_total{mode="decode"} 5.0
"""


def test_metrics_of_sglang_are_summed_over_their_labels() -> None:
    (rank,) = parse_counters(METRICS) or ()
    assert (rank.running, rank.queued, rank.used_tokens) == (6.0, 1.0, 0.0)
    assert rank.work == (0.0, 1024.0, 517.0)
    assert rank.traffic == ()
    assert is_working((rank,), parse_counters(METRICS.replace("512.0", "768.0")))
    assert not is_working((rank,), parse_counters(METRICS))


def test_metrics_of_llama_cpp_are_understood() -> None:
    text = "llamacpp:prompt_tokens_total 12\nllamacpp:n_decode_total {}\nllamacpp:requests_processing 1\n"
    assert is_working(parse_counters(text.format(7)), parse_counters(text.format(8)))
    assert not is_working(parse_counters(text.format(7)), parse_counters(text.format(7)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "{" * 100_000,
        '{"loads": []}',
        '{"loads": {}}',
        '{"loads": [1]}',
        '{"loads": [{}]}',
        '{"loads": null}',
        '{"loads": [{"num_running_reqs": 1' + "0" * 400 + "}]}",
        "<html>",
        "sglang:num_queue_reqs 1",
        "sglang:num_running_reqs one",
    ],
)
def test_anything_else_is_no_counters(text: str) -> None:
    assert parse_counters(text) is None


def test_nan_never_looks_like_progress() -> None:
    text = render_loads({**LOAD, "num_used_tokens": float("nan"), "total_prefill_busy_us": float("nan")})
    assert not is_working(parse_counters(text), parse_counters(text))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(LOAD)), inner, max_size=5),
    max_leaves=8,
)


@given(st.text() | st.builds(json.dumps, st.fixed_dictionaries({"loads": st.lists(_VALUES, max_size=3) | _VALUES})))
def test_no_answer_raises_or_compares_unlike_itself(text: str) -> None:
    counters = parse_counters(text)
    assert not is_working(counters, parse_counters(text))
    assert counters is None or describe_counters(counters)
