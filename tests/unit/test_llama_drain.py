"""What the drain reads out of the server's metrics; the drain itself is an integration test."""

from __future__ import annotations

import pytest

from infer_dev_entry.llama_server.drain import parse_busy

METRICS = """# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {running}
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred {queued}
"""


@pytest.mark.parametrize(("running", "queued", "busy"), [("0", "0", 0), ("2", "3", 5), ("1.0", "0", 1)])
def test_parse_busy_adds_running_and_queued(running: str, queued: str, busy: int) -> None:
    assert parse_busy(METRICS.format(running=running, queued=queued)) == busy
