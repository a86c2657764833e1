"""`infer-dev gateway`: show and test a gateway's configuration, check a file of API keys and add to it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace

from infer_dev_entry.errors import ConfigError, GatewayError, KeysFileError
from infer_dev_entry.gateway.keys import ApiKey, KeysFile, name_problem, parse_keys
from infer_dev_entry.gateway.nginx import render_nginx
from infer_dev_entry.gateway.nginx_words import find_complaint
from infer_dev_entry.host import LiveHost
from infer_dev_entry.init.owner import find_worker_user
from infer_dev_entry.keys_file import add_key
from infer_dev_entry.planner import make_plan
from infer_dev_entry.redact import MASK
from infer_dev_entry.spec import FileSpec, GatewaySpec, ServerSpec

DESCRIPTION = """Show or test the configuration that [gateway] of a TOML config makes, as if every server were ready;
check a file of API keys, or add a key to it. FILE.toml defaults to $AUTO_INFER_SGLANG_CONFIG."""
EXAMPLES = """  infer-dev gateway render fleet.toml                 # nginx's configuration, keys masked
  infer-dev gateway check fleet.toml                  # nginx -t on it
  infer-dev gateway keys add /hard/volume/workspace/api-keys --name alice   # makes a key and prints it, once
  infer-dev gateway keys check /hard/volume/workspace/api-keys

exit codes: 0 done, 10 the config has faults or no gateway, 11 no config is named, 30 nginx refuses it,
31 the file of keys cannot be used"""

TEST_TIMEOUT_S = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{render,check,keys}")
    for name, text in (("render", "print nginx's configuration, keys masked"), ("check", "test it with nginx -t")):
        action = actions.add_parser(name, help=text)
        action.add_argument("config", nargs="?", default="", metavar="FILE.toml", help="the TOML config")
    keys = actions.add_parser("keys", help="check a file of API keys, or add to it")
    jobs = keys.add_subparsers(dest="job", required=True, metavar="{check,add}")
    check = jobs.add_parser("check", help="print every problem with its line; exit 31 if there is one")
    add = jobs.add_parser("add", help="make a key, add it, and print it; it is shown this once")
    for job in (check, add):
        job.add_argument("file", metavar="FILE", help="the file of keys: a line each, `key` or `name: key`")
    add.add_argument("--name", required=True, help="what stands for the key in logs and limits")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one sub-command."""
    if args.action == "keys":
        return _check_keys(args.file) if args.job == "check" else _add_key(args.file, args.name)
    plan = make_plan(environ, args.config)
    spec = next((server for server in plan.servers if server.gateway), None)
    if spec is None:
        raise ConfigError((f"{plan.source}: has no gateway; add [gateway]",))
    if spec.engine != "nginx":
        told = f"{plan.source}: gateway.engine: {spec.engine} reads no configuration"
        raise ConfigError((f"{told}; infer-dev config show {plan.source} prints its command line",))
    ready = tuple(server for server in plan.servers if server.serves and not server.gateway)
    if args.action == "render":
        print(_render(spec, ready), end="")
        return 0
    return _check(spec, ready)


# -- the configuration


def _render(spec: ServerSpec, ready: tuple[ServerSpec, ...]) -> str:
    """Render with masks in the place of keys."""
    assert spec.gateway is not None
    keys = _read_keys(spec.gateway)
    masked = tuple(ApiKey(name=key.name, key=MASK) for key in keys) if keys is not None else None
    shown = tuple(replace(server, files=_masked(server.files)) for server in ready)
    return render_nginx(spec, shown, masked, user=find_worker_user())[0]


def _masked(files: tuple[FileSpec, ...]) -> tuple[FileSpec, ...]:
    return tuple(FileSpec(path="masked.key", text=MASK) for _ in files[:1])


def _read_keys(gateway: GatewaySpec) -> tuple[ApiKey, ...] | None:
    return _read_keys_file(gateway.api_keys_file).keys if gateway.api_keys_file else None


def _check(spec: ServerSpec, ready: tuple[ServerSpec, ...]) -> int:
    """Test the configuration in a directory of its own.

    Raises:
        GatewayError: nginx refuses it, or cannot be run.
    """
    assert spec.gateway is not None
    with tempfile.TemporaryDirectory(prefix="infer-dev-gateway-") as folder:
        conf = os.path.join(folder, "nginx.conf")
        own = replace(spec, environment=(("TMPDIR", folder),), gateway=replace(spec.gateway, conf=conf))
        text, _ = render_nginx(own, ready, _read_keys(spec.gateway), user=find_worker_user())
        with open(os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        argv = [spec.argv[0], "-t", "-q", "-e", "stderr", "-p", f"{folder}/", "-c", conf]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=TEST_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GatewayError(f"cannot run {shutil.which(argv[0]) or argv[0]} -t: {error}") from error
    if done.returncode:
        raise GatewayError(f"nginx refuses the configuration: {find_complaint(done.stderr)}")
    print(f"ok: {spec.argv[0]} accepts it; {len(ready)} {'server' if len(ready) == 1 else 'servers'}")
    return 0


# -- the file of keys


def _check_keys(path: str) -> int:
    found = _read_keys_file(path)
    names = sorted({key.name for key in found.keys})
    print(f"ok: {len(found.keys)} {'key' if len(found.keys) == 1 else 'keys'}: {', '.join(names)}")
    return 0


def _read_keys_file(path: str) -> KeysFile:
    """Read a file of keys.

    Raises:
        KeysFileError: it cannot be read, or has a problem.
    """
    secret = LiveHost().secret_file(path)
    if secret.problem:
        mend = "infer-dev gateway keys add makes one"
        raise KeysFileError(f"cannot read {path}: {secret.problem}; {mend}")
    found = parse_keys(secret.text)
    if found.problems:
        raise KeysFileError("\n".join(f"{path}: {problem}" for problem in found.problems))
    if secret.warning:
        print(f"warning: {path} {secret.warning}; chmod 600 {path}", file=sys.stderr)
    return found


def _add_key(path: str, name: str) -> int:
    """Add a key of our own making.

    Raises:
        KeysFileError: the name cannot be used, the file has a problem, or it cannot be written.
    """
    if problem := name_problem(name):
        raise KeysFileError(f"cannot add a key: --name: {problem}")
    if os.path.exists(path) and os.path.getsize(path):
        _read_keys_file(path)
    print(add_key(path, name))
    print(f"added to {path}; the gateway takes it within seconds. The key is not shown again.", file=sys.stderr)
    return 0
