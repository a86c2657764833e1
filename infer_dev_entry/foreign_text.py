"""Text of others (file names, headers, a model's words) in what we print. Pure."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Escape what would move a terminal's cursor or cannot be printed."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(value: object, most: int = 80) -> str:
    """Render a value for a message, quoted and cut."""
    text = str(value)
    return repr(text if len(text) <= most else text[: most - 1] + "…")
