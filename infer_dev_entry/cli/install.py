"""`infer-dev install`: install a bundle into the workspace, as boot does, or roll back."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from infer_dev_entry.install.marker import (
    make_request,
    read_marker,
)
from infer_dev_entry.install.model import InstalledEnv, InstallRequest
from infer_dev_entry.install.records import render_marker
from infer_dev_entry.settings import Settings, parse_settings

DESCRIPTION = """Install an offline bundle into the workspace: the same code as boot runs.

Nothing is done when the bundle's environment is in use already. A new bundle is installed beside the old environment,
verified, and put in use by one rename; the old one stays for --rollback. Run as root, it becomes the user that
AUTO_INFER_SGLANG_USER names."""
EXAMPLES = """  infer-dev install                     # the bundle that AUTO_INFER_SGLANG_BUNDLE_PATH names
  infer-dev install --bundle /hard/volume/workspace/sglang-offline-bundle.tar --sha256 "$(cut -d' ' -f1 bundle.sha256)"
  infer-dev install --rollback
  infer-dev install --json | jq .prefix

exit codes: 0 installed or nothing to do, 11 no bundle or no such user, 20 the bundle cannot be read or trusted,
21 it cannot be installed or does not verify, 130 and 143 ended by SIGINT and SIGTERM"""

BACKENDS = ("auto", "rattler", "wheelhouse", "pixi", "pixi-unpack")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--bundle", metavar="PATH", default="", help="default: $AUTO_INFER_SGLANG_BUNDLE_PATH")
    parser.add_argument("--sha256", metavar="HEX", default="", help="expected digest of the bundle; another is refused")
    parser.add_argument("--project-dir", metavar="DIR", default="", help="where the environment lives")
    parser.add_argument("--backend", choices=BACKENDS, default="", help="default: $AUTO_INFER_SGLANG_INSTALLER, auto")
    parser.add_argument("--require-gpu", action="store_true", help="fail when CUDA sees no GPU, instead of warning")
    parser.add_argument("--skip-verify", action="store_true", help="put it in use without running the verify command")
    parser.add_argument("--force", action="store_true", help="install again, beside what is in use, even if that is it")
    parser.add_argument("--rollback", action="store_true", help="put the environment before this one back in use")
    parser.add_argument("--json", action="store_true", help="print the marker, with was_installed")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Install, or roll back."""
    from infer_dev_entry.stage_child import Interrupted, interruptible

    settings = parse_settings(environ)
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.project_dir:
        settings = replace(settings, project_dir=args.project_dir)
    request = _make_request(args, settings)
    try:
        with interruptible():
            installed = _install(args, settings, request, environ)
    except Interrupted as stop:
        print(f"infer-dev install: ended by {stop}; what was in use still is", file=sys.stderr)
        return stop.exit_code
    print(_render_json(installed, request.project_dir) if args.json else _render_text(installed, request.project_dir))
    gc.freeze()  # else the interpreter looks for garbage among all that was imported once more, for 40 ms
    return 0


def _make_request(args: argparse.Namespace, settings: Settings) -> InstallRequest:
    request = make_request(settings)
    return replace(
        request,
        bundle_path=os.path.abspath(args.bundle) if args.bundle else request.bundle_path,
        expected_sha256=args.sha256.strip().lower().removeprefix("sha256:") or request.expected_sha256,
        backend=args.backend or request.backend,
        require_gpu=args.require_gpu,
        skip_verify=args.skip_verify,
        force=args.force,
    )


def _install(
    args: argparse.Namespace, settings: Settings, request: InstallRequest, environ: Mapping[str, str]
) -> InstalledEnv:
    from infer_dev_entry.install.child import become_user
    from infer_dev_entry.install.progress import make_progress
    from infer_dev_entry.install.run import install
    from infer_dev_entry.install.switch import roll_back
    from infer_dev_entry.log import configure_log, get_log

    configure_log(settings.log_format, settings.log_level)
    progress = make_progress(get_log(), settings.log_format)
    try:
        own_environ = become_user(settings, environ)
        return roll_back(request.project_dir, progress) if args.rollback else install(request, progress, own_environ)
    finally:
        progress.close()


def _render_json(installed: InstalledEnv, project_dir: str) -> str:
    marker = read_marker(project_dir)
    data = render_marker(marker) if marker else {"prefix": installed.prefix}
    return json.dumps(data | {"was_installed": installed.was_installed}, indent=1)


def _render_text(installed: InstalledEnv, project_dir: str) -> str:
    marker = read_marker(project_dir)
    known = [
        f"{name} {installed.versions[name]}" for name in ("python", "torch", "sglang") if name in installed.versions
    ]
    what = f"{', '.join(known) or 'environment'} ({len(installed.versions)} packages, {installed.backend})"
    if not installed.was_installed:
        return f"nothing to do: {installed.link} -> {installed.prefix}: {what}"
    took = f" in {marker.record.seconds:.1f} s, {marker.record.mb_per_s:.0f} MB/s" if marker else ""
    return f"in use: {installed.link} -> {installed.prefix}: {what}{took}"
