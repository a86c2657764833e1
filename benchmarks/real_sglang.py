"""The real SGLang on this CPU, as tools/sglang-cpu.sh makes it: where it is, how it is started, what it has done."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import free_ports
from benchmarks.managers import Events, private_dir, run_entry
from benchmarks.processes import Namespace

SGLANG_MEND = "skipped: no SGLang here; run make sglang, or set SGLANG_CPU_DIR"
# 35 s on two idle cores; the limit is for a machine with other work.
READY_S = 600.0
FLAGS = {
    "load_format": "dummy",
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mem_fraction_static": 0.5,
    "max_total_tokens": 4096,
    "host": "127.0.0.1",
}
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# One token that nothing is cached of: the batch of a health check, and of nothing else that runs here.
_HEALTH_BATCH = re.compile(rb"Prefill batch, #new-seq: 1, #new-token: 1, #cached-token: 0,")


def sglang_home() -> Path:
    """Return where `make sglang` keeps the environment."""
    default = Path(__file__).parent.parent / ".cache" / "sglang-cpu"
    return Path(os.environ.get("SGLANG_CPU_DIR") or default).absolute()


def has_sglang() -> bool:
    """True when it is installed."""
    return (sglang_home() / "launch").exists()


def sglang_python() -> Path:
    """Return its interpreter."""
    return sglang_home() / "venv/bin/python"


def sglang_environ() -> dict[str, str]:
    """Return our environment as SGLang wants it: without .pyc files it imports for minutes."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ENVIRONMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSglang:
    """One real SGLang under our entry; its server is called `w0`."""

    space: Namespace
    events: Events
    port: int
    log_file: Path


def count_health_batches(log_file: Path) -> int:
    """Count the generations that a server's scheduler has run for health checks alone."""
    return len(_HEALTH_BATCH.findall(log_file.read_bytes()))


def post(port: int, max_tokens: int = 4) -> None:
    """Ask for a chat answer and wait for it."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def sglang_argv(port: int) -> list[str]:
    """Return its command line, as the fleet's own TOML gives it."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    python, model = str(sglang_python()), f"--model-path={sglang_home() / 'model'}"
    return [python, "-m", "sglang.launch_server", model, *words, f"--port={port}"]


@contextmanager
def run_sglang(probe: str, restart: str) -> Iterator[RealSglang]:
    """Run one server under `infer-dev entry`; `probe` and `restart` are the lines of these tables."""
    with private_dir() as directory:
        (port,) = free_ports(1)
        flags = {"model_path": str(sglang_home() / "model"), "port": port, **FLAGS}
        text = (
            f'[master]\npython_path = "{sglang_python()}"\n'
            f'[instance.control]\nlog_dir = "{directory}"\ngpu_ids = "none"\n[instance.w0.server]\n'
            + "".join(f"{name} = {json.dumps(value)}\n" for name, value in flags.items())
            + "[instance.w0.env]\n"
            + "".join(f'{name} = "{value}"\n' for name, value in ENVIRONMENT.items())
            + f"[instance.w0.probe]\nstartup_deadline_s = {READY_S}\n{probe}\n[instance.w0.restart]\n{restart}\n"
        )
        config = directory / "fleet.toml"
        config.write_text(text, encoding="utf-8")
        with run_entry(directory, config) as (space, events):
            log_file = directory / "sglang-server-w0.log"
            yield RealSglang(space=space, events=events, port=port, log_file=log_file)
