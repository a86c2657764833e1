"""`infer-dev policy`: choose a policy by expected free energy, of a model's proposals or of a file's."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from infer_dev_entry.errors import PolicyExtraError, PolicyInputError

if TYPE_CHECKING:
    from infer_dev_entry.policy import Candidate, PolicySelection

DESCRIPTION = """Choose a policy by expected free energy, G = risk + ambiguity; the smallest wins.

Without a sub-command a served model proposes policies for a state, as JSON that the server holds to a schema; with
`rank` those of a file are ranked, without any server. FILE may be - for stdin. A state is {"sensory_state": …,
"workspace_contents": …, "neurotransmitters": {"dopamine": …, "serotonin": …, "cortisol": …}}, levels from 0 to 1. How
G is computed, and the form of policies: docs/policy.md."""
EXAMPLES = """  infer-dev policy --state state.json                       # asks the only server of the running fleet
  infer-dev policy --state state.json --server glm --candidates 8 --json | jq .policy.action
  infer-dev policy --state - --server http://127.0.0.1:30000 < state.json
  infer-dev policy rank policies.json --dopamine 0.3

exit codes: 0 done, 2 bad usage, 14 no fleet is running, 15 it has no such server, 40 to 45 the server cannot be asked,
46 the input has faults (every one is printed, a line each), 47 the model gives no usable policies, also after one
repair, 48 no policy has a finite G, 49 the extra `client` is not installed"""

MAX_FILE_BYTES = 16 * 1024 * 1024
LEVELS = ("dopamine", "serotonin", "cortisol")
_ACTION_CHARACTERS = 60
_RATIONALE_CHARACTERS = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options and the sub-command."""
    parser.add_argument("--state", metavar="FILE", help="the state as JSON")
    parser.add_argument("--server", default="", metavar="NAME|URL", help="who proposes (default: the only server)")
    parser.add_argument("--model", default="", help="the model to ask there (default: the first it lists)")
    parser.add_argument(
        "--candidates", type=int, default=4, metavar="N", help="policies to propose, 1 to 16 (default 4)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of the sampling (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="bound of an answer (default: 512 each, or what the context has)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for an answer, of which there are at most two"
    )
    parser.add_argument("--json", action="store_true", help='print {"policy", "candidates", "refused"}')
    actions = parser.add_subparsers(dest="action", metavar="rank")
    rank = actions.add_parser("rank", help="rank the policies of a file, without a server")
    rank.add_argument("file", metavar="FILE", help='JSON: a list of policies, or {"policies", "internal_state"}')
    for name in LEVELS:
        rank.add_argument(f"--{name}", type=float, metavar="LEVEL", help=f"the current {name}, 0 to 1")
    rank.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Generate or rank, and print."""
    _require_extra()
    if args.action == "rank":
        candidates = _rank(args)
        print(json.dumps(_ranking(candidates)) if args.json else render_candidates(candidates))
        return 0
    if args.state is None:
        print("infer-dev policy: give --state FILE, or: infer-dev policy rank FILE", file=sys.stderr)
        return 2
    selection = _generate(args, environ)
    if selection.refused is not None and not args.json:
        print(f"note: the first answer was refused: {selection.refused.faults[0]}", file=sys.stderr)
    print(json.dumps(_selection(selection)) if args.json else render_candidates(selection.candidates))
    return 0


def _require_extra() -> None:
    """Import what scoring needs.

    Raises:
        PolicyExtraError: it is not installed.
    """
    try:
        import infer_dev_entry.policy  # noqa: F401
    except ImportError as error:
        raise PolicyExtraError(str(error)) from error


def _rank(args: argparse.Namespace) -> tuple[Candidate, ...]:
    from infer_dev_entry.policy import rank_policies

    document = _read(args.file)
    if isinstance(document, list):
        document = {"policies": document}
    if not isinstance(document, dict) or not isinstance(document.get("policies"), list):
        raise PolicyInputError((f'{_name(args.file)}: expected a list of policies, or an object with "policies"',))
    state = document.get("internal_state", {})
    if not isinstance(state, dict):
        raise PolicyInputError((f"{_name(args.file)}: internal_state: expected an object",))
    given = {name: level for name in LEVELS if (level := getattr(args, name)) is not None}
    if isinstance(nested := state.get("neurotransmitters"), dict):
        return rank_policies(document["policies"], state | {"neurotransmitters": nested | given})
    return rank_policies(document["policies"], state | given)


def _generate(args: argparse.Namespace, environ: Mapping[str, str]) -> PolicySelection:
    from infer_dev_entry.policy import PolicyGenerator, create_inference_runtime

    state = _read(args.state)
    missing = [key for key in ("sensory_state", "workspace_contents", "neurotransmitters") if not _has(state, key)]
    if missing or not isinstance(state, dict):
        raise PolicyInputError(tuple(f"{_name(args.state)}: {key}: missing" for key in missing))
    with create_inference_runtime(args.server, model=args.model, environ=environ) as runtime:
        generator = PolicyGenerator(
            runtime,
            candidates=args.candidates,
            temperature=args.temperature,
            seed=args.seed,
            max_new_tokens=args.max_new_tokens,
            timeout_s=args.timeout,
        )
        if sys.stderr.isatty():
            print(f"asking {runtime.url} for {args.candidates} policies …", file=sys.stderr)
        return generator.generate_policy(
            state["sensory_state"], state["workspace_contents"], state["neurotransmitters"]
        )


def _has(document: object, key: str) -> bool:
    return isinstance(document, dict) and key in document


def _read(path: str) -> object:
    """Read a JSON document of bounded size.

    Raises:
        PolicyInputError: it cannot be read, or is none.
    """
    from infer_dev_entry.policy.strict_json import parse_json

    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise PolicyInputError((f"{_name(path)}: has more than {MAX_FILE_BYTES} bytes",))
        return parse_json(data.decode("utf-8-sig"), MAX_FILE_BYTES)
    except OSError as error:
        raise PolicyInputError((f"cannot read {_name(path)}: {error.strerror or error}",)) from error
    except ValueError as error:
        raise PolicyInputError((f"{_name(path)}: expected one JSON document: {error}",)) from error


def _name(path: str) -> str:
    return "stdin" if path == "-" else _one_line(path, 1000)


def render_candidates(candidates: Sequence[Candidate]) -> str:
    """Render a line a policy, the chosen one first, and its rationale; foreign text without control characters."""
    claimed = any(candidate.claims for candidate in candidates)
    head = ("", "G", "RISK", "AMBIGUITY", *(("CLAIMED G",) if claimed else ()), "ACTION")
    rows = [_cells(place, candidate, claimed) for place, candidate in enumerate(candidates, start=1)]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = []
    for row in (head, *rows):
        numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join((*numbers, row[-1])))
    chosen = candidates[0].policy
    why = _one_line(str(chosen.get("rationale", "")), _RATIONALE_CHARACTERS)
    lines.append(f"chosen: {_one_line(str(chosen['action']), _ACTION_CHARACTERS)}{': ' if why else ''}{why}")
    return "\n".join(lines)


def _cells(place: int, candidate: Candidate, claimed: bool) -> tuple[str, ...]:
    score = candidate.score
    numbers = [f"{value:.4f}" for value in (score.expected_free_energy, score.risk, score.ambiguity)]
    if claimed:
        numbers.append(str(candidate.claims.get("expected_free_energy", "")))
    return (str(place), *numbers, _one_line(str(candidate.policy["action"]), _ACTION_CHARACTERS))


def _one_line(text: str, limit: int) -> str:
    """Cut foreign text to one printable line; an escape sequence of a terminal loses its first character."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _selection(selection: PolicySelection) -> dict[str, Any]:
    refused = None if selection.refused is None else asdict(selection.refused)
    return _ranking(selection.candidates) | {"refused": refused}


def _ranking(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return JSON data; an infinite risk or G is null, as JSON has no infinity."""
    rows = []
    for candidate in candidates:
        score = {key: value if math.isfinite(value) else None for key, value in asdict(candidate.score).items()}
        rows.append({"index": candidate.index, **score, "claims": candidate.claims, "policy": candidate.policy})
    return {"policy": candidates[0].policy, "candidates": rows}
