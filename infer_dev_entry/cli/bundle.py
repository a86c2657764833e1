"""`infer-dev bundle`: build a bundle on a host with a network, look into one, check one."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING

from infer_dev_entry.cli.bundle_build import add_build_arguments, render_size, run_build
from infer_dev_entry.errors import BundleError

if TYPE_CHECKING:
    from infer_dev_entry.bundle.model import BundleInfo
    from infer_dev_entry.cli.bundle_progress import Display

DESCRIPTION = """Build an offline bundle on a host with a network, look into one, or check one.

A bundle of wheels needs no pixi, can be built for linux-64 on Linux or macOS, and resumes; a bundle of pixi-pack
brings its own Python. Indexes, proxies and credentials are those that uv and pip are configured with (UV_DEFAULT_INDEX,
PIP_INDEX_URL, HTTPS_PROXY, netrc, …); what is printed shows no password."""
EXAMPLES = """  infer-dev bundle build --lock docker/sglang-wheel-locks/cuda12.txt        # wheels, pinned with hashes
  infer-dev bundle build -r requirements.in --python 3.12 --dry-run         # packages, count, size; downloads nothing
  infer-dev bundle build --kind pixi --template-dir docker/sglang-pixi-template -e cuda12
  infer-dev bundle inspect sglang-offline-bundle.tar
  infer-dev bundle verify sglang-offline-bundle.tar --sha256 "$EXPECTED"

exit codes: 0 done, 20 the bundle cannot be read or has faults (verify names every one), 22 it cannot be built,
2 bad usage, 143 ended by SIGTERM"""

KEY_PACKAGES = ("sglang", "torch", "flashinfer-python", "sglang-kernel", "sgl-kernel", "transformers", "python")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{build,inspect,verify}")
    add_build_arguments(actions.add_parser("build", help="build a bundle", allow_abbrev=False))
    inspect = actions.add_parser("inspect", help="print what a bundle holds", allow_abbrev=False)
    inspect.add_argument("--quick", action="store_true", help="leave out the digest, which needs all of it to be read")
    verify = actions.add_parser("verify", help="check every file against the bundle's records", allow_abbrev=False)
    verify.add_argument("--sha256", metavar="HEX", default="", help="also check the digest of the whole bundle")
    for action in (inspect, verify):
        action.add_argument("path", metavar="PATH", help="a .tar, .tar.gz, .tar.zst, pixi-pack's .sh, or a directory")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one sub-command."""
    from infer_dev_entry.cli.bundle_progress import make_display

    progress = make_display(sys.stderr)
    # Without a handler SIGTERM would leave downloads running behind us.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.action == "inspect":
            return _inspect(args, progress)
        if args.action == "verify":
            return _verify(args, progress)
        return run_build(args, environ, progress)
    except _TerminatedError:
        print("infer-dev bundle: ended by SIGTERM; what was fetched is kept", file=sys.stderr)
        return 143
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, before)


class _TerminatedError(BaseException):
    """SIGTERM came."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _TerminatedError


def _inspect(args: argparse.Namespace, progress: Display) -> int:
    from infer_dev_entry.bundle.listing import read_listing
    from infer_dev_entry.bundle.unpack import hash_bundle

    listing = read_listing(args.path)
    digest = ""
    if not args.quick:
        progress.stage("hash", listing.size_bytes)
        digest = hash_bundle(args.path, progress.advance)[0]
        progress.close()
    if args.json:
        report = _describe(args.path, listing.info, listing.container, listing.size_bytes, digest)
        report["packages"] = [asdict(package) for package in listing.info.packages]
        print(json.dumps(report, indent=1))
        return 0
    for package in sorted(listing.info.packages, key=lambda package: (package.kind, package.name)):
        print(f"{package.kind:<5} {package.name:<32} {package.version:<20} {render_size(package.size):>10}")
    print(_render_description(_describe(args.path, listing.info, listing.container, listing.size_bytes, digest)))
    for warning in listing.info.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _describe(path: str, info: BundleInfo, container: str, size_bytes: int, digest: str) -> dict[str, object]:
    versions = {name: version for name in KEY_PACKAGES if (version := info.find_version(name))}
    return {
        "path": path,
        "kind": info.kind,
        "container": container,
        "platform": info.platform,
        "python": info.python or versions.get("python", ""),
        "size_bytes": size_bytes,
        "sha256": digest,
        "versions": versions,
        "package_count": len(info.packages),
        "has_sidecar": info.has_sidecar,
        "verify_command": info.verify_command,
        "activation": dict(info.activation),
        "warnings": info.warnings,
    }


def _render_description(report: Mapping[str, object]) -> str:
    versions = report["versions"]
    assert isinstance(versions, dict)
    size_bytes = report["size_bytes"]
    assert isinstance(size_bytes, int)
    lines = [
        f"{report['path']}: {report['kind']} in a {report['container']}, {render_size(size_bytes)}",
        f"  platform  {report['platform'] or 'not said'}, Python {report['python'] or 'not said'}",
        f"  packages  {report['package_count']}",
        f"  versions  {', '.join(' '.join(item) for item in versions.items()) or 'none of the key packages'}",
        f"  sidecar   {'yes' if report['has_sidecar'] else 'no'}",
    ]
    if report["sha256"]:
        lines.append(f"  sha256    {report['sha256']}")
    return "\n".join(lines)


def _verify(args: argparse.Namespace, progress: Display) -> int:
    from infer_dev_entry.bundle.check import check_bundle

    checked = check_bundle(args.path, progress, expected_sha256=args.sha256)
    progress.close()
    if args.json:
        report = {
            "ok": not checked.faults,
            "path": args.path,
            "sha256": checked.digest,
            "size_bytes": checked.size_bytes,
            "files": checked.file_count,
            "packages": len(checked.info.packages),
            "faults": checked.faults,
            "warnings": checked.info.warnings,
        }
        print(json.dumps(report, indent=1))
        return BundleError.exit_code if checked.faults else 0
    for warning in checked.info.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if checked.faults:
        count = "1 fault" if len(checked.faults) == 1 else f"{len(checked.faults)} faults"
        raise BundleError("\n  ".join((f"{args.path} has {count}; copy it anew or build it again:", *checked.faults)))
    print(f"ok: {checked.file_count} files, {len(checked.info.packages)} packages, sha256 {checked.digest}")
    return 0
