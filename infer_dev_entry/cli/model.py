"""`infer-dev model`: download models, list them, check their files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from infer_dev_entry.errors import ModelError, ModelFilesError, SettingsError
from infer_dev_entry.models.wish import (
    MAX_PATTERNS,
    SOURCES,
    ModelWish,
    default_target,
    pattern_problem,
    repo_problem,
    revision_problem,
    target_problem,
)
from infer_dev_entry.settings import DEFAULT_MODELS_DIR, Settings, parse_settings

if TYPE_CHECKING:
    from infer_dev_entry.models.inventory import Row
    from infer_dev_entry.models.progress import ModelProgress
    from infer_dev_entry.models.pull import Pulled

DESCRIPTION = """Download models from Hugging Face or ModelScope, list them, check their files.

`pull` downloads what the model tables of a config name, as boot does with AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT=1,
or one repository. It goes on where an earlier run was cut, proves every file by its digest, and puts the directory in
its place only when it is whole. By hand it also asks whether the revision has moved. Run as root, it becomes the user
that AUTO_INFER_SGLANG_USER names. Tokens and endpoints are the hubs' own: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE,
MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT."""
EXAMPLES = """  infer-dev model pull                              # all of AUTO_INFER_SGLANG_CONFIG
  infer-dev model pull glm --config fleet.toml      # one instance's
  infer-dev model pull --repo-id zai-org/GLM-4.7-Flash --to /models/GLM-4.7-Flash
  infer-dev model pull --repo-id ggml-org/gemma-3-270m-GGUF --allow '*Q8_0.gguf' --source modelscope
  infer-dev model list --json | jq -r '.models[] | select(.state != "complete") | .path'
  infer-dev model verify /models/GLM-4.7-Flash

exit codes: 0 done, all complete or all right, 2 bad usage, 10 the config has faults, 11 no config or no such instance,
23 it cannot be downloaded, 24 a file is bad, or the directory is not infer-dev's, 130 and 143 ended by SIGINT and
SIGTERM"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{pull,list,verify}")
    pull = actions.add_parser("pull", help="download models", allow_abbrev=False)
    pull.add_argument(
        "names", nargs="*", metavar="NAME", help="instances of the config (default: all with a model table)"
    )
    pull.add_argument("--repo-id", metavar="ORG/NAME", default="", help="a repository instead of the config's")
    pull.add_argument(
        "--revision", metavar="REV", default="", help="branch, tag or commit (default: the default branch)"
    )
    pull.add_argument("--to", metavar="DIR", default="", help=f"default: {DEFAULT_MODELS_DIR}/ORG/NAME")
    pull.add_argument("--source", choices=SOURCES, default="", help="default: $AUTO_INFER_SGLANG_MODEL_SOURCE")
    pull.add_argument(
        "--allow", metavar="PATTERN", action="append", default=[], help="only such files; may be repeated"
    )
    pull.add_argument("--ignore", metavar="PATTERN", action="append", default=[], help="not such files")
    listing = actions.add_parser("list", help="show the models, and what lacks", allow_abbrev=False)
    listing.add_argument("folder", nargs="?", default="", metavar="DIR", help=f"default: {DEFAULT_MODELS_DIR}")
    verify = actions.add_parser("verify", help="hash all files against the record", allow_abbrev=False)
    verify.add_argument("models", nargs="*", metavar="DIR|NAME", help="default: all of the config's")
    for action in (pull, listing, verify):
        action.add_argument("--config", metavar="FILE", default="", help="default: $AUTO_INFER_SGLANG_CONFIG")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one sub-command."""
    from infer_dev_entry.models.progress import make_display
    from infer_dev_entry.stage_child import Interrupted, interruptible

    settings = parse_settings(environ)
    progress = make_display(sys.stderr)
    actions = {"pull": _pull, "list": _list, "verify": _verify}
    try:
        with interruptible():
            return actions[args.action](args, settings, environ, progress)
    except Interrupted as stop:
        print(f"infer-dev model: ended by {stop}; what was downloaded is kept", file=sys.stderr)
        return stop.exit_code
    finally:
        progress.close()


# -- pull


def _pull(args: argparse.Namespace, settings: Settings, environ: Mapping[str, str], progress: ModelProgress) -> int:
    from infer_dev_entry.init.owner import become_owner, find_owner, make_owned_dir
    from infer_dev_entry.models.place import place_of
    from infer_dev_entry.models.pull import pull
    from infer_dev_entry.models.wishes import Hubs

    wishes = (_asked(args, settings),) if args.repo_id else _chosen(args, settings, environ, args.names)
    owner = find_owner(settings)
    if owner is not None:
        for wish in wishes:
            make_owned_dir(place_of(wish.target).parent, owner, "another directory")
    own_environ = become_owner(owner, environ)
    hubs = Hubs(own_environ)
    done = []
    for wish in wishes:
        pulled = pull(wish, hubs, progress, own_environ, latest=True)
        progress.close()
        done.append(pulled)
        if not args.json:
            print(_render_pulled(pulled), flush=True)
    if args.json:
        print(json.dumps({"models": [asdict(pulled) for pulled in done]}, indent=1))
    return 0


def _asked(args: argparse.Namespace, settings: Settings) -> ModelWish:
    """Return the wish of the options alone.

    Raises:
        ModelError: one of them cannot be meant.
    """
    target = os.path.abspath(args.to) if args.to else default_target(DEFAULT_MODELS_DIR, args.repo_id)
    checks = [("--repo-id", args.repo_id, repo_problem(args.repo_id)), ("--to", target, target_problem(target))]
    checks += [("--revision", args.revision, revision_problem(args.revision))] if args.revision else []
    checks += [("pattern", pattern, pattern_problem(pattern)) for pattern in (*args.allow, *args.ignore)]
    faults = [f"{what} {value[:200]!r}: {problem}" for what, value, problem in checks if problem]
    faults += [f"more than {MAX_PATTERNS} patterns"] if len(args.allow) + len(args.ignore) > MAX_PATTERNS else []
    faults += ["NAME and --repo-id exclude each other"] if args.names else []
    if faults:
        raise ModelError(f"cannot download: {'; '.join(faults)}; correct the options")
    return ModelWish(
        source=args.source or settings.model_source,
        repo_id=args.repo_id,
        revision=args.revision,
        target=target,
        allow_patterns=tuple(args.allow),
        ignore_patterns=tuple(args.ignore),
    )


def _chosen(
    args: argparse.Namespace, settings: Settings, environ: Mapping[str, str], names: Sequence[str]
) -> tuple[ModelWish, ...]:
    """Return the config's wishes, or those of the named instances.

    Raises:
        SettingsError: no config is named, or no such instance has a model table.
        ConfigError: the config has faults.
    """
    from infer_dev_entry.models.wishes import read_wishes

    given = [option for option in ("revision", "to", "source", "allow", "ignore") if getattr(args, option, "")]
    if given:
        raise SettingsError(f"--{given[0]} goes with --repo-id; write it into the config's model table, or give both")
    wishes = read_wishes(settings, environ, args.config)
    known = {name: wish for wish in wishes for name in wish.names}
    unknown = [name for name in names if name not in known]
    if unknown or not wishes:
        which = f"no instance {unknown[0]!r} with a model table" if unknown else "no instance with a model table"
        there = f"; it has {', '.join(known)}" if known else ""
        raise SettingsError(
            f"{args.config or settings.config} has {which}{there}; write [instance.NAME.model] with repo_id, "
            "or give --repo-id"
        )
    return tuple(dict.fromkeys(known[name] for name in names)) if names else wishes


def _render_pulled(pulled: Pulled) -> str:
    size = f"{pulled.size_bytes / 1e9:.2f} GB"
    commit = f" at {pulled.commit[:12]}" if pulled.commit else ""
    if pulled.how == "downloaded":
        rate = pulled.fetched_bytes / 1e6 / max(pulled.seconds, 1e-3)
        took = f"{pulled.fetched_bytes / 1e9:.2f} GB fetched in {pulled.seconds:.1f} s, {rate:.1f} MB/s"
        return f"{pulled.target}: {pulled.repo_id}{commit}, {size}; {took}"
    words = {"unchanged": "nothing to do", "adopted": "was there; every file is the hub's"}
    return f"{pulled.target}: {pulled.repo_id}{commit}, {size}; {words.get(pulled.how, pulled.how)}"


# -- list


def _list(args: argparse.Namespace, settings: Settings, environ: Mapping[str, str], _progress: ModelProgress) -> int:
    from infer_dev_entry.models.inventory import find_models, row_of
    from infer_dev_entry.models.wishes import read_wishes

    wishes = read_wishes(settings, environ, args.config) if args.config or settings.config else ()
    rows = [row_of(wish.target, wish) for wish in wishes]
    seen = {row.path for row in rows}
    rows += [row_of(path, None) for path in find_models(args.folder or DEFAULT_MODELS_DIR) if path not in seen]
    if args.json:
        print(json.dumps({"models": [asdict(row) for row in rows]}, indent=1))
    else:
        print(_render_rows(rows))
    return 0


def _render_rows(rows: Sequence[Row]) -> str:
    if not rows:
        return "no models; download one: infer-dev model pull --repo-id ORG/NAME --to DIR"
    head = ("MODEL", "STATE", "SIZE", "REVISION", "COMMIT", "PATH")
    body = [
        (row.repo_id or "-", row.state, f"{row.size_bytes / 1e9:.2f} GB" if row.size_bytes else "-",
         row.revision or "-", row.commit[:12] or "-", row.path)
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *body)]
    notes = [f"{row.path}: {row.note}" for row in rows if row.note]
    return "\n".join([*(line.rstrip() for line in lines), *notes])


# -- verify


def _verify(args: argparse.Namespace, settings: Settings, environ: Mapping[str, str], progress: ModelProgress) -> int:
    from infer_dev_entry.models.place import place_of
    from infer_dev_entry.models.verify import check_files, require_record

    folders = [model for model in args.models if "/" in model or os.path.isdir(model)]
    names = [model for model in args.models if model not in folders]
    targets = [os.path.abspath(folder) for folder in folders]
    if names or not folders:
        targets += [wish.target for wish in _chosen(args, settings, environ, names)]
    reports = []
    for target in dict.fromkeys(targets):
        place = place_of(target)
        record = require_record(place)
        began = time.monotonic()
        faults = check_files(place, record, progress)
        progress.close()
        seconds = round(time.monotonic() - began, 3)
        report = {"path": target, "repo_id": record.repo_id, "commit": record.commit, "ok": not faults}
        reports.append(report | {"files": len(record.files), "faults": list(faults), "seconds": seconds})
        if not args.json:
            verdict = "all right" if not faults else f"{len(faults)} bad"
            print(f"{target}: {record.repo_id}: {len(record.files)} files, {record.size_bytes / 1e9:.2f} GB: {verdict}")
    if args.json:
        print(json.dumps({"models": reports}, indent=1))
    bad = [f"{report['path']}: {fault}" for report in reports for fault in report["faults"]]
    if bad:
        raise ModelFilesError("\n".join([*bad, "fetch what is bad again with: infer-dev model pull"]))
    return 0
