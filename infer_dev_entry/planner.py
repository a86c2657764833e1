"""Make the plan of a fleet from the settings and the TOML, as a child of PID 1 or inside a command.

PID 1 runs this as a child: a hostile or huge file can then neither stall signals nor fill PID 1's memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from infer_dev_entry.config import ResolveOptions, resolve
from infer_dev_entry.config.facts import Placed
from infer_dev_entry.control_client import ask, find_placed
from infer_dev_entry.errors import EntryError, SettingsError, render_failure
from infer_dev_entry.host import LiveHost, read_config
from infer_dev_entry.install.activation import activated_environ
from infer_dev_entry.install.marker import LINK_NAME, read_marker
from infer_dev_entry.render import environment_problem
from infer_dev_entry.rundir import default_run_dir, instance_tmp_dir, read_fleet_id, write_private
from infer_dev_entry.settings import PREFIX, Settings, parse_settings
from infer_dev_entry.spec import Plan, render_plan

# Run by the interpreter of an installed environment, which does not have this package.
ROUTER_LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sglang_router_launch.py")
ENGINE_LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_server", "launch.py")


def make_plan(
    environ: Mapping[str, str],
    config_path: str = "",
    *,
    run_dir: str = "",
    fleet_id: str = "",
    placed: Mapping[str, Placed] | None = None,
) -> Plan:
    """Resolve and check the config (`config_path`, else the settings') against this machine.

    Whoever plans for a running entry gives that entry's `run_dir` and `fleet_id`, its PATH and TMPDIR in `environ`, and
    its servers in `placed`: else equal servers would look changed.

    Raises:
        SettingsError: no config is named.
        ConfigError: every fault of the config.
    """
    settings = parse_settings(environ)
    path = config_path or settings.config
    if not path:
        raise SettingsError(
            "cannot start servers: no config is named; set AUTO_INFER_SGLANG_CONFIG to a TOML file, or name one"
        )
    run_dir = run_dir or default_run_dir(environ)
    fleet_id = fleet_id or (read_fleet_id(run_dir) if os.path.isdir(run_dir) else "check")
    options = resolve_options(settings, environ, run_dir=run_dir, fleet_id=fleet_id, placed=placed)
    host = LiveHost(own_mark=f"{fleet_id}/", environ=environ, cache_dir=settings.project_dir)
    try:
        plan = resolve(read_config(path), source=path, options=options, host=host)
    finally:
        host.close()
    return activate_plan(plan, settings.project_dir, environ)


def make_update(environ: Mapping[str, str], config_path: str = "", *, again: bool = False) -> Plan:
    """Plan for the entry that runs here, as it would itself; its servers keep their GPUs.

    The config is `config_path`, else the settings'; with `again` that from which its servers are, and of these only
    those that wait for their GPUs are dealt others.

    Raises:
        NotRunningError: none runs.
        SettingsError: no config is named.
        ConfigError: every fault of the config.
    """
    status = ask(environ, {"op": "status"})
    planning = status["planning"]
    seen = {name: value for name, value in environ.items() if name not in ("PATH", "TMPDIR")}
    seen[PREFIX + "MODEL_DOWNLOAD_ON_BOOT"] = "0"  # nobody downloads now: a model that is not there is a fault
    seen |= {name: planning[name] for name in ("PATH", "TMPDIR") if name in planning}
    path = status["source"] if again else config_path
    return make_plan(
        seen,
        path and os.path.abspath(path),  # the entry looks from another directory
        run_dir=planning["run_dir"],
        fleet_id=planning["fleet_id"],
        placed=find_placed(status, all_but_waiting=again),
    )


def resolve_options(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    run_dir: str,
    fleet_id: str,
    placed: Mapping[str, Placed] | None = None,
) -> ResolveOptions:
    """Return what the environment adds to a config."""
    return ResolveOptions(
        overrides=settings.overrides,
        project_dir=settings.project_dir,
        python=settings.python,
        engine_python=sys.executable,
        engine_launcher=ENGINE_LAUNCHER,
        router_launcher=ROUTER_LAUNCHER,
        run_dir=run_dir,
        tmp_dir=instance_tmp_dir(environ, fleet_id),
        model_download=settings.model_download_on_boot,
        model_source=settings.model_source,
        placed=placed or {},
    )


def activate_plan(plan: Plan, project_dir: str, environ: Mapping[str, str]) -> Plan:
    """Give the servers that run in the installed environment its activation, below what their config sets."""
    marker = read_marker(os.path.abspath(project_dir))
    if marker is None or not marker.record.activation:
        return plan
    prefixes = (f"{os.path.abspath(project_dir)}/{LINK_NAME}/", f"{marker.record.prefix}/")
    activated = activated_environ({"PATH": environ.get("PATH", "")}, marker.record.activation)
    usable = {name: value for name, value in activated.items() if environment_problem(value) is None}
    servers = tuple(
        replace(server, environment=tuple(sorted((usable | dict(server.environment)).items())))
        if server.argv[0].startswith(prefixes)
        else server
        for server in plan.servers
    )
    left_out = tuple(
        f"{project_dir}: the activation's {name} is left out: {environment_problem(value)}"
        for name, value in activated.items()
        if name not in usable
    )
    return replace(plan, servers=servers, warnings=(*plan.warnings, *left_out))


def main() -> int:
    """Write `{"plan": …}` or `{"faults": […], "exit_code": N}` to the file that is named as the first argument.

    A second one, `again`, asks for the plan of the fleet that runs.
    """
    try:
        plan = make_update(os.environ, again=True) if "again" in sys.argv[2:] else make_plan(os.environ)
        answer = f'{{"plan": {render_plan(plan)}}}'
    except EntryError as error:
        answer = json.dumps(render_failure(error))
    write_private(sys.argv[1], answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
