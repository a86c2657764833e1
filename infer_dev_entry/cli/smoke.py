"""`infer-dev smoke`: ask a server what its users will ask, and say what does not work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer_dev_entry.smoke.rows import Row

DESCRIPTION = """Check what a server does for its users, through the openai client: models, chat, completion, streaming,
JSON held to a schema, a tool call, reasoning set apart, a long prompt, an unknown model, eight at a time, the speed.

Without a target every ready server of the running fleet is checked, and the installed environment. What a server cannot
do by its configuration is skipped with the reason."""
EXAMPLES = """  infer-dev smoke
  infer-dev smoke glm --only chat,tool-call,reasoning
  infer-dev smoke http://127.0.0.1:30000 --json | jq -r '.rows[] | select(.verdict == "fail") | .mend'
  docker exec CONTAINER /soft/app/sglang/smoke

exit codes: 0 every check passed or was skipped, 1 a check failed, 2 bad usage, 14 no fleet is running,
15 it has no such server, 40-45 the server cannot be asked (40 no openai package, 41 not ready, 43 a key is needed)"""

TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", nargs="?", default="", metavar="URL|NAME", help="default: every ready server")
    parser.add_argument(
        "--json",
        action="store_true",
        help='print {"ok", "rows"}; a row has server, check, verdict, seconds, seen, mend',
    )
    parser.add_argument("--only", type=_names, default=(), metavar="CHECK,…", help="these checks alone")
    parser.add_argument("--skip", type=_names, default=(), metavar="CHECK,…", help="all checks but these")
    parser.add_argument(
        "--timeout", type=_seconds, default=TIMEOUT_S, metavar="S", help="for each check (default: %(default)g)"
    )
    parser.add_argument("--model", default="", help="the model to ask (default: the first that the server lists)")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="the key to send (default: the server's own, else $INFER_DEV_API_KEY)"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Check, print each row as it comes, and return 1 when one failed."""
    from infer_dev_entry.foreign_text import one_line
    from infer_dev_entry.smoke.rows import is_good, render_counts, render_json, render_row
    from infer_dev_entry.smoke.run import NAMES

    width = max(map(len, NAMES))
    rows = []
    for item in _run(args, environ):
        if isinstance(item, str):
            print(one_line(item), file=sys.stderr if args.json else sys.stdout, flush=True)
            continue
        rows.append(item)
        if not args.json:
            print(render_row(item, width), flush=True)
    print(render_json(rows) if args.json else render_counts(rows))
    return 0 if is_good(rows) else 1


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Row | str]:
    """Yield rows, and lines between them."""
    from dataclasses import replace

    from infer_dev_entry.errors import ClientError
    from infer_dev_entry.smoke.rows import render_head
    from infer_dev_entry.smoke.run import ENVIRONMENT, NAMES, row_of_unasked, run_checks, run_environment
    from infer_dev_entry.smoke.servers import find_servers, find_unready, read_facts, read_key_file

    chosen = [name for name in NAMES if (not args.only or name in args.only) and name not in args.skip]
    key = read_key_file(args.api_key_file) if args.api_key_file else None
    targets = find_servers(args.target, api_key=key, environ=environ)
    known = (
        [read_facts(targets[0])] if len(targets) == 1 else []
    )  # what keeps the only one from being asked is an error
    if not args.json:
        yield render_head(max(map(len, NAMES)))
    if ENVIRONMENT in chosen and "://" not in args.target:
        yield run_environment(environ)
    for target in targets:
        try:
            facts = known[0] if known else read_facts(target)
        except ClientError as error:
            yield row_of_unasked(target.name, error)
            continue
        yield f"{facts.label}: {facts.url}, {facts.make or 'unknown make'}, model {args.model or facts.model}"
        asked = replace(facts, model=args.model or facts.model)
        yield from run_checks(asked, [name for name in chosen if name != ENVIRONMENT], args.timeout)
    if not args.target:
        yield from (f"not checked: {line}" for line in find_unready(environ))


def _names(text: str) -> tuple[str, ...]:
    from infer_dev_entry.smoke.run import NAMES

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"there is no check {', '.join(unknown) or text!r}; there are: {', '.join(NAMES)}"
        )
    return names


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value
