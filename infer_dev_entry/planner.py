"""Make the plan of a fleet from the settings and the TOML, as a child of PID 1 or inside a command.

PID 1 runs this as a child: a hostile or huge file can then neither stall signals nor fill PID 1's memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from infer_dev_entry.config import ResolveOptions, resolve
from infer_dev_entry.errors import ConfigError, EntryError, SettingsError
from infer_dev_entry.host import LiveHost, read_config
from infer_dev_entry.rundir import default_run_dir, read_fleet_id, write_private
from infer_dev_entry.settings import parse_settings
from infer_dev_entry.spec import Plan, render_plan


def make_plan(environ: Mapping[str, str], config_path: str = "") -> Plan:
    """Resolve and check the config (`config_path`, else the settings') against this machine.

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
    run_dir = default_run_dir(environ)
    fleet_id = read_fleet_id(run_dir) if os.path.isdir(run_dir) else "check"
    options = ResolveOptions(
        overrides=settings.overrides,
        project_dir=settings.project_dir,
        python=settings.python,
        engine_python=sys.executable,
        run_dir=run_dir,
        tmp_dir=instance_tmp_dir(environ, fleet_id),
        model_download=settings.model_download_on_boot,
    )
    return resolve(read_config(path), source=path, options=options, host=LiveHost(own_mark=f"{fleet_id}/"))


def instance_tmp_dir(environ: Mapping[str, str], fleet_id: str) -> str:
    """Return the directory that holds each instance's private TMPDIR; short, as sockets are made in it."""
    base = environ.get("TMPDIR", "").strip() or "/tmp"
    return f"{base.rstrip('/')}/infer-dev-{fleet_id}"


def main() -> int:
    """Write `{"plan": …}` or `{"faults": […], "exit_code": N}` to the file that is named as the only argument."""
    try:
        plan = make_plan(os.environ)
        answer = f'{{"plan": {render_plan(plan)}}}'
    except ConfigError as error:
        answer = json.dumps({"faults": error.faults, "exit_code": error.exit_code})
    except EntryError as error:
        answer = json.dumps({"faults": [str(error)], "exit_code": error.exit_code})
    write_private(sys.argv[1], answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
