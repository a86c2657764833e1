"""`infer-dev config`: check a TOML config, show its fleet, render supervisord's configuration, print the schema."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from infer_dev_entry.config import Host, NoHost, resolve
from infer_dev_entry.config.facts import Placed
from infer_dev_entry.config.faults import SHORTEST_SECRET, is_secret
from infer_dev_entry.config.instances import masked_environment
from infer_dev_entry.control_client import read_placed
from infer_dev_entry.errors import ConfigError, SettingsError
from infer_dev_entry.host import LiveHost, expand_path, read_config
from infer_dev_entry.planner import resolve_options
from infer_dev_entry.rundir import default_run_dir, read_text
from infer_dev_entry.settings import PREFIX, Settings, parse_settings
from infer_dev_entry.spec import Plan, ServerSpec

DESCRIPTION = """Check a TOML config, show the fleet that it makes, render supervisord's configuration, or print the
JSON Schema. FILE defaults to $AUTO_INFER_SGLANG_CONFIG; $AUTO_INFER_SGLANG_OVERRIDES is merged over it."""
EXAMPLES = """  infer-dev config check /hard/volume/workspace/fleet.toml
  infer-dev config check --static --gpus 8 fleet.toml     # as text, for a machine with 8 GPUs
  infer-dev config show --json fleet.toml | jq -r '.[].name'
  infer-dev config schema > sglang-config-toml.schema.json

exit codes: 0 usable, 10 faults (every one is printed, a line each), 11 no FILE given, 2 bad usage"""

_SECRET_FLAG = re.compile(r"--[a-z-]*(?:api-key|token|secret|password)")
_SECRET_VALUE = re.compile(r"(?:sk|hf|nvapi)[-_][A-Za-z0-9_-]{8,}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the four sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{check,show,render,schema}")
    check = actions.add_parser("check", help="print every fault; exit 10 if there is one")
    check.add_argument("--json", action="store_true", help='print {"ok", "servers", "faults", "warnings"} on stdout')
    check.add_argument("--static", action="store_true", help="check the text alone, not ports, paths and GPUs here")
    show = actions.add_parser("show", help="print the resolved fleet")
    show.add_argument("--json", action="store_true", help="print it as a JSON list")
    render = actions.add_parser("render", help="print supervisord's configuration")
    for action in (show, render):
        action.add_argument("--show-secrets", action="store_true", help="print keys and tokens instead of ***")
    for action in (check, show, render):
        action.add_argument("file", nargs="?", default="", metavar="FILE", help="the TOML config")
        action.add_argument("--gpus", type=int, metavar="N", help="pretend N GPUs (check: implies --static)")
    actions.add_parser("schema", help="print the JSON Schema (draft 2020-12) for editors")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one sub-command."""
    if args.action == "schema":
        from infer_dev_entry.config.schema import render_schema

        print(render_schema(), end="")
        return 0
    settings = parse_settings(environ)
    if args.action == "check":
        return _check(args, settings, environ)
    placed = read_placed(environ) if args.gpus is None else {}
    plan = _resolve(args, settings, environ, NoHostButGpus(args.gpus, environ), placed)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_render(args, plan, environ), end="")
    return 0


class NoHostButGpus(NoHost):
    """For showing: this machine's GPUs, home and variables, but no complaint about its ports and files."""

    def __init__(self, gpu_count: int | None, environ: Mapping[str, str]) -> None:
        self._machine = LiveHost(f"{_fleet_id(environ)}/") if gpu_count is None else None
        super().__init__(gpu_count, self._machine.gpus() if self._machine else None, environ=environ)

    def held_bytes(self, units: Sequence[str], running: Collection[str]) -> Mapping[str, int]:
        """How many bytes others hold of this machine's GPUs; nobody holds a pretended one."""
        return self._machine.held_bytes(units, running) if self._machine else {}

    def knows_variables(self) -> bool:
        """True: a command line without what a variable stands for would be none that ever runs."""
        return True

    def expand(self, path: str) -> str:
        """The absolute path on this machine."""
        return expand_path(path)


def _check(args: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    static = args.static or args.gpus is not None
    host: Host = NoHost(args.gpus, environ=environ) if static else LiveHost(f"{_fleet_id(environ)}/", environ=environ)
    faults: tuple[str, ...] = ()
    plan = Plan(source="", servers=())
    try:
        plan = _resolve(args, settings, environ, host, {} if static else read_placed(environ))
    except ConfigError as error:
        faults = error.faults
    if args.json:
        report = {"ok": not faults, "servers": len(plan.servers), "faults": faults, "warnings": plan.warnings}
        print(json.dumps(report, indent=2))
    else:
        lines = [*(f"warning: {warning}" for warning in plan.warnings), *faults]
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
        if not faults:
            print(f"ok: {len(plan.servers)} {'server' if len(plan.servers) == 1 else 'servers'}")
    return ConfigError.exit_code if faults else 0


def _resolve(
    args: argparse.Namespace,
    settings: Settings,
    environ: Mapping[str, str],
    host: Host,
    placed: Mapping[str, Placed],
) -> Plan:
    path = args.file or settings.config
    if not path:
        raise SettingsError(f"cannot read a config: neither FILE nor {PREFIX}CONFIG is given; name a TOML file")
    options = resolve_options(
        settings,
        environ,
        run_dir=default_run_dir(environ),
        fleet_id=_fleet_id(environ),
        placed=placed,
    )
    return resolve(read_config(path), source=path, options=options, host=host)


def _fleet_id(environ: Mapping[str, str]) -> str:
    """The id of the fleet whose ports are not in the way; a check makes no run directory, so there may be none."""
    return read_text(f"{default_run_dir(environ)}/fleet-id").strip() or "check"


def _render(args: argparse.Namespace, plan: Plan, environ: Mapping[str, str]) -> str:
    servers = plan.servers if args.show_secrets else tuple(_masked(server, environ) for server in plan.servers)
    if args.action == "render":
        from infer_dev_entry.render import DaemonSpec, render_conf

        return render_conf(servers, DaemonSpec(run_dir=default_run_dir(environ)))
    rows = [_row(server) for server in servers]
    if args.json:
        return json.dumps(rows, indent=2) + "\n"
    return "\n".join(_block(row) for row in rows)


def _masked(server: ServerSpec, environ: Mapping[str, str]) -> ServerSpec:
    """Hide secrets by the names that they go under here, and by those of the variables that they came from."""
    found = {value for name, value in environ.items() if is_secret(name) and len(value) >= SHORTEST_SECRET}
    secrets = sorted(found, key=len, reverse=True)  # one may hold another

    def hidden(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    environment = masked_environment(dict(server.environment))
    return replace(
        server,
        argv=tuple(hidden(word) for word in _masked_argv(server.argv)),
        environment=tuple((name, hidden(value)) for name, value in environment.items()),
    )


def _row(server: ServerSpec) -> dict[str, object]:
    return {
        "name": server.name,
        "engine": server.engine,
        "argv": list(server.argv),
        "environment": dict(server.environment),
        "gpu_ids": server.gpu_ids,
        "port": server.port,
        "log_file": server.log_file,
    }


def _masked_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """Replace what follows a secret's flag, and what looks like a key wherever it stands."""
    masked: list[str] = []
    hide_next = False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = bool(_SECRET_FLAG.fullmatch(name))
        shown = f"{name}=***" if secret and equals else _SECRET_VALUE.sub("***", word)
        masked.append("***" if hide_next and not word.startswith("--") else shown)
        hide_next = secret and not equals
    return tuple(masked)


def _block(row: Mapping[str, object]) -> str:
    """One server as a readable block."""
    gpu_ids, environment, argv = row["gpu_ids"], row["environment"], row["argv"]
    assert isinstance(environment, dict) and isinstance(argv, list)
    gpus = "all" if gpu_ids is None else ", ".join(str(item) for item in gpu_ids) or "none"  # type: ignore[attr-defined]
    variables = "\n".join(f"             {name}={value}" for name, value in environment.items()).lstrip()
    return (
        f"{row['name']}\n"
        f"  engine     {row['engine']}\n"
        f"  port       {row['port']}\n"
        f"  gpus       {gpus}\n"
        f"  log        {row['log_file']}\n"
        f"  command    {shlex.join(argv)}\n"
        f"  variables  {variables}\n"
    )
