"""Make the packaged flag catalogue from dumps of SGLang's real argparse, one JSON file a version.

Usage: python tools/make_catalogue.py server_args_0.5.7.json server_args_0.5.23.json …
Writes infer_dev_entry/config/catalogue/sglang.json: a row per distinct flag, with the versions that have it so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "infer_dev_entry" / "config" / "catalogue" / "sglang.json"

TYPES = {
    "int": "int",
    "float": "float",
    "loads": "json",
    "json_list_type": "json",
    "human_readable_int": "suffixed_int",
}

# Of flags whose help alone says so; the parser that is dumped does not tell.
SUCCESSORS = {
    "--grpc-mode": "--smg-grpc-mode",
    "--elastic-ep-rejoin": "--elastic-ep-join-mode recover",
    "--keep-mm-feature-on-device": "--mm-feature-transport=cuda_ipc",
    "--disable-fast-image-processor": "--image-processor-backend=pil",
    "--enable-flashinfer-allreduce-fusion": "--flashinfer-allreduce-fusion-backend",
}
NOT_DEPRECATED = ("--smg-grpc-mode",)  # its help names a flag that is


def main(paths: list[str]) -> int:
    """Read the dumps, oldest version first, and write the catalogue."""
    dumps = sorted((json.loads(Path(path).read_text("utf-8")) for path in paths), key=_version)
    rows: dict[str, list[Any]] = {}
    for number, dump in enumerate(dumps):
        for flag in dump["flags"]:
            row = _row(flag)
            rows.setdefault(json.dumps(row), [[], *row])[0].append(number)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows.values())
    versions = json.dumps([dump["sglang_version"] for dump in dumps])
    TARGET.write_text(f'{{"versions": {versions},\n"flags": [\n{lines}\n]}}\n', "utf-8")
    return 0


def _version(dump: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in dump["sglang_version"].split("."))


def _row(flag: dict[str, Any]) -> list[Any]:
    """Names (canonical first), kind, type, choices, and the mend of a deprecated flag ("" when not deprecated)."""
    name = flag["flags"][0]
    deprecated = ""
    if flag["deprecated"] and name not in NOT_DEPRECATED:
        deprecated = flag.get("replacement") or SUCCESSORS.get(name, "-")
    return [_names(flag), _kind(flag), TYPES.get(flag["type"], "str"), flag["choices"] or [], deprecated]


def _names(flag: dict[str, Any]) -> list[str]:
    """Short forms first: 0.5.17 made `--tp-size` the name of what was `--tensor-parallel-size`."""
    names = list(flag["flags"])
    if flag["kind"] == "switch_pair":
        return names
    own = "--" + flag["dest"].replace("_", "-")
    short = [name for name in names if name.endswith("p-size")]
    first = short[0] if short else own if own in names else names[0]
    return [first, *(name for name in names if name != first)]


def _kind(flag: dict[str, Any]) -> str:
    if flag["action"] == "BooleanOptionalAction":
        return "pair"
    if flag["nargs"] in ("+", "*"):
        return "list"
    if flag["nargs"] == "?":
        return "optional"
    return "switch" if flag["nargs"] == 0 else "value"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
