"""The `build` of `infer-dev bundle`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from infer_dev_entry.errors import BuildError

if TYPE_CHECKING:  # `--help` must not wait for the builder's imports
    from infer_dev_entry.bundle.build_archive import BuiltBundle
    from infer_dev_entry.bundle.build_lock import Wheel
    from infer_dev_entry.bundle.build_pixi import PixiRequest
    from infer_dev_entry.bundle.build_wheels import WheelsRequest
    from infer_dev_entry.cli.bundle_progress import Display

WORKSPACE = "docker/.container/workspace"


def add_build_arguments(build: argparse.ArgumentParser) -> None:
    """Declare the options of `build`."""
    add = build.add_argument
    add("--kind", choices=("wheels", "pixi"), help="default: wheels with -r or --lock, else pixi")
    add("-o", "--output", default=f"{WORKSPACE}/sglang-offline-bundle.tar", help="default: %(default)s")
    add("-p", "--platform", default="linux-64", help="linux-64 (default) or linux-aarch64")
    add("--directory-only", action="store_true", help="write a directory instead of a tar")
    add("--cache-dir", metavar="DIR", default=f"{WORKSPACE}/.cache", help="kept between builds; default: %(default)s")
    add("--retries", type=_count, default=3, metavar="N", help="tries after the first one (default: 3)")
    add("--retry-sleep", type=_seconds, default=5.0, metavar="S", help="pause, doubled each time (default: 5)")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    wheels = build.add_argument_group("a bundle of wheels").add_argument
    source = build.add_mutually_exclusive_group().add_argument
    source("-r", "--requirements", metavar="FILE", default="", help="requirements to resolve")
    source(
        "--lock", metavar="FILE", default="", help="requirements that are all pinned with hashes; nothing else is taken"
    )
    wheels(
        "--override", metavar="FILE", default="", help="versions that win over what packages ask for (uv's overrides)"
    )
    wheels("--exclude-newer", metavar="DATE", default="", help="resolve as if on that day (2026-04-10)")
    wheels("--python", default="3.12", metavar="X.Y", help="minor version of the image's Python (default: 3.12)")
    wheels("--glibc", default="2.35", metavar="X.Y", help="glibc of the image (default: 2.35; see ldd --version)")
    wheels("--verify-command", default="", metavar="CMD", help="what the installer runs to verify, kept in the sidecar")
    wheels("--activation", action="append", default=[], metavar="NAME=VALUE", help="a variable for servers; repeatable")
    wheels("--jobs", type=_count, default=4, metavar="N", help="parallel downloads (default: 4)")
    wheels("--dry-run", action="store_true", help="resolve, print packages, count and size, and download nothing")
    wheels("--write-lock", metavar="FILE", default="", help="write what was resolved as a lock with hashes")
    pixi = build.add_argument_group("a bundle of pixi-pack").add_argument
    pixi("--template-dir", metavar="DIR", default="docker/sglang-pixi-template", help="default: %(default)s")
    pixi("-e", "--environment", default="default", help="environment of pixi.toml (default: default)")
    pixi("--create-executable", action="store_true", help="write pixi-pack's self-extracting .sh")
    pixi("--ignore-pypi-non-wheel", action="store_true", help="leave out PyPI packages that are no wheels")
    pixi("--rattler-config", metavar="FILE", default="", help="mirrors and the like, for pixi and pixi-pack")
    pixi("--rattler-cache-dir", metavar="DIR", default="", help="default: <cache-dir>/rattler")
    pixi("--pixi-pack-cache-dir", metavar="DIR", default="", help="default: <cache-dir>/pixi-pack")
    pixi("--skip-verify", action="store_true", help="do not run the template's verify task on this host")
    pixi("--update-lock", action="store_true", help="copy the new pixi.lock into the template")
    pixi("--pixi", metavar="BIN", default="", help="default: $PIXI_BIN, else pixi on PATH")
    pixi("--pixi-pack", metavar="BIN", default="", help="default: $PIXI_PACK_BIN, PATH, else `pixi exec pixi-pack`")


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return value


def run_build(args: argparse.Namespace, environ: Mapping[str, str], progress: Display) -> int:
    """Build a bundle, or plan one."""
    kind = args.kind or ("wheels" if args.requirements or args.lock else "pixi")
    if kind == "pixi":
        from infer_dev_entry.bundle.build_pixi import build_pixi

        if args.requirements or args.lock or args.dry_run or args.write_lock:
            raise BuildError("cannot use -r, --lock, --dry-run or --write-lock with --kind pixi; its lock is pixi.lock")
        built = build_pixi(_pixi_request(args), environ, progress)
        progress.close()
        return _print_built(args, built, progress)
    from infer_dev_entry.bundle.build_wheels import build_wheels, plan_wheels

    request = _wheels_request(args)
    wheels = plan_wheels(request, environ, progress)
    if args.dry_run:
        progress.close()
        _write_lock(args, request, wheels)
        print(_render_plan_json(wheels) if args.json else _render_plan(wheels))
        return 0
    built = build_wheels(request, wheels, environ, progress)
    progress.close()
    _write_lock(
        args, request, plan_wheels(request, environ, progress) if _unknown(wheels) and args.write_lock else wheels
    )
    return _print_built(args, built, progress)


def _wheels_request(args: argparse.Namespace) -> WheelsRequest:
    from infer_dev_entry.bundle.build_wheels import WheelsRequest

    if not (args.requirements or args.lock):
        raise BuildError("cannot build a bundle of wheels: neither -r nor --lock is given; name a requirements file")
    if args.create_executable:
        raise BuildError("cannot use --create-executable with --kind wheels: only pixi-pack makes executables")
    return WheelsRequest(
        requirements=args.requirements or args.lock,
        must_be_lock=bool(args.lock),
        overrides=args.override,
        exclude_newer=args.exclude_newer,
        output=_output(args),
        cache_dir=os.path.abspath(args.cache_dir),
        python=args.python,
        platform=args.platform,
        glibc=args.glibc,
        directory_only=args.directory_only,
        verify_command=_words(args.verify_command),
        activation=tuple(_variable(text) for text in args.activation),
        jobs=max(1, args.jobs),
        retries=args.retries,
        retry_sleep_s=args.retry_sleep,
    )


def _pixi_request(args: argparse.Namespace) -> PixiRequest:
    from infer_dev_entry.bundle.build_pixi import PixiRequest

    if args.create_executable and args.directory_only:
        raise BuildError("cannot use --create-executable with --directory-only; choose one")
    return PixiRequest(
        template_dir=os.path.abspath(args.template_dir),
        output=_output(args),
        cache_dir=os.path.abspath(args.cache_dir),
        environment=args.environment,
        platform=args.platform,
        directory_only=args.directory_only,
        create_executable=args.create_executable,
        ignore_pypi_non_wheel=args.ignore_pypi_non_wheel,
        rattler_config=_absolute(args.rattler_config),
        rattler_cache_dir=_absolute(args.rattler_cache_dir),
        pixi_pack_cache_dir=_absolute(args.pixi_pack_cache_dir),
        pixi=args.pixi,
        pixi_pack=args.pixi_pack,
        retries=args.retries,
        retry_sleep_s=args.retry_sleep,
        skip_verify=args.skip_verify,
        update_lock=args.update_lock,
    )


def _output(args: argparse.Namespace) -> str:
    """Return the absolute output; a name in .tar gives way to the kind of output that was asked for."""
    suffix = "" if args.directory_only else ".sh" if args.create_executable else ".tar"
    name = str(args.output).rstrip("/")
    if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
        raise BuildError(f"cannot write {name}: packages are compressed already, so a bundle is a plain .tar; mend -o")
    return os.path.abspath(name.removesuffix(".tar") + suffix if name.endswith(".tar") else name)


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise BuildError(f"cannot read --verify-command {command!r}: {error}; mind the quotes") from error


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not name.isascii():
        raise BuildError(f"cannot read --activation {text!r}: expected NAME=VALUE")
    return name, value


def _write_lock(args: argparse.Namespace, request: WheelsRequest, wheels: tuple[Wheel, ...]) -> None:
    from infer_dev_entry.bundle.build_archive import write_error
    from infer_dev_entry.bundle.build_wheels import render_lock

    if not args.write_lock:
        return
    try:
        with open(args.write_lock, "w", encoding="utf-8") as file:
            file.write(render_lock(request, wheels))
    except OSError as error:
        raise write_error(args.write_lock, error) from error


def _unknown(wheels: tuple[Wheel, ...]) -> int:
    return sum(not wheel.size for wheel in wheels)


def _render_plan(wheels: tuple[Wheel, ...]) -> str:
    rows = [f"{wheel.name:<32} {wheel.version:<20} {render_size(wheel.size):>10}" for wheel in wheels]
    known = sum(wheel.size for wheel in wheels)
    unknown = _unknown(wheels)
    total = f"{len(wheels)} packages, {render_size(known)} in all"
    if unknown:
        total = f"{len(wheels)} packages, {render_size(known)} and {unknown} whose size the index does not tell"
    return "\n".join((*rows, total))


def _render_plan_json(wheels: tuple[Wheel, ...]) -> str:
    rows = [
        {"name": item.name, "version": item.version, "file": item.filename, "sha256": item.sha256, "size": item.size}
        for item in wheels
    ]
    report = {
        "packages": rows,
        "count": len(rows),
        "size_bytes": sum(wheel.size for wheel in wheels),
        "unknown_sizes": _unknown(wheels),
    }
    return json.dumps(report, indent=1)


def _print_built(args: argparse.Namespace, built: BuiltBundle, progress: Display) -> int:
    if args.json:
        print(json.dumps(asdict(built)))
        return 0
    print(
        f"{built.path}\n  size    {render_size(built.size_bytes)} ({built.size_bytes} bytes)\n  sha256  {built.digest}"
    )
    progress.note("carry it over, then set AUTO_INFER_SGLANG_BUNDLE_PATH and _SHA256, or: infer-dev install --bundle")
    return 0


def render_size(size_bytes: int) -> str:
    """Return a size for people; 0 is unknown."""
    if not size_bytes:
        return "?"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}" if unit == "GB" else f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
