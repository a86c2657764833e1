"""A fake LLM server for the faults that a real one will not give on demand; `--help` lists them.

Runs as a script, or as `server_module = "fake_server"` with tests/ on PYTHONPATH: arguments that it does not know are
ignored. Standard library alone and no http.server, so that it is up in a few tens of milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=30000)
    add("--load-s", type=float, default=0, help="bind this late; connections are refused until then")
    add("--load-file", metavar="PATH", help="do not bind while this file exists")
    add("--loading-503-s", type=float, default=0, help="once bound, answer 503 for this long")
    add("--loading-503-file", metavar="PATH", help="once bound, answer 503 while this file exists")
    add("--answer-503", action="store_true", help="answer 503 always")
    add("--hang-after-s", type=float, metavar="S", help="stop answering S after the bind, for good")
    add("--hang-file", metavar="PATH", help="do not answer while this file exists")
    add("--loads", action="store_true", help="serve SGLang's /v1/loads; without it 404")
    add("--prefill-file", metavar="PATH", help="while it exists /health does not answer, but tokens are prefilled")
    add("--freeze-file", metavar="PATH", help="while it exists /health does not answer and /v1/loads stands still")
    add("--phases-s", type=float, default=0, metavar="S", help="log SGLang's start-up phases first, S seconds for each")
    add("--phase-files", metavar="DIR", help="with --phases-s: stay in a phase while a file there has its name")
    add("--stall", action="store_true", help="with --phases-s: stop after the weights, for good")
    add("--ignore-sigterm", action="store_true")
    add("--drain-s", type=float, metavar="S", help="on SIGTERM: /health 503, exit 0 after S and the running requests")
    add("--exit-code", type=int, metavar="N", help="exit with N, at once or when --exit-after-s says")
    add("--die-by-signal", type=int, metavar="N", help="kill itself, at once or when --exit-after-s says")
    add("--exit-after-s", type=float, metavar="S", help="end S after the start, serving or not (default code: 0)")
    add("--fork-grandchild", choices=("group", "setsid"), help="leave a process behind; setsid leaves the group too")
    add("--grandchild-holds-port", action="store_true", help="it keeps the listening socket open")
    add("--grandchild-clears-environ", action="store_true", help="it is exec'ed with an empty environment")
    add("--shared-memory", metavar="NAME", help="hold a file of this name in /dev/shm open, with its pid behind it")
    add("--flood-lines-per-s", type=int, default=0, metavar="N", help="print this much")
    add("--print", default="", metavar="TEXT", help="print this at the start")
    add("--write-env", metavar="FILE", help="write argv, environ, pid and cwd as JSON")
    add("--served-model-name", default="fake")
    args = parser.parse_known_args(argv)[0]
    if args.exit_after_s is None and (args.exit_code, args.die_by_signal) != (None, None):
        args.exit_after_s = 0.0
    return args


class FakeServer:
    """Answers HTTP in one thread a connection, as the arguments say."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.stopping = threading.Event()
        self.running = 0
        self.chats = 0
        self.health_checks = 0
        self.prefilled = 0
        self.streamed = 0
        self.broken = 0
        self.stamp = time.time()
        self.lock = threading.Lock()
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        self.listener = socket.create_server((args.host, args.port), family=family, backlog=128)
        self.bound = time.monotonic()

    def accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection: socket.socket) -> None:
        with self.lock:
            self.running += 1
        try:
            self.answer_one(connection)
        finally:
            with self.lock:
                self.running -= 1

    def answer_one(self, connection: socket.socket) -> None:
        # A client that gives up in the middle is no fault of ours.
        with contextlib.suppress(OSError, ValueError), connection:
            method, target, headers, body = read_request(connection)
            while self.hangs(target):
                time.sleep(0.02)
            if body.get("die"):
                os._exit(3)  # a request that kills its server
            if body.get("stream"):
                self.stream(connection, body)
                return
            if target == "/v1/fake/echo":
                status, answer = 200, {"target": target, "headers": headers, "port": self.args.port}
            elif target.startswith("/v1/fake/echo/"):
                status, answer = 200, {"target": target}
            else:
                status, answer = self.answer(method, target, body)
            text = json.dumps(answer).encode()
            head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)

    def stream(self, connection: socket.socket, body: dict[str, object]) -> None:
        """Answer as OpenAI's chat does with stream=true: `tokens` events, `pause_s` apart, in chunks."""
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        try:
            for number in range(int(str(body.get("tokens", 5)))):
                choice = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}
                send_chunk(connection, {"id": "x", "object": "chat.completion.chunk", "choices": [choice]})
                self.streamed += 1
                time.sleep(float(str(body.get("pause_s", 0.05))))
            send_chunk(connection, "[DONE]")
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            self.broken += 1
            raise

    def hangs(self, target: str) -> bool:
        after, args = self.args.hang_after_s, self.args
        if after is not None and time.monotonic() - self.bound >= after:
            return True
        waits = (args.hang_file, *((args.prefill_file, args.freeze_file) if target.startswith("/health") else ()))
        return any(map(exists, waits))

    def loads(self) -> dict[str, object]:
        """What the fields are for is in infer_dev_entry.counters."""
        prefilling = exists(self.args.prefill_file)
        if not exists(self.args.freeze_file):
            self.stamp = time.time()
            self.prefilled += 256 * prefilling
        load = {
            "timestamp": self.stamp,
            "num_running_reqs": self.chats,
            "num_waiting_reqs": 0,
            "num_used_tokens": self.prefilled if prefilling else 0,
            "total_prefill_uncached_tokens": self.prefilled,
            "total_prefill_busy_us": self.prefilled * 1000,
            "decode_moments": None,
        }
        return {"loads": [load]}

    def answer(self, method: str, target: str, body: dict[str, object]) -> tuple[int, object]:
        path, _, query = target.partition("?")
        loading = time.monotonic() - self.bound < self.args.loading_503_s or exists(self.args.loading_503_file)
        if self.args.answer_503 or loading:
            return 503, {"error": "loading"}
        if path == "/v1/loads" and self.args.loads:
            return 200, self.loads()
        if path == "/fake/health_checks":
            return 200, self.health_checks
        if path == "/v1/fake/streams":
            return 200, {"running": self.running - 1, "streamed": self.streamed, "broken": self.broken}
        if path in ("/health", "/health_generate", "/ready", "/ping"):
            self.health_checks += 1
            return (503, {"status": "draining"}) if self.stopping.is_set() else (200, {"status": "ok"})
        model = self.args.served_model_name
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": model, "object": "model"}]}
        if (method, path) != ("POST", "/v1/chat/completions"):
            return 404, {"error": f"no {method} {path}"}
        with self.lock:
            self.chats += 1
            self.prefilled += 10
        delays = [pair.partition("=")[2] for pair in query.split("&") if pair.startswith("delay=")]
        messages = body.get("messages")
        said = messages[-1]["content"] if isinstance(messages, list) and messages else ""
        if str(said).startswith("sleep "):  # for what comes through a router, which hands on the fields it knows alone
            delays = [str(said).split()[1]]
        time.sleep(float(str(delays[0] if delays else body.get("delay_s", 0))))
        if str(said).startswith("until "):  # the test removes the file; nobody has to guess how long a test needs
            while exists(str(said).removeprefix("until ")):
                time.sleep(0.02)
        message = {"role": "assistant", "content": said}
        with self.lock:
            self.chats -= 1
        return 200, {"model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    def drain(self) -> None:
        time.sleep(self.args.drain_s)
        while self.running:
            time.sleep(0.02)


def send_chunk(connection: socket.socket, data: object) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    event = f"data: {text}\n\n".encode()
    connection.sendall(f"{len(event):x}\r\n".encode() + event + b"\r\n")


def read_request(connection: socket.socket) -> tuple[str, str, dict[str, str], dict[str, object]]:
    """Read one request: method, target, headers by lower-case name, body ({} unless it is a JSON object)."""
    with connection.makefile("rb") as stream:
        method, target, _ = stream.readline().decode("latin-1").split(" ", 2)
        length = 0
        headers = {}
        for line in iter(stream.readline, b"\r\n"):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
            if name.lower() == "content-length":
                length = int(value)
            if not line:
                raise ValueError("the client has gone")
        body = json.loads(stream.read(length)) if length else {}
    return method, target, headers, body if isinstance(body, dict) else {}


def exists(path: str | None) -> bool:
    return bool(path and os.path.exists(path))


def log_phases(args: argparse.Namespace) -> None:
    """Write what SGLang 0.5.23 writes where its phases change."""
    for phase, line in (
        ("weights", "Load weight begin. avail mem=16.13 GB"),
        ("kv-cache", "Load weight end. elapsed=0.02 s, type=LlamaForCausalLM, avail mem=16.13 GB, mem usage=0.00 GB."),
        ("graph-capture", "Capture decode CUDA graph begin. backend=full, num_tokens_per_bs=1, avail mem=12.00 GB"),
    ):
        time.sleep(args.phases_s)
        print(f"[2026-11-21 22:13:35] {line}", flush=True)
        if args.stall and phase == "weights":
            time.sleep(3600)
        while args.phase_files and exists(f"{args.phase_files}/{phase}"):
            time.sleep(0.02)
    time.sleep(args.phases_s)


def write_env(path: str) -> None:
    facts = {"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()}
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        json.dump(facts, file)
    os.replace(file.name, path)


def fork_grandchild(args: argparse.Namespace, listener: socket.socket) -> None:
    """Leave a process that nobody waits for. It is only a grandchild to whoever started us."""
    pid = os.fork()
    if pid:
        print(f"grandchild pid={pid}", flush=True)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if args.fork_grandchild == "setsid":
        os.setsid()
    listener.set_inheritable(args.grandchild_holds_port)
    environ = {} if args.grandchild_clears_environ else dict(os.environ)
    idle = "import signal\nwhile True: signal.pause()"
    os.execve(sys.executable, [sys.executable, "-S", "-c", idle, "fake-grandchild", str(args.port)], environ)


def flood(lines_per_s: int) -> NoReturn:
    started, printed = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - started) * lines_per_s)
        sys.stdout.write("".join(f"flood line {number}\n" for number in range(printed, due)))
        sys.stdout.flush()
        printed = due
        time.sleep(0.02)


def end(args: argparse.Namespace) -> NoReturn:
    """Exit or die now, whatever the other threads are at. Main thread only: no other may restore a signal's action."""
    sys.stdout.flush()
    if args.die_by_signal is not None:
        if args.die_by_signal != signal.SIGKILL:
            signal.signal(args.die_by_signal, signal.SIG_DFL)
        os.kill(os.getpid(), args.die_by_signal)
    os._exit(args.exit_code or 0)


def spawn_thread(target: Callable[..., object], *args: object) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()


def main(argv: list[str] | None = None) -> NoReturn:
    started = time.monotonic()
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.ignore_sigterm else signal.SIG_DFL)
    if args.write_env:
        write_env(args.write_env)
    if args.print:
        print(args.print, flush=True)
    if args.shared_memory:
        os.open(f"/dev/shm/{args.shared_memory}_{os.getpid()}", os.O_CREAT | os.O_RDWR, 0o600)
    ends_at = None if args.exit_after_s is None else started + args.exit_after_s
    if ends_at is not None and args.exit_after_s <= args.load_s:
        time.sleep(args.exit_after_s)
        end(args)
    time.sleep(args.load_s)
    while exists(args.load_file):
        time.sleep(0.02)
    if args.phases_s:
        log_phases(args)
    server = FakeServer(args)
    # Python runs a handler only between bytecodes: a SIGTERM just before select() would wait for ever. The wake-up
    # descriptor is written by the C handler.
    stop_read, stop_write = os.pipe()
    os.set_blocking(stop_write, False)
    if not args.ignore_sigterm:
        signal.set_wakeup_fd(stop_write)
        signal.signal(signal.SIGTERM, lambda *_: None)
    if args.fork_grandchild:
        fork_grandchild(args, server.listener)  # before the threads, which do not survive a fork
    if args.flood_lines_per_s:
        spawn_thread(flood, args.flood_lines_per_s)
    print(f"fake server on {args.host}:{args.port}", flush=True)  # first: a test that saw it serve may read the log
    spawn_thread(server.accept)
    timeout_s = None if ends_at is None else max(0.0, ends_at - time.monotonic())
    if not select.select([stop_read], [], [], timeout_s)[0]:
        end(args)
    server.stopping.set()
    if args.drain_s is not None:
        server.drain()
    os._exit(0)


if __name__ == "__main__":
    main()
