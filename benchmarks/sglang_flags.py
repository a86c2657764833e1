"""The flags of an installed SGLang: how long to read them from its source, against importing SGLang to ask it?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.managers import private_dir
from benchmarks.real_sglang import SGLANG_MEND, has_sglang, sglang_environ, sglang_python
from benchmarks.tables import Row, Table

ROUNDS = 7
LIMIT_MS = 300.0
# A version that is packaged is not read at all, so this one passes for another.
_OURS = """
import json, sys, time
from infer_dev_entry.config.installed import installed_catalogue
from infer_dev_entry.host import LiveHost
python, cache, suffix = sys.argv[1:]
began, cpu = time.perf_counter(), time.process_time()
host = LiveHost(cache_dir=cache)
version, source = host.sglang_args_source(python)
flags = installed_catalogue(version + suffix, source, host).flags
print(json.dumps([1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu), len(flags)]))
"""
_REAL = """
import argparse, json, time
began, cpu = time.perf_counter(), time.process_time()
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
flags = len(parser._option_string_actions)
print(json.dumps([1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu), flags]))
"""


def run() -> tuple[Table, ...]:
    """Ask for the flags in fresh interpreters, one way after the other, round by round."""
    found: dict[str, list[list[float]]] = {"read": [], "cached": [], "packaged": [], "imported": []}
    with private_dir() as directory:
        for number in range(ROUNDS if has_sglang() else 0):
            cache = directory / str(number)
            cache.mkdir()
            found["read"].append(_ask(sys.executable, _OURS, str(sglang_python()), str(cache), ".benchmark"))
            found["cached"].append(_ask(sys.executable, _OURS, str(sglang_python()), str(cache), ".benchmark"))
            found["packaged"].append(_ask(sys.executable, _OURS, str(sglang_python()), str(cache), ""))
            found["imported"].append(_ask(str(sglang_python()), _REAL, environ=sglang_environ()))
    return (_table(found, 0, "elapsed"), _table(found, 1, "CPU time"))


def _table(found: Mapping[str, list[list[float]]], column: int, what: str) -> Table:
    samples = {name: tuple(item[column] for item in items) for name, items in found.items()}
    limit = LIMIT_MS if column == 0 else None
    rows = [
        Row(who="infer-dev, read from the source", samples=samples["read"], ours=True, limit=limit),
        Row(who="infer-dev, from its cache", samples=samples["cached"], ours=True, limit=limit),
        Row(who="infer-dev, a packaged version", samples=samples["packaged"], ours=True, limit=limit),
        Row(who="import SGLang and build its parser", samples=samples["imported"]),
    ]
    if not has_sglang():
        rows = [Row(who="infer-dev", remark=SGLANG_MEND)]
    counts = {name: f"{items[-1][2]:.0f}" for name, items in found.items() if items}
    return Table(
        name="sglang_flags",
        title=f"the flags of an installed SGLang, fresh interpreters, {what}",
        unit="ms",
        rows=tuple(rows),
        notes=(
            "interpreter start and imports of infer-dev's own modules are not in it; SGLang's import is what it costs",
            f"names found: {', '.join(f'{name} {count}' for name, count in counts.items())}; the real parser counts "
            "aliases with one dash and -h too",
        ),
    )


def _ask(python: str, code: str, *words: str, environ: Mapping[str, str] | None = None) -> list[float]:
    """Run code in a fresh interpreter and return the numbers on its last line."""
    root = Path(__file__).parent.parent
    argv = [python, "-c", code, *words]
    given = dict(os.environ if environ is None else environ)
    done = subprocess.run(argv, cwd=root, env=given, check=True, capture_output=True, text=True, timeout=300)
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers
