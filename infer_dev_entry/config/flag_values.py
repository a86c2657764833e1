"""One value for one form of a flag → its words: types, choices, and each flag's own arity, as argparse has them."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from infer_dev_entry.engines import FlagSpec

_INT = re.compile(r"[+-]?[0-9]+")
_SUFFIXED = re.compile(r"[0-9]+(?:\.[0-9]+)?[kmgt]|[+-]?[0-9]+")
_LOOKS_NEGATIVE = re.compile(r"-[0-9]+|-[0-9]*\.[0-9]+")  # argparse's own test for "a number, not a flag"


class MisfitError(Exception):
    """A value that a flag does not take; the argument says what it takes, `mend` what to write."""

    def __init__(self, problem: str, mend: str = "") -> None:
        super().__init__(problem)
        self.mend = mend


def render_value(form: FlagSpec, value: object) -> tuple[str, ...]:
    """Render a value for one form of a flag.

    Raises:
        MisfitError: the form does not take this value.
    """
    name = f"--{form.name}"
    if form.kind in ("switch", "pair"):
        return _render_switch(form, name, value)
    if value is False:
        return ()
    if value is True and form.kind == "optional":
        return (name,)
    if form.kind == "list":
        return _render_list(form, name, value)
    if isinstance(value, list) and form.type != "json":
        if len(value) > 1:
            raise MisfitError("one value", f"{name} takes no list")
        return render_value(form, value[0]) if value else ()
    return _attached(name, _render_item(form, value))


def _attached(name: str, word: str) -> tuple[str, ...]:
    """A word with a leading dash would be read as a flag, unless it is glued on."""
    if word.startswith("-") and not _LOOKS_NEGATIVE.fullmatch(word):
        return (f"{name}={word}",)
    return (name, word)


def _render_switch(form: FlagSpec, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, bool):
        raise MisfitError("true or false", f"{name} is a switch: write true or false without quotes")
    if value:
        return (name,)
    return (f"--{form.aliases[0]}",) if form.kind == "pair" else ()


def _render_list(form: FlagSpec, name: str, value: object) -> tuple[str, ...]:
    words = tuple(_render_item(form, item) for item in (value if isinstance(value, list) else [value]))
    if any(word.startswith("-") and not _LOOKS_NEGATIVE.fullmatch(word) for word in words):
        raise MisfitError("values without a leading dash", f"{name} would read such a value as a flag")
    return (name, *words) if words else ()


def _render_item(form: FlagSpec, value: object) -> str:
    """Check one value against the type and choices of a form, and render it as one word."""
    if value is True or value is False:
        raise MisfitError(_TYPE_WORDS.get(form.type, "a value"), f"--{form.name} needs a value")
    if isinstance(value, dict | list):
        return _render_json(form, value)
    word = render_scalar(value)
    if not _TYPE_FITS[form.type](word, value):
        raise MisfitError(_TYPE_WORDS[form.type], _TYPE_MENDS.get(form.type, ""))
    if form.choices and word not in form.choices:
        raise MisfitError("one of the choices")
    return word


def _render_json(form: FlagSpec, value: dict[str, object] | list[object]) -> str:
    takes_text = form.type == "str" and not form.choices
    if form.type != "json" and not takes_text:
        raise MisfitError(_TYPE_WORDS[form.type] if not form.choices else "one of the choices")
    return json.dumps(value, ensure_ascii=False)


def render_scalar(value: object) -> str:
    """Render a string, number or table as one word; floats in full digits, never in exponents."""
    if isinstance(value, float):
        text = repr(value)
        return format(Decimal(text), "f") if "e" in text else text
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fits_float(word: str, _value: object) -> bool:
    try:
        number = float(word)
    except ValueError:
        return False
    return number == number and abs(number) != float("inf")


def _fits_json(word: str, value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        json.loads(word)
    except (ValueError, RecursionError):
        return False
    return True


# A string that holds a number passes: the server reads text, and files that were written so run today.
_TYPE_FITS = {
    "str": lambda _word, _value: True,
    "int": lambda word, _value: bool(_INT.fullmatch(word)),
    "suffixed_int": lambda word, _value: bool(_SUFFIXED.fullmatch(word)),
    "float": _fits_float,
    "json": _fits_json,
}
_TYPE_WORDS = {"str": "str", "int": "int", "suffixed_int": "int", "float": "float", "json": "JSON"}
_TYPE_MENDS = {"suffixed_int": "write digits, or 32k for 32000", "json": "write a table, or JSON text"}
