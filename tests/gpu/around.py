"""Prove what stands around the servers on real NVIDIA GPUs: smoke with GLM's parsers, the gateway, two nodes over NCCL.

A companion of run.py, whose bench it uses, for the same kind of machine; two GPUs, and nginx. The wheels also have the
`openai` client and what it needs. Every step prints PASS, FAIL or SKIP; --out gets report.json, the entry's events, the
rows of smoke and the servers' logs.

    python3 tests/gpu/around.py --wheels W --out OUT --sglang T --model M --nginx /usr/sbin/nginx

--cpu DIR tries the script itself with the SGLang that tools/sglang-cpu.sh has made in DIR, without a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import run
from run import Bench, check

GATEWAY_PORT = 38000
STREAMS, STREAM_TOKENS = 16, 600
CPU_STREAMS, CPU_STREAM_TOKENS = 4, 100  # what its small cache holds at once
FIRST_BYTES = 30
GLM = {"tool_call_parser": "glm47", "reasoning_parser": "glm45", "grammar_backend": "xgrammar"}
CPU = {
    **{"device": "cpu", "attention_backend": "torch_native", "max_total_tokens": 4096, "mem_fraction_static": 0.5},
    **{"load_format": "dummy", "sampling_backend": "pytorch"},
}
KEY = "gpu-run-0123456789abcdef"


def instance(bench: Bench, name: str, port: int, control: Mapping[str, Any], **server: Any) -> str:
    """Render one instance for the GPUs, or for the CPU's SGLang."""
    if not bench.args.cpu:
        return bench.instance(name, port, control, **server)
    flags = {"model_path": bench.args.model, "port": port, "host": "127.0.0.1", **CPU, **server}
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"}
    env |= {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"} if "nnodes" in server else {}
    control = {**control, "gpu_ids": "none", "python_path": f"{bench.args.cpu}/venv/bin/python"}
    control |= {"replicas": 2} if control.get("replicas") == "per-gpu" else {}
    tables = {"control": control, "server": flags, "env": env, "probe": run.PROBE, "restart": run.RESTART}
    lines = []
    for table, keys in tables.items():
        lines.append(f"[instance.{name}.{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def add_thinking(bench: Bench) -> None:
    """Copy the model with GLM's marks of thoughts as tokens of their own: SGLang's grammars want them so."""
    model = bench.work / "glm-model"
    shutil.copytree(bench.args.model, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    first = 1 + max(tokenizer["model"]["vocab"].values())
    for number, mark in enumerate(("<think>", "</think>"), first):
        tokenizer["model"]["vocab"][mark] = number
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"].append({"id": number, "content": mark, **flags})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    bench.args.model = str(model)


def gateway(bench: Bench) -> str:
    """Render the gateway, with a file of one key."""
    keys = bench.work / "api-keys"
    keys.write_text(f"run: {KEY}\n")
    keys.chmod(0o600)
    table = {
        "port": GATEWAY_PORT,
        "api_keys_file": str(keys),
        "binary": bench.args.nginx,
        "log_dir": f"{bench.work}/log",
    }
    return "[gateway]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def install(bench: Bench) -> Mapping[str, Any]:
    """Install the wheels."""
    return run.install_wheels(bench) if bench.args.cpu else run.install(bench)


def ready(bench: Bench) -> Mapping[str, Any]:
    """One replica a GPU with GLM's parsers, and the gateway before them."""
    add_thinking(bench)
    bench.write("fleet.toml", instance(bench, "glm", 30000, {"replicas": "per-gpu"}, **GLM), gateway(bench))
    run.start_entry(bench)
    rows = [bench.wait_ready(name, 240) for name in ("glm-0", "glm-1", "gateway")]
    return {"after_s": {row["name"]: bench.events("server.ready", row["name"])[-1]["after_s"] for row in rows}}


def smoke(bench: Bench, *words: str) -> list[dict[str, Any]]:
    """Run smoke and keep its rows."""
    done = bench.cli("smoke", "--json", *words, timeout_s=150)
    check(done.stdout.startswith("{"), f"smoke: {done.stderr[-1000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    with (bench.out / "smoke.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    failed = [f"{row['check']}: {row['seen']}" for row in rows if row["verdict"] == "fail"]
    check(done.returncode == 0 and not failed, f"exit {done.returncode}: {failed}")
    return rows


def smoke_server(bench: Bench) -> Mapping[str, Any]:
    """The checklist against one server: JSON is held to its schema, thoughts are apart."""
    found = {row["check"]: row["verdict"] for row in smoke(bench, "glm-0")}
    check(found["json-schema"] == found["reasoning"] == "pass", f"{found}")
    return found


def smoke_gateway(bench: Bench) -> Mapping[str, Any]:
    """The checklist through the gateway, with a key."""
    key_file = bench.work / "key"
    key_file.write_text(KEY + "\n")
    rows = smoke(bench, "gateway", "--api-key-file", str(key_file))
    measures = next(row.get("measures") for row in rows if row["check"] == "speed")
    return {**{row["check"]: row["verdict"] for row in rows}, "speed": measures}


class Stream(threading.Thread):
    """One streamed chat: when its first byte came, and how it ended."""

    def __init__(self, port: int, max_tokens: int, key: str = KEY) -> None:
        super().__init__(daemon=True)
        self._port, self._max_tokens, self._key = port, max_tokens, key
        self.first_s, self.status, self.done, self.error = 0.0, 0, False, ""

    def run(self) -> None:
        """Ask and read to the end."""
        body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        body |= {"max_tokens": self._max_tokens, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                self.status = answer.status
                for line in answer:
                    self.first_s = self.first_s or time.monotonic() - began
                    self.done = self.done or line.startswith(b"data: [DONE]")
        except urllib.error.HTTPError as error:
            self.status = error.code
        except (OSError, ValueError) as error:
            self.error = f"{type(error).__name__}: {error}"


def stream(port: int, max_tokens: int, key: str = KEY) -> Stream:
    """Stream one chat to its end."""
    one = Stream(port, max_tokens, key)
    one.run()
    return one


def keys(_bench: Bench) -> Mapping[str, Any]:
    """No key, another key, the key in other letters, the key."""
    found = {name: stream(GATEWAY_PORT, 1, key).status for name, key in (("other", "no"), ("case", KEY.upper()))}
    check(found == {"other": 401, "case": 401}, f"{found}")
    check(stream(GATEWAY_PORT, 1).done, "the key was refused")
    return found


def kill_under_streams(bench: Bench) -> Mapping[str, Any]:
    """SIGKILL to one of two servers under streams: only its own break, and the next request is answered at once."""
    since, pid = bench.mark(), bench.row("glm-0")["pid"]
    count, tokens = (CPU_STREAMS, CPU_STREAM_TOKENS) if bench.args.cpu else (STREAMS, STREAM_TOKENS)
    streams = [Stream(GATEWAY_PORT, tokens) for _ in range(count)]
    for one in streams:
        one.start()
    until = time.monotonic() + 60
    while not all(one.first_s or one.status for one in streams):
        check(time.monotonic() < until, "the streams do not begin")
        time.sleep(0.01)
    held = sum(not one.done for one in streams)
    os.kill(pid, signal.SIGKILL)
    next_one = stream(GATEWAY_PORT, 4)
    check(next_one.done, f"the next request got {next_one.status} {next_one.error}")
    for one in streams:
        one.join(bench.limit(120))
    completed = sum(one.done for one in streams)
    check(count / 4 <= completed < count, f"{completed} of {count} completed, {held} were running")
    back = bench.wait_ready("glm-0", 120, pid)
    routed = bench.wait_row("gateway", "ready", 10, lambda row: row["state"] == "ready")
    restarted = bench.events("server.ready", "glm-0", since)[-1]["after_s"]
    return {
        **{"streams": count, "running_at_the_kill": held, "completed": completed},
        **{"next_first_byte_s": round(next_one.first_s, 3), "load_s": restarted, "restarts": back["restarts"]},
        "gateway": routed["reason"],
    }


def first_byte(_bench: Bench) -> Mapping[str, Any]:
    """The time to the first token through the gateway against the servers directly, in turn."""
    direct, through = [], []
    for number in range(FIRST_BYTES):
        direct.append(stream(30000 + number % 2, 2).first_s)
        through.append(stream(GATEWAY_PORT, 2).first_s)
    middle = FIRST_BYTES // 2
    seconds = {"direct_ms": sorted(direct)[middle] * 1e3, "gateway_ms": sorted(through)[middle] * 1e3}
    return {name: round(value, 2) for name, value in seconds.items()}


def nodes(bench: Bench) -> Mapping[str, Any]:
    """One model over two nodes, a GPU each: they meet, answer, and come back together when one is killed."""
    shared = {"tp_size": 2, "nnodes": 2, "dist_init_addr": "127.0.0.1:36000"}
    path = bench.write(
        "nodes.toml",
        instance(bench, "n0", 30000, {"gpu_ids": "0"}, node_rank=0, **shared),
        instance(bench, "n1", 30001, {"gpu_ids": "1"}, node_rank=1, **shared),
    )
    since = bench.mark()
    bench.serve(path)
    first, second = bench.wait_ready("n0", 200), bench.wait_ready("n1", 10)
    status, answer = run.chat(30000, max_tokens=8)
    check(status == 200 and answer["choices"], f"status {status}")
    loaded = bench.events("server.ready", "n0", since)[-1]["after_s"]
    os.kill(second["pid"], signal.SIGKILL)
    began = time.monotonic()
    bench.wait_ready("n0", bench.left_s, first["pid"])
    recovered_s = round(time.monotonic() - began, 1)
    check(run.chat(30000)[0] == 200, "no answer after the recovery")
    crashed = [event["reason"] for event in bench.events("server.crashed", "n0", since)]
    return {"load_s": loaded, "note": second["reason"], "recovered_s": recovered_s, "n0": crashed}


# With the time that each needs; a warm start takes 23 to 35 s, the first about 110 s.
STEPS: tuple[run.Step, ...] = (
    ("install", 10, install),
    ("ready", 60, ready),
    ("smoke-server", 60, smoke_server),
    ("smoke-gateway", 60, smoke_gateway),
    ("keys", 5, keys),
    ("first-byte", 20, first_byte),
    ("kill-under-streams", 60, kill_under_streams),
    ("nodes", 120, nodes),
    ("stop", 12, run.stop_entry),
)


def parse_args() -> Any:
    """Read the options of run.py and two more."""
    parser = run.make_parser(__doc__ or "")
    parser.add_argument("--nginx", default="/usr/sbin/nginx", help="the nginx to run")
    parser.add_argument("--cpu", default="", help="try the script with the SGLang that tools/sglang-cpu.sh made there")
    args = run.absolute(parser.parse_args())
    if args.cpu:
        args.cpu = os.path.abspath(args.cpu)
        args.model, args.sglang = f"{args.cpu}/model", args.cpu
    return args


if __name__ == "__main__":
    sys.exit(run.run_steps(Bench(parse_args()), STEPS, needed=("install", "ready")))
