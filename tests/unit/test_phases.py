"""Start-up phases from log lines of real SGLang versions, and the estimates from earlier starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.phases import (
    KEPT_SERVERS,
    KEPT_STARTS,
    History,
    estimate_left_s,
    first_phase,
    latest_phase,
    parse_history,
    render_history,
    starts_of,
    with_start,
)

LOGS = Path(__file__).parent / "data" / "sglang-logs"
LINES = (
    ("[2026-11-21 22:13:35] Load weight begin. avail mem=16.13 GB", "weights"),
    ("\rMulti-thread loading shards:  50% Completed | 4/8 [00:20<00:20,  5.0s/it]", "weights"),
    (
        "[2026-11-21 22:13:35 TP0] Load weight end. elapsed=0.02 s, type=LlamaForCausalLM, avail mem=16.13 GB",
        "kv-cache",
    ),
    ("[2026-11-21 22:13:35 TP1] Load weight begin. avail mem=16.13 GB", "kv-cache"),
    ("[2026-11-21 22:13:36] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 4096, K size: 0.00 GB", "kv-cache"),
    ("[2026-11-21 22:13:36] Capture cuda graph begin. This can take up to several minutes. avail mem", "graph-capture"),
    ("[2026-11-21 22:13:36] Capture cuda graph end. Time elapsed: 20.1 s. mem usage=1.0 GB.", "graph-capture"),
    ("[2026-11-21 22:13:37] INFO:     Uvicorn running on http://127.0.0.1:31871 (Press CTRL+C to quit)", "warm-up"),
    ("[2026-11-21 22:13:41] The server is fired up and ready to roll!", "warm-up"),
)


def test_phases_follow_the_log_and_never_go_back() -> None:
    phase = first_phase("sglang")
    assert phase == "import"
    for line, expected in LINES:
        phase = latest_phase("sglang", phase, line.encode())
        assert phase == expected, line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("startup.log", ["import", "weights", "kv-cache", "warm-up"]),  # no graphs on a CPU
        ("startup-h200.log", ["import", "weights", "kv-cache", "graph-capture", "warm-up"]),
    ],
)
def test_real_start_passes_through_its_phases(name: str, expected: list[str]) -> None:
    phase, seen = first_phase("sglang"), []
    for line in (LOGS / name).read_bytes().splitlines():
        phase = latest_phase("sglang", phase, line)
        seen += [phase] if phase not in seen else []
    assert seen == expected


def test_whole_log_at_once_is_its_last_phase() -> None:
    assert latest_phase("sglang", "import", "\n".join(line for line, _ in LINES).encode()) == "warm-up"


@pytest.mark.parametrize(
    "line", ["Capture decode CUDA graph begin. backend", "Capture piecewise CUDA graph begin. avail"]
)
def test_graph_capture_is_known_under_its_names(line: str) -> None:
    assert latest_phase("sglang", "kv-cache", line.encode()) == "graph-capture"


def test_engine_without_phases_has_none() -> None:
    assert first_phase("llama_cpp") == ""
    assert latest_phase("llama_cpp", "", b"Load weight begin") == ""


START = (("import", 60.0), ("weights", 30.0), ("kv-cache", 2.0), ("graph-capture", 8.0), ("warm-up", 4.0))


@pytest.mark.parametrize(
    ("phase", "in_phase_s", "left_s"),
    [("import", 0, 104), ("import", 50, 54), ("weights", 10, 34), ("weights", 90, 14), ("warm-up", 9, 0)],
)
def test_estimate_is_what_is_left_of_the_phase_and_all_after_it(phase: str, in_phase_s: float, left_s: float) -> None:
    assert estimate_left_s((START,), phase, in_phase_s) == left_s


def test_estimate_is_the_median_so_that_one_cold_start_does_not_count() -> None:
    cold = (("import", 60.0), ("weights", 500.0))
    warm = (("import", 60.0), ("weights", 30.0))
    assert estimate_left_s((cold, warm, warm), "import", 0.0) == 90.0


def test_no_start_before_gives_no_estimate() -> None:
    assert estimate_left_s((), "import", 0.0) is None
    assert estimate_left_s(((("import", 1.0),),), "weights", 0.0) is None


def test_history_survives_its_text_and_keeps_the_last_starts() -> None:
    history: History = {}
    for number in range(KEPT_STARTS + 3):
        history = with_start(history, "a", "hash", (("import", float(number)),))
    history = with_start(history, "b", "other", START)
    history = parse_history(render_history(history))
    assert [start[0][1] for start in starts_of(history, "a", "hash")] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert starts_of(history, "b", "other") == (START,)


def test_another_command_line_begins_anew() -> None:
    history = with_start({}, "a", "old", START)
    assert starts_of(history, "a", "new") == ()
    assert starts_of(with_start(history, "a", "new", START), "a", "old") == ()


def test_history_is_bounded() -> None:
    history: History = {}
    for number in range(KEPT_SERVERS + 10):
        history = with_start(history, f"s{number}", "hash", START)
    assert len(history) == KEPT_SERVERS
    assert len(render_history(history)) < 256 * 1024
    assert "s0" not in history


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9) | st.just("import"),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["a", "argv_hash", "starts"]), inner, max_size=3)
        ),
        max_leaves=12,
    ).map(json.dumps)
)
def test_no_file_breaks_the_history(text: str) -> None:
    for past in parse_history(text).values():
        for start in past.starts:
            assert all(0 <= seconds <= 86400 for _, seconds in start)
            estimate_left_s((start,), "import", 1.0)
