"""Write the generated docs: docs/reference.md, the JSON Schema and the key table of docs/def-sglang-config-toml.md.

`make schema` runs this; tests compare the results with the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infer_dev_entry import errors
from infer_dev_entry.cli import COMMANDS
from infer_dev_entry.config.docs import HEADER, render_key_table
from infer_dev_entry.config.schema import render_schema
from infer_dev_entry.errors import EntryError
from infer_dev_entry.fleet import State
from infer_dev_entry.settings import FALSE_WORDS, TRUE_WORDS, VARIABLES

DOCS = Path(__file__).resolve().parent.parent / "docs"

STATES = {
    State.WAITING_GPU: "swept, and waits until its GPUs' memory is free; the reason names the holder; no failure. "
    'With `gpu_ids = "auto"` it moves to a GPU with room after `gpu_wait_s`',
    State.STARTING: "waits for its start (dependency, stagger), or its process is younger than a second",
    State.LOADING: "the process runs, its startup probe has not succeeded yet",
    State.READY: "its last probe succeeded; of a server that is watched by its process alone: it lives",
    State.UNHEALTHY: "it was ready, and its last probe failed; `failure_threshold` failures in a row end it",
    State.DRAINING: "told to stop; completes its requests until `drain_timeout_s`",
    State.BACKOFF: "has crashed or could not start; starts again when the back-off ends",
    State.STOPPED: "stopped by a user; `infer-dev start` or `supervisorctl start` brings it back",
    State.FAILED: "`max_restarts` restarts in a row without readiness, or a GPU is lost; `infer-dev start` tries again",
}


def render_reference() -> str:
    """Render docs/reference.md from the tables in the code."""
    parts = [
        "# Reference\n",
        "Generated from the code by `make schema`; a test compares the two.\n",
        "## Environment variables\n",
        f"Gates take {_words(TRUE_WORDS)} or {_words(FALSE_WORDS)}, any case; anything else warns and counts as false. "
        "A misspelt name gets a warning with the nearest real one.\n",
        "| variable | default | meaning |\n|---|---|---|\n"
        + "".join(
            f"| `{name}` | {f'`{default}`' if default else '–'} | {meaning} |\n"
            for name, (default, meaning) in VARIABLES.items()
        ),
        "## TOML keys\n",
        "The contract in prose: [def-sglang-config-toml.md](def-sglang-config-toml.md). `[instance.<n>.server]` takes "
        "the engine's own arguments, `[instance.<n>.env]` any variables, `[instance.<n>.yaml]` SGLang's native "
        "configuration.\n",
        render_key_table(),
        "## Commands\n",
        "| command | job |\n|---|---|\n"
        + "".join(f"| `infer-dev {name}` | {text} |\n" for name, (_, text) in COMMANDS.items()),
        "## Exit codes\n",
        "| code | meaning |\n|---|---|\n| 0 | done |\n| 2 | wrong usage of the command line |\n"
        + "".join(f"| {cls.exit_code} | {_first_line(cls)} |\n" for cls in _error_classes())
        + "| 126, 127 | `entry`: the command cannot be executed, is not found |\n"
        "| 128+N | `entry`: the command died of signal N |\n",
        "## States\n",
        "| state | meaning |\n|---|---|\n" + "".join(f"| `{state}` | {STATES[state]} |\n" for state in State),
    ]
    return "\n".join(parts)


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" if word else "empty" for word in words)


def _error_classes() -> list[type[EntryError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EntryError)]
    return sorted(found, key=lambda cls: cls.exit_code)


def _first_line(cls: type[EntryError]) -> str:
    if cls is EntryError:
        return "any other expected failure"
    return (cls.__doc__ or "").splitlines()[0]


def with_key_table(page: str) -> str:
    """Put the key table of the code in the place of the one that a page holds."""
    before, header, after = page.partition(HEADER)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + (render_key_table() if header else "") + "".join(rest)


def main() -> int:
    """Write the files."""
    (DOCS / "reference.md").write_text(render_reference(), encoding="utf-8")
    (DOCS / "sglang-config-toml.schema.json").write_text(render_schema(), encoding="utf-8")
    page = DOCS / "def-sglang-config-toml.md"
    page.write_text(with_key_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
