"""Prove a fleet on real NVIDIA GPUs, step by step, under the project's own entry installed from its wheel.

For a machine with a GPU whose `python3` has torch, and without pytest or a network: standard library alone. Every step
prints PASS, FAIL or SKIP with its time; --out gets report.json, the entry's events, doctor.json and doctor.txt,
crashes.json, nvidia-smi's view and the servers' logs. The steps stand in the order of their worth, and what does not
fit into --budget-s is skipped.

    python3 tests/gpu/run.py --wheels W --out OUT --sglang T --model M     # T: site directory with SGLang; M: its model
    python3 tests/gpu/run.py --wheels W --out OUT --sglang T --model M --steps two-gpus

--fake runs the same steps against tests/fake_server.py and a fake NVML, to try the script itself without a GPU. It
needs to see a /proc/driver/nvidia/version, as it can in a mount namespace:

    unshare --mount --pid --fork --mount-proc sh -c 'mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia;
      touch /proc/driver/nvidia/version; exec python3 tests/gpu/run.py --fake --wheels W --out OUT'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TESTS_DIR = Path(__file__).resolve().parent.parent
GB = 10**9
FRACTION = 0.3
# What a hog leaves: far below half of FRACTION of an H200, so that a start is not worth it.
HOG_LEAVES_BYTES = 8 * GB
# Where a server is let start into a full GPU: too little even for its context.
OOM_LEAVES_BYTES = 300_000_000
PROBE = {"startup_deadline_s": 300, "period_s": 4, "timeout_s": 3.5, "failure_threshold": 3}
HANG_BOUND_S = PROBE["period_s"] * PROBE["failure_threshold"] + PROBE["timeout_s"] + 2
RESTART = {"backoff_initial_s": 0.05, "backoff_max_s": 1.0, "reset_after_s": 600, "max_restarts": 3}
LOG_TAIL_BYTES = 200_000

_HOG = """
import sys, torch
torch.cuda.init()
free, total = torch.cuda.mem_get_info(0)
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print(held.numel(), flush=True)
sys.stdin.read()
"""
_FAKE_HOG = """
import json, os, sys
kept = open(sys.argv[2] + "/dev/nvidia0", "w")
with open(os.environ["FAKE_NVML"], "r+") as file:
    told = json.load(file)
    gpu = told["gpus"][0]
    gpu["used"] = gpu["total"] - int(sys.argv[1])
    gpu["pids"] = {str(os.getpid()): gpu["used"] - 10**9}
    file.seek(0); json.dump(told, file); file.truncate()
print(gpu["used"], flush=True)
sys.stdin.read()
"""


Step = tuple[str, float, "Callable[[Bench], Mapping[str, Any]]"]  # its name, the seconds that it needs, its work


class StepError(Exception):
    """A step saw something other than what it must see."""


class SkipError(Exception):
    """A step cannot be run here."""


def check(condition: object, what: str) -> None:
    """Fail the step unless the condition holds."""
    if not condition:
        raise StepError(what)


class Bench:
    """The machine, the entry under test and the record of what was seen."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.work = Path(tempfile.mkdtemp(prefix="idg", dir="/tmp"))
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.events_path = self.out / "events.jsonl"
        self.python = self.work / "venv/bin/python"
        self.entry: subprocess.Popen[bytes] | None = None
        self.rows: list[dict[str, Any]] = []
        self.gpus = 1
        self.empty_bytes = GB  # what GPU 0 has in use before the first server
        self.environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | {
            "INFER_DEV_RUN_DIR": str(self.work / "run"),
            "INFER_DEV_LOG_FORMAT": "json",
            "AUTO_INFER_SGLANG_ON_BOOT": "1",
            "AUTO_INFER_SGLANG_CONFIG": str(self.work / "fleet.toml"),
        }
        if args.fake:
            self._prepare_fake()

    def _prepare_fake(self) -> None:
        self._empty_fake_gpus()
        (self.work / "dev").mkdir()
        self.environ |= {"FAKE_NVML": str(self.work / "nvml"), "PYTHONPATH": f"{TESTS_DIR}/fake_nvml:{TESTS_DIR}"}

    def _empty_fake_gpus(self) -> None:
        (self.work / "nvml").write_text(json.dumps({"gpus": [{"used": GB, "total": 150 * GB}] * 2}))

    @property
    def left_s(self) -> float:
        return self.args.budget_s - (time.monotonic() - self.began)

    def limit(self, timeout_s: float) -> float:
        """A wait's limit: nothing may outlast the budget."""
        return max(1.0, min(timeout_s, self.left_s))

    # -- the record

    def step(self, name: str, needs_s: float, work: Callable[[Bench], Mapping[str, Any]]) -> bool:
        """Run one step unless its time is up, and record it."""
        if self.args.steps and name not in ("install", "ready-cold", "ready", *self.args.steps):
            return False
        began, seconds = time.monotonic(), 0.0
        facts: Mapping[str, Any] = {}
        if self.left_s < (5 if self.args.fake else needs_s):
            verdict, why = "SKIP", f"{self.left_s:.0f} s are left, it needs about {needs_s:g}"
        else:
            try:
                facts = work(self)
                verdict, why = "PASS", ""
            except SkipError as error:
                verdict, why = "SKIP", str(error)
            except (StepError, OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError) as error:
                verdict, why = "FAIL", f"{type(error).__name__}: {error}"
            seconds = round(time.monotonic() - began, 2)
        row = {"step": name, "verdict": verdict, "seconds": seconds, "why": why, "facts": facts}
        self.rows.append(row)
        print(f"{verdict} {name} {seconds:g} s {why} {json.dumps(facts) if facts else ''}".rstrip(), flush=True)
        self.save()
        return verdict == "PASS"

    def save(self) -> None:
        """Write the report; after every step, since the machine may be taken away."""
        report = {"versions": self.versions(), "gpus": self.gpus, "budget_s": self.args.budget_s, "steps": self.rows}
        (self.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        for path in self.work.glob("log/*.log*"):
            with contextlib.suppress(OSError):
                text = path.read_bytes()[-LOG_TAIL_BYTES:]
                (self.work / "tails").mkdir(exist_ok=True)
                (self.work / "tails" / path.name).write_bytes(text)
        if (self.work / "tails").is_dir():
            shutil.make_archive(str(self.out / "server-logs"), "gztar", self.work / "tails")

    def versions(self) -> dict[str, str]:
        """What ran, for the page that quotes it."""
        found = {"python": platform.python_version(), "kernel": platform.release(), "date": time.strftime("%Y-%m-%d")}
        if not self.args.fake:
            query = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"
            found["gpu"] = _output(query.split())
            infos = Path(self.args.sglang).glob("sglang-*.dist-info")
            found["sglang"] = next((path.name for path in infos), "unknown")
        return found

    # -- the entry

    def write(self, name: str, *tables: str) -> Path:
        """Write a TOML of these instances and return its path."""
        fake = self.args.fake
        module = "fake_server" if fake else "sglang.launch_server"
        head = (
            f'[master]\npython_path = "{sys.executable}"\nserver_module = "{module}"\n'
            f'[instance.control]\nlog_dir = "{self.work}/log"\n'
        )
        path = self.work / name
        path.write_text(head + "\n".join(tables))
        return path

    def instance(self, name: str, port: int, control: Mapping[str, Any], **server: Any) -> str:
        """Render one instance."""
        flags: dict[str, Any] = {"model_path": self.args.model, "port": port, "host": "127.0.0.1"}
        if not self.args.fake:
            flags |= {"load_format": "dummy", "attention_backend": "triton", "sampling_backend": "pytorch"}
            flags |= {"grammar_backend": "none"}
        flags |= {"mem_fraction_static": FRACTION, **server}
        if self.args.fake:
            flags["extra_args"] = ["--load-s", "1", "--loads", "--drain-s", "0.1"]
        env = {"PYTHONPATH": self.environ["PYTHONPATH"] if self.args.fake else self.args.sglang}
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1"}
        probe = PROBE if not self.args.fake else {**PROBE, "period_s": 1, "timeout_s": 0.9}
        tables = {"control": control, "server": flags, "env": env, "probe": probe, "restart": RESTART}
        lines = []
        for table, keys in tables.items():
            lines.append(f"[instance.{name}.{table}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        return "\n".join(lines) + "\n"

    def cli(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run an infer-dev command to its end."""
        command = [str(self.python), "-m", "infer_dev_entry", *words]
        environ, limit = self.environ, self.limit(timeout_s)
        return subprocess.run(command, env=environ, cwd=self.work, capture_output=True, text=True, timeout=limit)

    def serve(self, path: Path) -> None:
        """Make the fleet match another TOML."""
        done = self.cli("serve", str(path))
        check(done.returncode == 0, f"infer-dev serve: {done.stdout[-500:]}{done.stderr[-1500:]}")

    def row(self, name: str) -> dict[str, Any]:
        """Return one server's row of `status`, or {}."""
        done = self.cli("status", "--json")
        with contextlib.suppress(ValueError):
            return next((row for row in json.loads(done.stdout) if row["name"] == name), {})
        return {}

    def wait_row(
        self, name: str, what: str, timeout_s: float, holds: Callable[[dict[str, Any]], object]
    ) -> dict[str, Any]:
        """Wait until a server's row is as it must be."""
        until, row = time.monotonic() + self.limit(timeout_s), {}
        while time.monotonic() < until:
            row = self.row(name)
            if row and holds(row):
                return row
            check(self.entry is None or self.entry.poll() is None, f"the entry has ended; see {self.events_path}")
            check(not row or row["state"] != "failed", f"{name} has failed: {row.get('reason')}")
            time.sleep(0.2)
        raise StepError(f"{name} is not {what} after {timeout_s:g} s: {row.get('state')}: {row.get('reason')}")

    def wait_ready(self, name: str, timeout_s: float = 90, old_pid: int = 0) -> dict[str, Any]:
        """Wait until a server is ready, in another process than `old_pid`."""
        return self.wait_row(
            name, "ready", timeout_s, lambda row: row["state"] == "ready" and row["pid"] not in (None, old_pid)
        )

    def stop_all(self, timeout_s: float = 60) -> None:
        """Stop every server, and wait until none has a process."""
        self.cli("stop")
        until = time.monotonic() + self.limit(timeout_s)
        while any(row["pid"] for row in json.loads(self.cli("status", "--json").stdout)):
            check(time.monotonic() < until, "not every server has stopped")
            time.sleep(0.2)

    def wait_down(self, name: str, timeout_s: float = 60) -> None:
        """Stop a server and wait until it is down."""
        self.cli("stop", name)
        self.wait_row(name, "stopped", timeout_s, lambda row: row["state"] in ("stopped", "failed"))

    def events(self, event: str, server: str = "a", since: int = 0) -> list[dict[str, Any]]:
        """Return the entry's events of one kind, from the line `since` on."""
        found = []
        for line in self.events_path.read_text(errors="replace").splitlines()[since:]:
            with contextlib.suppress(ValueError):
                item = json.loads(line)
                if item.get("event") == event and item.get("server", server) == server:
                    found.append(item)
        return found

    def wait_event(self, event: str, server: str, since: int, timeout_s: float) -> dict[str, Any]:
        """Wait for an event after the line `since`."""
        until = time.monotonic() + self.limit(timeout_s)
        while time.monotonic() < until:
            if found := self.events(event, server, since):
                return found[-1]
            time.sleep(0.1)
        raise StepError(f"no event {event} of {server} after {timeout_s:g} s")

    def mark(self) -> int:
        """Return the number of event lines so far."""
        return len(self.events_path.read_text(errors="replace").splitlines())

    @contextlib.contextmanager
    def hog(self, leaves_bytes: int) -> Iterator[subprocess.Popen[str]]:
        """Fill GPU 0 but for so many bytes, from a process that the fleet knows nothing of."""
        code = _FAKE_HOG if self.args.fake else _HOG
        command = [sys.executable, "-c", code, str(leaves_bytes), str(self.work)]
        process = subprocess.Popen(
            command, env=self.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            check(line.strip().isdigit(), "the hog took no memory")
            yield process
        finally:
            process.kill()
            process.wait(30)
            if self.args.fake:
                self._empty_fake_gpus()


def _output(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return ""


def chat(port: int, max_tokens: int = 8, timeout_s: float = 60, **more: Any) -> tuple[int, dict[str, Any]]:
    """Ask for a chat answer."""
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": max_tokens}
    body |= {"ignore_eos": True, **more}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return answer.status, json.loads(answer.read())


# ---------------------------------------------------------------------------------------------------------- the steps


def install(bench: Bench) -> Mapping[str, Any]:
    """Install the wheels, and see which GPUs there are."""
    installed = install_wheels(bench)
    if not bench.args.fake:
        listed = _output(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]).splitlines()
        check(listed, "nvidia-smi lists no GPU")
        bench.gpus = len(listed)
        bench.empty_bytes = used_bytes(bench)
    else:
        bench.gpus = 2
    return {**installed, "gpus": bench.gpus}


def install_wheels(bench: Bench) -> Mapping[str, Any]:
    """Install the wheels offline into a virtual environment of the entry's own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bench.work / "venv")], check=True, timeout=60)
    wheels = sorted(str(path) for path in Path(bench.args.wheels).glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(bench.python), "install", "-q", "--no-index", "--no-deps"]
    done = subprocess.run([*pip, *wheels], capture_output=True, text=True, timeout=120)
    check(done.returncode == 0, f"pip: {done.stderr[-1000:]}")
    version = bench.cli("--version").stdout.strip()
    return {"version": version, "wheels": [Path(wheel).name for wheel in wheels]}


def start_entry(bench: Bench) -> None:
    """Start the entry as the parent of all that follows."""
    with bench.events_path.open("ab") as events:
        bench.entry = subprocess.Popen(
            [str(bench.python), "-m", "infer_dev_entry", "entry"],
            env=bench.environ,
            cwd=bench.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=events,
            start_new_session=True,
        )


def ready_cold(bench: Bench) -> Mapping[str, Any]:
    bench.write("fleet.toml", bench.instance("a", 30000, {"gpu_ids": "0"}))
    start_entry(bench)
    bench.wait_ready("a", 240)
    ready = bench.events("server.ready")[-1]
    return {"after_s": ready["after_s"], "nvidia_smi": nvidia_smi(bench)}


def nvidia_smi(bench: Bench) -> list[str]:
    """The memory of every GPU and of every process, as the driver tells it here."""
    if bench.args.fake:
        return []
    gpus = _output(["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader"])
    apps = _output(["nvidia-smi", "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"])
    return [*gpus.splitlines(), *apps.splitlines()]


def used_bytes(bench: Bench) -> int:
    """The memory of GPU 0 in use, as nvidia-smi tells it: a witness that is not ours."""
    if bench.args.fake:
        return GB
    query = "nvidia-smi --id=0 --query-gpu=memory.used --format=csv,noheader,nounits"
    return int(_output(query.split())) * 1024**2


def chats(bench: Bench) -> Mapping[str, Any]:
    began = time.monotonic()
    status, answer = chat(30000)
    check(status == 200 and answer["choices"], f"status {status}")
    return {"seconds": round(time.monotonic() - began, 3), "usage": answer.get("usage", {})}


def kill_main(bench: Bench) -> Mapping[str, Any]:
    """SIGKILL to the main process: the memory is proved free before the next start."""
    since, pid = bench.mark(), bench.row("a")["pid"]
    held = used_bytes(bench)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    free = bench.wait_event("gpu.free", "a", since, 60)
    check(free["used_bytes"] <= bench.empty_bytes + GB, f"{free['used_bytes']} bytes were in use at the start")
    bench.wait_ready("a", 90, pid)
    ready_s = round(time.monotonic() - began, 2)
    crashed, ready = bench.events("server.crashed", since=since)[-1], bench.events("server.ready", since=since)[-1]
    kept = {key: free[key] for key in ("used_bytes", "freed_bytes", "waited_ms")}
    swept = [event["processes"] for event in bench.events("server.leftovers_ended", since=since)]
    kept |= {"held_bytes": held, "empty_bytes": bench.empty_bytes}
    return {**kept, "ready_s": ready_s, "load_s": ready["after_s"], "reason": crashed["reason"], "swept": swept}


def freeze_scheduler(bench: Bench) -> Mapping[str, Any]:
    """SIGSTOP to the scheduler: the hang is found in the bound, and the server comes back."""
    since, main = bench.mark(), bench.row("a")["pid"]
    pid = main if bench.args.fake else _child_named(main, "sglang::schedul")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    hung = bench.wait_event("server.hung", "a", since, HANG_BOUND_S + 10)
    found_s = round(time.monotonic() - began, 2)
    bench.wait_ready("a", 90, main)
    check(found_s <= HANG_BOUND_S, f"found after {found_s} s, the bound is {HANG_BOUND_S:g} s")
    free = bench.events("gpu.free", since=since)[-1]
    recovered_s = round(time.monotonic() - began, 2)
    return {"found_s": found_s, "recovered_s": recovered_s, "reason": hung["reason"], "waited_ms": free["waited_ms"]}


def _child_named(main: int, comm: str) -> int:
    """Return the process below `main` whose name begins so."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
                parents[int(entry.name)] = (name, int(rest.split()[1]))
    for pid, (name, parent) in parents.items():
        if name.startswith(comm):
            while parent not in (0, 1, main):
                parent = parents.get(parent, ("", 0))[1]
            if parent == main:
                return pid
    raise StepError(f"{main} has no descendant {comm}: {sorted(name for name, _ in parents.values())[:40]}")


def drain(bench: Bench) -> Mapping[str, Any]:
    """Stop with a request in flight: it is answered in full."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            slow = {"delay_s": 2} if bench.args.fake else {}
            answers.append(chat(30000, max_tokens=1500, **slow))
        except OSError as error:
            answers.append((0, {"error": str(error)}))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.3)
    in_flight = thread.is_alive()
    began = time.monotonic()
    bench.wait_down("a")
    down_s = round(time.monotonic() - began, 2)
    thread.join(bench.limit(60))
    check(answers and answers[0][0] == 200, f"the request got {answers}")
    tokens = answers[0][1].get("usage", {}).get("completion_tokens", 0)
    return {"down_s": down_s, "was_in_flight": in_flight, "tokens": tokens}


def hog(bench: Bench) -> Mapping[str, Any]:
    """A foreign process fills the GPU: it is named and spared, and the start comes once it is gone."""
    bench.wait_down("a")
    since = bench.mark()
    with bench.hog(HOG_LEAVES_BYTES) as process:
        bench.cli("start", "a")
        row = bench.wait_row("a", "waiting-gpu", 30, lambda row: row["state"] == "waiting-gpu")
        seen = nvidia_smi(bench)
        time.sleep(1)
        named = f"pid {process.pid} " in row["reason"]
        check(named or "cannot be seen from here" in row["reason"], f"who holds it is not said: {row['reason']}")
        check(process.poll() is None, "the hog was ended")
    began = time.monotonic()
    free = bench.wait_event("gpu.free", "a", since, 30)
    noticed_s = round(time.monotonic() - began, 2)
    bench.wait_ready("a", 90)
    kept = {key: free[key] for key in ("freed_bytes", "waited_ms")}
    return {"named_by_pid": named, "reason": row["reason"], "noticed_s": noticed_s, **kept, "nvidia_smi": seen}


def second_instance(bench: Bench) -> Mapping[str, Any]:
    """Two servers share a GPU; one is killed, the other answers on."""
    shared = {"gpu_ids": "0", "share_gpu": True}
    path = bench.write(
        "shared.toml",
        bench.instance("a", 30000, shared),
        bench.instance("b", 30001, {**shared, "depends_on": ["a"]}),
    )
    bench.serve(path)
    bench.wait_ready("b", 150)
    before, since = bench.row("a"), bench.mark()
    pid = bench.row("b")["pid"]
    seen = nvidia_smi(bench)
    os.kill(pid, signal.SIGKILL)
    free = bench.wait_event("gpu.free", "b", since, 60)
    check(chat(30000)[0] == 200, "a does not answer while b is restarted")
    bench.wait_ready("b", 90, pid)
    after = bench.row("a")
    check((after["pid"], after["restarts"]) == (before["pid"], before["restarts"]), "a was touched")
    return {"waited_ms": free["waited_ms"], "freed_bytes": free["freed_bytes"], "nvidia_smi": seen}


def two_gpus(bench: Bench) -> Mapping[str, Any]:
    """One replica a GPU; one is killed, the other is untouched."""
    if bench.gpus < 2:
        raise SkipError(f"this machine has {bench.gpus} GPU")
    path = bench.write("fan.toml", bench.instance("r", 30010, {"replicas": "per-gpu"}))
    bench.serve(path)
    for number in range(bench.gpus):
        bench.wait_ready(f"r-{number}", 150)
    since, before, victim = bench.mark(), bench.row("r-1"), bench.row("r-0")["pid"]
    seen = nvidia_smi(bench)
    os.kill(victim, signal.SIGKILL)
    free = bench.wait_event("gpu.free", "r-0", since, 60)
    check(chat(30011)[0] == 200, "the sibling does not answer")
    bench.wait_ready("r-0", 90, victim)
    after = bench.row("r-1")
    check((after["pid"], after["restarts"]) == (before["pid"], before["restarts"]), "the sibling was touched")
    starts = [bench.events("server.started", f"r-{number}")[0]["timestamp"] for number in range(2)]
    return {"waited_ms": free["waited_ms"], "first_starts": starts, "nvidia_smi": seen}


def auto(bench: Bench) -> Mapping[str, Any]:
    """`auto` takes the GPU that a foreign process leaves free; an update after the process has gone moves nobody.

    One that replaces servers on all GPUs waits for the memory of those that are still on their way out.
    """
    if bench.gpus < 2:
        raise SkipError(f"this machine has {bench.gpus} GPU")
    bench.stop_all()
    ports = {"x": 30040, "y": 30041, "z": 30042}
    first, second, third = (
        bench.instance(name, port, {"gpu_ids": "auto"}, mem_fraction_static=0.8) for name, port in ports.items()
    )
    with bench.hog(HOG_LEAVES_BYTES):
        bench.serve(bench.write("auto.toml", first))
        before = bench.wait_ready("x", 120)
        check(before["gpu_ids"] == ["1"], f"beside a full GPU 0 it was dealt {before['gpu_ids']}")
        seen = nvidia_smi(bench)
    bench.serve(bench.write("auto.toml", second, first))
    row = bench.wait_ready("y", 120)
    after = bench.row("x")
    check(row["gpu_ids"] == ["0"], f"the second was dealt {row['gpu_ids']}")
    check((after["pid"], after["gpu_ids"]) == (before["pid"], ["1"]), "the first was moved")
    since = bench.mark()
    bench.serve(bench.write("auto.toml", third))
    last = bench.wait_ready("z", 120)
    check(last["restarts"] == 0, "the third was started into a GPU that was not free")
    waited = [event["reason"] for event in bench.events("gpu.waiting", "z", since)]
    known = [reason for reason in waited if "(server " in reason or "cannot be seen from here" in reason]
    check(known or bench.args.fake, f"the third did not wait for a server of ours: {waited}")
    return {"first": before["gpu_ids"], "second": row["gpu_ids"], "third_waited": waited, "nvidia_smi": seen}


def oom_context(bench: Bench) -> Mapping[str, Any]:
    """Start into a full GPU, and keep what the server says: for so small a wish nothing waits."""
    name = "oom-context"
    if bench.args.fake:
        raise SkipError("a fake server takes no memory")
    bench.stop_all()
    with bench.hog(OOM_LEAVES_BYTES):
        wish = bench.instance(name, 30020, {"gpu_ids": "all"}, mem_fraction_static=0.003)
        bench.serve(bench.write(f"{name}.toml", wish))
        row = bench.wait_row(name, "crashed", 60, lambda row: row["state"] in ("backoff", "failed") or row["restarts"])
        bench.cli("stop", name)
    crashed = bench.events("server.crashed", name)
    check(crashed, f"no crash was reported; {row['state']}: {row['reason']}")
    kept = {key: crashed[0].get(key, "") for key in ("class", "reason", "mend")}
    check(kept["class"] == "cuda-oom", f"its class is not cuda-oom: {kept}")
    return kept


def weights(bench: Bench) -> Mapping[str, Any]:
    """Real weights in a file: what the doctor estimates before the start, against what the server then takes."""
    name = "weights"
    bench.stop_all()
    model = (
        str(make_weights(bench)) if Path(bench.args.model).is_dir() else bench.args.model
    )  # a fake one need not be there
    path = bench.write(
        f"{name}.toml", bench.instance(name, 30030, {"gpu_ids": "0"}, model_path=model, load_format="auto")
    )
    rows = {row["check"]: row for row in json.loads(bench.cli("doctor", "--json", str(path)).stdout)["rows"]}
    row = rows.get(f"GPU memory of {name}", {})
    check(row, f"the doctor has no estimate: {sorted(rows)}")
    if bench.args.fake:
        return {"estimate": row["seen"]}
    check(row["verdict"] == "ok", f"the doctor says {row}")
    until = time.monotonic() + bench.limit(15)
    while (before := used_bytes(bench)) > bench.empty_bytes + GB:
        check(time.monotonic() < until, f"{before} bytes of GPU 0 are in use without a server")
        time.sleep(0.5)
    bench.serve(path)
    bench.wait_ready(name, 120)
    taken = used_bytes(bench) - before
    static = float(re.findall(r"for CUDA = ([\d.]+) GiB", row["seen"])[0]) * 1024**3
    tokens = int(re.findall(r"room for about (\d+) tokens", row["seen"])[0])
    log = (bench.work / f"log/sglang-server-{name}.log").read_text(errors="replace")
    real_tokens = int((re.findall(r"max_total_num_tokens=(\d+)", log) or ["0"])[-1])
    status, answer = chat(30030)
    facts = {"estimate": row["seen"], "taken_bytes": taken, "static_bytes": int(static), "tokens": tokens}
    facts |= {"real_tokens": real_tokens, "usage": answer.get("usage", {})}
    check(status == 200, f"status {status}: {facts}")
    check(abs(taken - static) <= 0.2 * static, f"more than a fifth beside the estimate: {facts}")
    return facts


def make_weights(bench: Bench) -> Path:
    """Copy the model, with a file of small random weights in bfloat16 for it; standard library alone."""
    to = bench.work / "weights"
    shutil.copytree(bench.args.model, to)
    told = json.loads((to / "config.json").read_text())
    hidden, inner, vocab = told["hidden_size"], told["intermediate_size"], told["vocab_size"]
    heads, kv_heads = (told[key] * told["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    for number in range(told["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (kv_heads, hidden) for part in "kv"}
        shapes |= {f"{layer}.self_attn.q_proj.weight": (heads, hidden)}
        shapes |= {f"{layer}.self_attn.o_proj.weight": (hidden, heads)}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, inner)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = bytearray(end)
    data[0::2] = random.Random(7).randbytes(end // 2)
    data[1::2] = bytes(random.Random(8).choices((0x3C, 0xBC), k=end // 2))  # ± 0.008 to 0.03
    (to / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return to


def crashes(bench: Bench) -> Mapping[str, Any]:
    """The dossiers of what was killed, hung and out of memory, with nvidia-smi's view of the moment."""
    done = bench.cli("crashes", "--json")
    (bench.out / "crashes.json").write_text(done.stdout)
    kept = json.loads(done.stdout)
    dossiers = kept if isinstance(kept, list) else kept["crashes"]
    check(dossiers, "there is no dossier")
    if not bench.args.fake:
        check(any("MiB" in item["nvidia_smi"] for item in dossiers), "no dossier has nvidia-smi's output")
    return {"classes": sorted({f"{item['server']}: {item['class']}" for item in dossiers}), "count": len(dossiers)}


def doctor(bench: Bench) -> Mapping[str, Any]:
    """The doctor's report on the fleet that was served last, as JSON and as people see it."""
    done = bench.cli("doctor", "--json", timeout_s=60)
    (bench.out / "doctor.json").write_text(done.stdout)
    (bench.out / "doctor.txt").write_text(bench.cli("doctor", timeout_s=60).stdout)
    rows = json.loads(done.stdout)["rows"]
    found = {verdict: [row["check"] for row in rows if row["verdict"] == verdict] for verdict in ("fail", "warn")}
    return {"exit": done.returncode, "rows": len(rows), **found}


def footprint(bench: Bench) -> Mapping[str, Any]:
    """The entry's own memory after all that: no NVML may be left in it."""
    check(bench.entry and bench.entry.poll() is None, "the entry is gone")
    pid = bench.entry.pid if bench.entry else 0
    status = Path(f"/proc/{pid}/status").read_text()
    rss_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])
    check("libnvidia-ml" not in Path(f"/proc/{pid}/maps").read_text(), "the entry has the driver's library mapped")
    check(rss_kib <= 40 * 1024, f"RSS {rss_kib} KiB, the limit is 40 MiB")
    return {"rss_kib": rss_kib, "bugs": len(bench.events("entry.bug", ""))}


def stop_entry(bench: Bench) -> Mapping[str, Any]:
    """SIGTERM ends everything, and the GPUs are empty after it."""
    check(bench.entry, "it was never started")
    assert bench.entry is not None
    began = time.monotonic()
    bench.entry.send_signal(signal.SIGTERM)
    code = bench.entry.wait(max(30.0, bench.left_s))
    check(code == 0, f"it exited with {code}")
    return {"seconds": round(time.monotonic() - began, 2), "nvidia_smi": nvidia_smi(bench)}


# By worth, with the time each needs on an H200 (23 to 29 s for a warm start, about 100 s for the first).
STEPS: tuple[Step, ...] = (
    ("install", 10, install),
    ("ready-cold", 60, ready_cold),
    ("chat", 5, chats),
    ("kill-main", 45, kill_main),
    ("hang", 60, freeze_scheduler),
    ("hog", 60, hog),
    ("drain", 20, drain),
    ("two-gpus", 110, two_gpus),
    ("auto", 120, auto),
    ("second-instance", 110, second_instance),
    ("oom-context", 40, oom_context),
    ("crashes", 3, crashes),
    ("doctor", 15, doctor),
    ("weights", 45, weights),
    ("footprint", 2, footprint),
    ("stop", 12, stop_entry),
)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", required=True, help="directory with infer-dev's wheel and those it needs")
    parser.add_argument("--out", required=True, help="directory for the report")
    parser.add_argument("--sglang", default="", help="site directory with SGLang")
    parser.add_argument("--model", default="fake/model", help="directory of the model")
    parser.add_argument("--budget-s", type=float, default=540, help="steps that would outlast it are skipped")
    parser.add_argument("--steps", nargs="*", default=(), help="only these, after install and ready-cold")
    parser.add_argument("--fake", action="store_true", help="try the script itself, without a GPU")
    return parser


def absolute(args: argparse.Namespace) -> argparse.Namespace:
    """Make the paths absolute."""
    # Servers run in a directory of their own, where a relative path is another one.
    for name in ("wheels", "out", "sglang", "model"):
        if not args.fake and getattr(args, name):
            setattr(args, name, os.path.abspath(getattr(args, name)))
    return args


def run_steps(bench: Bench, steps: Iterable[Step], *, needed: tuple[str, ...]) -> int:
    """Run the steps, end what was started, and return the exit code; nothing after a failed needed one can be right."""
    try:
        for name, needs_s, work in steps:
            done = bench.step(name, needs_s, work)
            if not done and name in needed:
                break
    finally:
        if bench.entry is not None and bench.entry.poll() is None:
            bench.entry.send_signal(signal.SIGTERM)
            try:
                bench.entry.wait(20)
            except subprocess.TimeoutExpired:
                bench.entry.kill()
        bench.save()
        shutil.rmtree(bench.work, ignore_errors=True)
    counts = {verdict: sum(row["verdict"] == verdict for row in bench.rows) for verdict in ("PASS", "FAIL", "SKIP")}
    print(f"{json.dumps(counts)} in {time.monotonic() - bench.began:.0f} s; see {bench.out}/report.json")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    options = absolute(make_parser(__doc__ or "").parse_args())
    sys.exit(run_steps(Bench(options), STEPS, needed=("install", "ready-cold")))
