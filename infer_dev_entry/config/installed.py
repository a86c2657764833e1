"""The flags of an installed SGLang, out of the text of its argument modules: read as a syntax tree, never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from infer_dev_entry.config.catalogue import Catalogue, index_flags, load_catalogue
from infer_dev_entry.engines import FlagSpec

FEWEST_FLAGS = 100  # fewer mean that the source has a shape of its own, and the packaged catalogue is the better guess
_TYPES = {
    "int": "int",
    "float": "float",
    "json.loads": "json",
    "json_list_type": "json",
    "human_readable_int": "suffixed_int",
}


def installed_catalogue(version: str, source: str) -> Catalogue | None:
    """Return the flags of one installed version; None when its source is not understood.

    A packaged version is not read again. Choices that are worked out at run time (parsers, plugins) are left open.
    """
    packaged = load_catalogue()
    if version in packaged.versions:
        return Catalogue(versions=(version,), flags=_only(packaged, version))
    try:
        forms = parse_flags(source, version)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Catalogue(versions=(version,), flags=index_flags(forms)) if len(forms) >= FEWEST_FLAGS else None


def _only(packaged: Catalogue, version: str) -> Mapping[str, tuple[FlagSpec, ...]]:
    kept = {name: tuple(form for form in forms if version in form.versions) for name, forms in packaged.flags.items()}
    return {name: forms for name, forms in kept.items() if forms}


def parse_flags(source: str, version: str) -> list[FlagSpec]:
    """Parse both of SGLang's ways to declare a flag: `add_argument(…)` calls, and `name: A[type, Arg(…)]` fields."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = {form.name: form for node in ast.walk(tree) for form in _forms_of(node, constants, version)}
    return list(found.values())


def _forms_of(node: ast.AST, constants: Mapping[str, ast.expr], version: str) -> Iterator[FlagSpec]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
        names = [word for item in node.args if (word := _text(item)).startswith("--")]
        if names:
            yield _form(names, _keywords(node), "", constants, version)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield from _field_form(node.target.id, node.annotation, constants, version)


def _field_form(name: str, annotation: ast.expr, constants: Mapping[str, ast.expr], version: str) -> Iterator[FlagSpec]:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("A", "Annotated")):
        return
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    arg = next((part for part in parts[1:] if _is_arg(part)), None)
    if arg is None:
        return
    keywords = _keywords(arg) if isinstance(arg, ast.Call) else {}
    if "no_cli" in keywords and ast.unparse(keywords["no_cli"]) == "True":
        return
    aliases = _words(keywords.get("aliases"), constants)
    own = _text(keywords.get("cli_name")) or "--" + name.replace("_", "-")
    yield _form([own, *aliases], keywords, _bare_type(parts[0]), constants, version)


def _is_arg(part: ast.expr) -> bool:
    return bool(_text(part)) or isinstance(part, ast.JoinedStr) or _called(part) == "Arg"


def _called(node: ast.expr) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _form(
    names: list[str], keywords: Mapping[str, ast.expr], type_: str, constants: Mapping[str, ast.expr], version: str
) -> FlagSpec:
    parser = keywords.get("type_parser") or keywords.get("type")
    action = _action(keywords)
    bare = [name.removeprefix("--") for name in names]
    if action == "BooleanOptionalAction":
        bare.insert(1, f"no-{bare[0]}")
    literal = type_.startswith("Literal[")
    choices = _words(ast.parse(type_, mode="eval").body.slice, constants) if literal else ()  # type: ignore[attr-defined]
    element = type_.partition("[")[2].rstrip("]") if _is_list(type_) else type_
    element = "int" if literal and choices and all(choice.isdecimal() for choice in choices) else element
    return FlagSpec(
        name=bare[0],
        aliases=tuple(bare[1:]),
        kind=_kind(action, keywords, type_),
        type=_TYPES.get(ast.unparse(parser) if parser else element, "str"),
        choices=_words(keywords.get("choices"), constants) or choices,
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
    help_ = _text(keywords.get("help")).lower()
    if action.startswith("Deprecated") or help_.startswith(("deprecated", "[deprecated", "(deprecated")):
        return _text(keywords.get("new_flag")) or "-"
    return ""


def _bare_type(node: ast.expr) -> str:
    """The type without `Optional[…]` or `… | None`."""
    text = ast.unparse(node).removesuffix(" | None")
    return text[len("Optional[") : -1] if text.startswith("Optional[") else text


def _is_list(type_: str) -> bool:
    return type_.startswith(("List[", "list["))


def _words(node: ast.expr | None, constants: Mapping[str, ast.expr]) -> tuple[str, ...]:
    """The words of a literal list, or of a module constant that is one; () for anything worked out at run time."""
    node = constants.get(node.id) if isinstance(node, ast.Name) else node
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return ()
    items = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
    return () if None in items else tuple(str(item) for item in items)


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
