"""A config of 256 instances: how long to parse, validate and render it?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.children import free_ports
from benchmarks.managers import private_dir
from benchmarks.tables import Row, Table
from infer_dev_entry.config import Host, NoHost, ResolveOptions, resolve
from infer_dev_entry.host import LiveHost
from infer_dev_entry.render import DaemonSpec, render_conf

INSTANCES = 256
ROUNDS = 7
LIMIT_MS = 500.0


def run() -> tuple[Table, ...]:
    """Resolve and render for both engines, with and without looking at the machine; supervisord reads the result."""
    with private_dir() as directory:
        return tuple(
            Table(
                name="config256",
                title=f"{INSTANCES} instances of engine {engine} parsed, validated and rendered, in-process",
                unit="ms",
                rows=_measure(engine, directory),
                notes=(
                    "the first call of a process, as at boot, also loads what is loaded once; imports are not in it",
                    "supervisord only parses, and checks neither flags nor ports",
                ),
            )
            for engine in ("sglang", "llama_cpp")
        )


def _measure(engine: str, directory: Path) -> tuple[Row, ...]:
    config = directory / f"{engine}.toml"
    config.write_text(render_config(engine, directory), encoding="utf-8")
    conf = directory / f"{engine}.conf"
    conf.write_text(_render(config, LiveHost()), encoding="utf-8")
    live: list[float] = []
    text: list[float] = []
    peer: list[float] = []
    cold: list[float] = []
    for _ in range(ROUNDS):
        live.append(_time_ms(_render, config, LiveHost()))
        text.append(_time_ms(_render, config, NoHost()))
        peer.append(_time_ms(_parse, conf))
        cold.append(_cold_ms(config))
    return (
        Row(who="infer-dev, on this machine", samples=tuple(live), ours=True, limit=LIMIT_MS),
        Row(who="infer-dev, as text", samples=tuple(text), ours=True, limit=LIMIT_MS),
        Row(who="infer-dev, first call of a process", samples=tuple(cold), ours=True, limit=LIMIT_MS),
        Row(who="supervisord parses the result", samples=tuple(peer)),
    )


def _time_ms(job: Callable[..., object], *args: object) -> float:
    began = time.perf_counter()
    job(*args)
    return 1000 * (time.perf_counter() - began)


def render_config(engine: str, directory: Path) -> str:
    """Render a TOML whose instances each have a port, a model, an argument of their own and a variable."""
    model = 'model_path = "org/model"\nmem_fraction_static = 0.8\ncontext_length = 8192\ntool_call_parser = "qwen25"\n'
    if engine == "llama_cpp":
        model = 'model = "/dev/null"\nctx_size = 8192\nparallel = 4\n'
    text = (
        f'[master]\npython_path = "{sys.executable}"\n'
        f'[instance.control]\nengine = "{engine}"\nlog_dir = "{directory}"\ngpu_ids = "none"\n'
    )
    if engine == "llama_cpp":
        text += 'binary = "/bin/true"\n'
    for index, port in enumerate(free_ports(INSTANCES)):
        text += (
            f'[instance.i{index}.server]\nport = {port}\n{model}[instance.i{index}.env]\nNOTE = "instance {index}"\n'
        )
    return text


def _options() -> ResolveOptions:
    return ResolveOptions(project_dir="/nowhere", engine_python=sys.executable, run_dir="/tmp", tmp_dir="/tmp")


def _render(config: Path, host: Host) -> str:
    plan = resolve(config.read_text("utf-8"), source=str(config), options=_options(), host=host)
    if len(plan.servers) != INSTANCES:
        raise RuntimeError(f"{len(plan.servers)} servers instead of {INSTANCES}")
    return render_conf(plan.servers, DaemonSpec(run_dir="/tmp", fleet_id="benchmark"))


def _parse(conf: Path) -> None:
    from supervisor.options import ServerOptions

    options = ServerOptions()
    options.realize(["-c", str(conf)], doc="")
    if len(options.process_group_configs) != 1:
        raise RuntimeError("supervisord read another configuration")


def _cold_ms(config: Path) -> float:
    """Return the time of the first call in a fresh interpreter, measured there after the imports."""
    code = (
        "import json, sys, time; from pathlib import Path; from benchmarks import config256 as c; "
        "began = time.perf_counter(); c._render(Path(sys.argv[1]), c.LiveHost()); "
        "print(json.dumps(1000 * (time.perf_counter() - began)))"
    )
    argv = [sys.executable, "-c", code, str(config)]
    root = Path(__file__).parent.parent
    return float(json.loads(subprocess.run(argv, cwd=root, check=True, capture_output=True).stdout))
