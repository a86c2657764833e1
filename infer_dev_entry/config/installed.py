"""The flags of an installed SGLang, out of the text of its argument modules: read as a syntax tree, never imported."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

from infer_dev_entry.config.catalogue import (
    Catalogue,
    index_flags,
    load_catalogue,
    parse_catalogue,
    render_catalogue,
)
from infer_dev_entry.config.facts import Host, NoHost
from infer_dev_entry.engines import FlagSpec

FEWEST_FLAGS = 100  # fewer mean that the source has a shape of its own, and the packaged catalogue is the better guess
_DEPRECATED = re.compile(r"[\[(]?deprecated", re.IGNORECASE)
_SUCCESSOR = re.compile(r"\b(?:use|alias for)\s+[`'\"]?(--[a-z0-9-]+(?:=[a-z_]+)?)", re.IGNORECASE)
_DEEPEST = 20  # names that stand for one another in a circle end here
_TYPES = {
    "int": "int",
    "float": "float",
    "json.loads": "json",
    "json_list_type": "json",
    "human_readable_int": "suffixed_int",
}


def installed_catalogue(version: str, source: str, host: Host | None = None) -> Catalogue | None:
    """Return the flags of one installed version; None when its source is not understood.

    A packaged version is not read again, and neither is a source that `host` remembers the flags of, by its digest.
    Choices that only a running server can work out (plugins) are left open.
    """
    packaged = load_catalogue()
    if version in packaged.versions:
        return Catalogue(versions=(version,), flags=_only(packaged, version))
    host = host or NoHost()
    key = sha256(f"{version}\n{source}".encode(errors="surrogatepass")).hexdigest()
    try:
        kept = parse_catalogue(host.recall(key))
        if kept.versions == (version,) and len(kept.flags) >= FEWEST_FLAGS:
            return kept
    except ValueError:
        pass  # nothing is kept, or something else than what we wrote
    try:
        forms = parse_flags(source, version)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(forms) < FEWEST_FLAGS:
        return None
    host.keep(key, render_catalogue(version, forms))
    return Catalogue(versions=(version,), flags=index_flags(forms))


def _only(packaged: Catalogue, version: str) -> Mapping[str, tuple[FlagSpec, ...]]:
    kept = {name: tuple(form for form in forms if version in form.versions) for name, forms in packaged.flags.items()}
    return {name: forms for name, forms in kept.items() if forms}


def parse_flags(source: str, version: str) -> list[FlagSpec]:
    """Parse both of SGLang's ways to declare a flag: `add_argument(…)` calls, and `name: A[type, Arg(…)]` fields."""
    found: dict[str, FlagSpec] = {}
    names: dict[str, ast.expr] = {}
    declarations = list(_declarations(ast.parse(source), names))  # read to the end first: names may stand below
    for node in declarations:
        found.update({form.name: form for form in _forms_of(node, names, version)})
    return list(found.values())


def _declarations(tree: ast.Module, names: dict[str, ast.expr]) -> Iterator[ast.Call | ast.AnnAssign]:
    """Find what may declare a flag, and note into `names` what every assigned name and simple function stands for.

    Only statements are walked into, as neither a flag nor a list of choices hides inside an expression.
    """
    pending: deque[ast.stmt] = deque(tree.body)
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.value is not None:
                names.setdefault(node.target.id, node.value)
            yield node
        elif isinstance(node, ast.Assign):
            names.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return) and node.body[-1].value:
            names[f"{node.name}()"] = node.body[-1].value
        if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            yield node.value
        for field in ("body", "orelse", "finalbody"):
            pending.extend(getattr(node, field, ()))


def _forms_of(node: ast.Call | ast.AnnAssign, known: Mapping[str, ast.expr], version: str) -> Iterator[FlagSpec]:
    if isinstance(node, ast.AnnAssign):
        assert isinstance(node.target, ast.Name)
        yield from _field_form(node.target.id, node.annotation, known, version)
    elif isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
        flags = [word for item in node.args if (word := _text(item)).startswith("--")]
        if flags:
            yield _form(flags, _keywords(node), "", known, version)


def _field_form(name: str, annotation: ast.expr, known: Mapping[str, ast.expr], version: str) -> Iterator[FlagSpec]:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("A", "Annotated")):
        return
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    arg = next((part for part in parts[1:] if _is_arg(part)), None)
    if arg is None:
        return
    keywords = _keywords(arg) if isinstance(arg, ast.Call) else {"help": arg}
    if "no_cli" in keywords and ast.unparse(keywords["no_cli"]) == "True":
        return
    aliases = _words(keywords.get("aliases"), known)
    own = _text(keywords.get("cli_name")) or "--" + name.replace("_", "-")
    yield _form([own, *aliases], keywords, _bare_type(parts[0]), known, version)


def _is_arg(part: ast.expr) -> bool:
    return bool(_text(part)) or isinstance(part, ast.JoinedStr) or _called(part) == "Arg"


def _called(node: ast.expr) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _form(
    names: list[str], keywords: Mapping[str, ast.expr], type_: str, known: Mapping[str, ast.expr], version: str
) -> FlagSpec:
    parser = keywords.get("type_parser") or keywords.get("type")
    action = _action(keywords)
    bare = [name.removeprefix("--") for name in names]
    if action == "BooleanOptionalAction":
        bare.insert(1, f"no-{bare[0]}")
    literal = type_.startswith("Literal[")
    choices = _words(ast.parse(type_, mode="eval").body.slice, known) if literal else ()  # type: ignore[attr-defined]
    element = type_.partition("[")[2].rstrip("]") if _is_list(type_) else type_
    element = "int" if literal and choices and all(choice.isdecimal() for choice in choices) else element
    return FlagSpec(
        name=bare[0],
        aliases=tuple(bare[1:]),
        kind=_kind(action, keywords, type_),
        type=_TYPES.get(ast.unparse(parser) if parser else element, "str"),
        choices=_words(keywords.get("choices"), known) or choices,
        deprecated=_deprecated(action, keywords),
        versions=(version,),
    )


def _action(keywords: Mapping[str, ast.expr]) -> str:
    action = keywords.get("action")
    return (_text(action) or ast.unparse(action).rpartition(".")[2]) if action else ""


def _kind(action: str, keywords: Mapping[str, ast.expr], type_: str) -> str:
    nargs = _text(keywords.get("nargs"))
    if action == "BooleanOptionalAction":
        return "pair"
    if action == "LoRAPathAction":
        return "list"
    takes_value = "nargs" in keywords or action.endswith("AliasStoreAction") or action in ("", "store")
    if not takes_value or (type_ == "bool" and not action):
        return "switch"
    if nargs in ("+", "*") or (not nargs and _is_list(type_) and "type_parser" not in keywords):
        return "list"
    return "optional" if nargs == "?" else "value"


def _deprecated(action: str, keywords: Mapping[str, ast.expr]) -> str:
    help_ = _text(keywords.get("help"))
    if not (action.startswith("Deprecated") or _DEPRECATED.match(help_)):
        return ""
    successor = _SUCCESSOR.search(help_)
    return _text(keywords.get("new_flag")) or (successor[1] if successor else "-")


def _bare_type(node: ast.expr) -> str:
    """The type without `Optional[…]` or `… | None`."""
    text = ast.unparse(node).removesuffix(" | None")
    return text[len("Optional[") : -1] if text.startswith("Optional[") else text


def _is_list(type_: str) -> bool:
    return type_.startswith(("List[", "list["))


def _words(node: ast.expr | None, known: Mapping[str, ast.expr]) -> tuple[str, ...]:
    """The words of a list as far as the source tells them; () for what only a running server can work out."""
    words = _listed(node, known, 0)
    return () if words is None else tuple(dict.fromkeys(words))


def _listed(node: ast.expr | None, known: Mapping[str, ast.expr], depth: int) -> list[str] | None:
    """Work out a list: literals, keys of a dict, sums and copies of lists, and names that stand for any of these."""
    if depth > _DEEPEST:
        return None
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return _items(items, known, depth)
        case ast.Dict(keys=keys):
            return _items(keys, known, depth)
        case ast.BinOp(left=left, op=ast.Add() | ast.BitOr(), right=right):
            first, second = _listed(left, known, depth + 1), _listed(right, known, depth + 1)
            return None if first is None or second is None else first + second
        case ast.Call(func=ast.Name(id="list" | "set" | "sorted" | "tuple" | "frozenset"), args=[inner]):
            return _listed(inner, known, depth + 1)
        case ast.Call(func=ast.Attribute(value=inner, attr="keys"), args=[]):
            return _listed(inner, known, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=[]):
            return _listed(known.get(f"{name}()"), known, depth + 1)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _listed(known.get(name), known, depth + 1)
    return None


def _items(items: Sequence[ast.expr | None], known: Mapping[str, ast.expr], depth: int) -> list[str] | None:
    """The texts of constant items, of names that stand for one, and of lists that are unpacked among them."""
    words: list[str] = []
    for item in items:
        if isinstance(item, ast.Starred):
            inner = _listed(item.value, known, depth + 1)
            if inner is None:
                return None
            words += inner
            continue
        value = known.get(item.id) if isinstance(item, ast.Name) else item
        if not isinstance(value, ast.Constant) or value.value is None:
            return None
        words.append(str(value.value))
    return words


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
