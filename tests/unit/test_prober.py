"""One probe: counters first, then the health endpoint, then counters again, against a scripted server on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from make import PROBE, make_spec

from infer_dev_entry.counters import Rank
from infer_dev_entry.fleet.actions import Probe
from infer_dev_entry.fleet.observations import ProbeSeen
from infer_dev_entry.init import prober as module
from infer_dev_entry.init.prober import Prober
from infer_dev_entry.probe import Page, ProbeResult
from infer_dev_entry.spec import FileSpec, ServerSpec

SPEC = make_spec(
    probe=replace(
        PROBE, timeout_s=5.0, progress_paths=("/v1/loads", "/metrics"), counters_first=True, stall_timeout_s=9
    )
)
BEFORE = (Rank(running=0, queued=0, used_tokens=0, stamp=1.0, work=(0.0, 1.0), traffic=(1.0,), page="loads"),)


def loads(total: int, *, age_s: float = 0.0, running: int = 0) -> Page:
    load = {
        "timestamp": time.time() - age_s,
        "num_running_reqs": running,
        "num_used_tokens": 0,
        "total_prefill_uncached_tokens": total,
    }
    return Page(status=200, text=json.dumps({"loads": [load]}))


class Script:
    """Stands in for the two doors to HTTP, and keeps what was asked for and for how long."""

    def __init__(self, pages: dict[str, Page], *, healthy: bool = True) -> None:
        self.pages = pages
        self.healthy = healthy
        self.asked: list[str] = []
        self.timeouts: list[float] = []
        self.keys: list[str] = []

    async def read_page(self, _host: str, _port: int, path: str, timeout_s: float, *, api_key: str = "") -> Page:
        self.asked.append(path)
        self.keys.append(api_key)
        assert timeout_s <= module.COUNTERS_TIMEOUT_S
        return self.pages.get(path, Page(status=404))

    async def run_probe(self, _host: str, _port: int, path: str, timeout_s: float) -> ProbeResult:
        self.asked.append(path)
        self.timeouts.append(timeout_s)
        return ProbeResult(ok=self.healthy, status=200 if self.healthy else 0, reason="scripted")


@contextmanager
def scripted(pages: dict[str, Page], *, healthy: bool = True) -> Iterator[Script]:
    script = Script(pages, healthy=healthy)
    patch = mock.patch.object
    with patch(module, "read_page", script.read_page), patch(module, "run_probe", script.run_probe):
        yield script


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., ProbeSeen]:
    """Probe once, with one prober for the whole test."""
    prober = Prober(str(tmp_path))

    def run(spec: ServerSpec = SPEC, pid: int = 100, **changes: object) -> ProbeSeen:
        ask = Probe(spec=spec, pid=pid, path="/health", trusts=True, before=BEFORE, fresh_s=100.0)
        return asyncio.run(prober.probe(replace(ask, **changes)))  # type: ignore[arg-type]

    return run


def test_moved_counters_spare_the_health_endpoint(probe: Callable[..., ProbeSeen]) -> None:
    with scripted({"/v1/loads": loads(2)}) as script:
        seen = probe()
    assert script.asked == ["/v1/loads"]
    assert (seen.ok, seen.by_counters) == (True, True)
    assert seen.counters and seen.counters[0].traffic == (2.0,)


@pytest.mark.parametrize(
    ("page", "trusts"),
    [
        (loads(1), True),  # nothing moved
        (loads(2, age_s=500.0), True),  # moved, but its scheduler has not run for long
        (loads(2), False),
        (Page(status=0), True),
        (Page(status=500), True),
        (Page(status=200, text="{"), True),
    ],
)
def test_counters_that_prove_nothing_are_followed_by_a_generation(
    probe: Callable[..., ProbeSeen], page: Page, trusts: bool
) -> None:
    with scripted({"/v1/loads": page}) as script:
        seen = probe(trusts=trusts)
    says = page.status == 200 and page.text != "{"
    tried = ["/v1/loads"] if says else ["/v1/loads", "/metrics"]
    assert script.asked == (tried if trusts else []) + ["/health"]
    assert (seen.ok, seen.by_counters) == (True, False)


def test_counters_are_asked_for_with_the_servers_own_key(probe: Callable[..., ProbeSeen]) -> None:
    spec = replace(SPEC, files=(FileSpec(path="/run/c/a.yaml", text='{"api-key": "k"}'),))
    with scripted({"/v1/loads": loads(2)}) as script:
        probe(spec)
        probe(pid=101)
    assert script.keys == ["k", ""]


def test_failed_probe_brings_the_counters_after_it(probe: Callable[..., ProbeSeen]) -> None:
    with scripted({"/v1/loads": loads(7, running=1)}, healthy=False) as script:
        seen = probe(trusts=False)
    assert script.asked == ["/health", "/v1/loads"]
    assert not seen.ok
    assert seen.counters and seen.counters[0].traffic == (7.0,)


def test_page_that_hangs_leaves_time_for_the_next(probe: Callable[..., ProbeSeen]) -> None:
    """Before SGLang 0.5.17 its scheduler answers /v1/loads, and in a long prefill it does not."""
    metrics = Page(status=200, text="sglang:num_running_reqs 1.0\nsglang:prompt_tokens_total 7\n")
    with scripted({"/v1/loads": Page(status=0), "/metrics": metrics}, healthy=False) as script:
        seen = probe(trusts=False)
        probe(trusts=False)
    assert script.asked == ["/health", "/v1/loads", "/metrics"] * 2
    assert seen.counters and (seen.counters[0].page, seen.counters[0].work) == ("metrics", (7.0,))


def test_page_that_is_not_offered_is_not_asked_for_again_by_the_same_process(probe: Callable[..., ProbeSeen]) -> None:
    metrics = Page(status=200, text="sglang:num_running_reqs 1.0\n")
    with scripted({"/metrics": metrics}, healthy=False) as script:
        assert probe().counters is not None
        assert script.asked == ["/v1/loads", "/metrics", "/health", "/metrics"]
        script.asked.clear()
        probe()
        assert script.asked == ["/metrics", "/health", "/metrics"]
        script.asked.clear()
        probe(pid=101)
        assert script.asked[0] == "/v1/loads"


def test_health_has_the_whole_time_where_there_are_no_counters(probe: Callable[..., ProbeSeen]) -> None:
    with scripted({}) as script:
        probe()
        probe()
    assert 4.0 < script.timeouts[-1] <= 5.0  # 4.0 with the share of the counters taken off


def test_time_for_the_counters_is_taken_off_that_for_health(probe: Callable[..., ProbeSeen]) -> None:
    with scripted({"/v1/loads": loads(1)}) as script:
        probe()
    assert len(script.timeouts) == 1 and 3.0 < script.timeouts[0] <= 4.0


def test_readiness_brings_the_first_counters_and_the_phase(probe: Callable[..., ProbeSeen], tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    spec = replace(SPEC, log_file=str(log))
    with scripted({"/v1/loads": loads(1)}, healthy=False) as script:
        assert probe(spec, starting=True, trusts=False).phase == "import"
        log.write_text("Load weight begin")
        seen = probe(spec, starting=True, trusts=False)
        assert (seen.phase, seen.log_grew, seen.counters) == ("weights", True, None)
        script.healthy = True
        seen = probe(spec, starting=True, trusts=False)
    assert (seen.phase, seen.log_grew) == ("weights", False)
    assert seen.counters is not None


def test_history_is_kept_in_the_run_directory_and_an_unwritable_one_is_no_error(tmp_path: Path) -> None:
    start = (("import", 1.0), ("weights", 2.0))
    Prober(str(tmp_path)).remember(SPEC, start)
    assert Prober(str(tmp_path)).expect_start(SPEC) == (start,)
    assert Prober(str(tmp_path)).expect_start(replace(SPEC, argv=("other",))) == ()
    Prober(str(tmp_path / "missing")).remember(SPEC, start)
