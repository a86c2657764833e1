"""Find the SGLang that an interpreter's environment has, by its files; nothing of it is run or imported."""

from __future__ import annotations

from pathlib import Path

_DECLARES_FLAGS = (" A[", " Annotated[", ".add_argument(", "_CHOICES = ")
_PARSER_LISTS = (
    ("function_call/parser_names.py", "function_call/function_call_parser.py"),
    ("parser/reasoning_parser_names.py", "parser/reasoning_parser.py"),
)


def read_args_source(python: str) -> tuple[str, str] | None:
    """Return the version, and the source of the modules that declare its flags as one text; None without any."""
    if "/" not in python:
        return None
    for package in sorted(Path(python).absolute().parent.parent.glob("lib/python3*/site-packages/sglang")):
        versions = [
            entry.name.removeprefix("sglang-").removesuffix(".dist-info")
            for entry in package.parent.glob("sglang-*.dist-info")
        ]
        try:
            return (versions[0], _read_sources(package / "srt")) if versions else None
        except (OSError, ValueError):
            return None
    return None


def _read_sources(srt: Path) -> str:
    """The modules that declare flags and list their choices, as one text; that of other modules would cost time."""
    texts = [path.read_text("utf-8") for path in sorted((srt / "arg_groups").glob("**/*.py"))]
    texts = [text for text in texts if any(mark in text for mark in _DECLARES_FLAGS)]
    for names, registry in _PARSER_LISTS:  # newer versions keep the names in a small module of their own
        path = next((path for name in (names, registry) if (path := srt / name).exists()), None)
        texts += [path.read_text("utf-8")] if path else []
    return "\n".join([*texts, (srt / "server_args.py").read_text("utf-8")])
