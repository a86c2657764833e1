"""The JSON Schema (draft 2020-12) of a config, made from the key table and the flag catalogue, for editors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infer_dev_entry.config.arguments import packaged_flags
from infer_dev_entry.config.catalogue import version_key
from infer_dev_entry.config.keys import (
    GATEWAY,
    GLOBAL_TABLES,
    INSTANCE_TABLES,
    LARGEST,
    LONGEST_S,
    MASTER,
    MAX_REPLICAS,
    Key,
)
from infer_dev_entry.engines import ENGINE_NAMES, FlagSpec

Schema = dict[str, object]

# A string with a variable stands for a value of any type.
_FROM_VARIABLES: Schema = {"$ref": "#/$defs/from_variables"}
_TYPED_KINDS = ("bool", "int", "seconds", "replicas", "choice")

_SCALARS: Mapping[str, list[str]] = {
    "int": ["integer", "string"],
    "suffixed_int": ["integer", "string"],
    "float": ["number", "string"],
    "str": ["string", "number", "object", "array"],
}


def render_schema() -> str:
    """Render the schema as JSON text."""
    return json.dumps(_schema(), indent=1, ensure_ascii=False) + "\n"


def _schema() -> Schema:
    instance = _closed(
        {name: {"$ref": f"#/$defs/{name}"} for name in INSTANCE_TABLES}, "one server, or one per replica"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "infer-dev fleet",
        "description": "Servers that infer-dev keeps serving. See docs/def-sglang-config-toml.md.",
        "type": "object",
        "properties": {
            "master": _table(MASTER, "the whole fleet"),
            "instance": {"$ref": "#/$defs/instances"},
            "gateway": _table(GATEWAY, "one endpoint in front of the servers"),
        },
        "additionalProperties": False,
        "required": ["instance"],
        "$defs": {
            "instances": {
                "type": "object",
                "description": "instances by name; control and server are defaults for all of them",
                "properties": {name: {"$ref": f"#/$defs/{name}"} for name in GLOBAL_TABLES},
                "patternProperties": {"^(?!(?:control|server)$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": instance},
                "additionalProperties": False,
            },
            **{name: _instance_table(name) for name in INSTANCE_TABLES},
            "flags": _flags(),
            "from_variables": {"type": "string", "pattern": "\\$\\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\\}"},
            **_shapes(),
        },
    }


def _instance_table(name: str) -> Schema:
    keys, text = INSTANCE_TABLES[name]
    if name == "env":
        variable: Schema = {"type": ["string", "number", "boolean"]}
        names = {"^[A-Za-z_][A-Za-z0-9_]*$": variable}
        return {"type": "object", "description": text, "patternProperties": names, "additionalProperties": False}
    if name not in ("server", "yaml"):
        return _table(keys, text)
    return {
        "description": text,
        "properties": {key.name: _key(key) for key in keys},
        "allOf": [{"$ref": "#/$defs/flags"}],
    }


def _flags() -> Schema:
    """Every flag of both engines by its TOML name; open, as an installed SGLang may know more than the catalogue."""
    forms: dict[str, list[FlagSpec]] = {}
    for engine in ENGINE_NAMES:
        for named in packaged_flags(engine).forms.values():
            for form in named:
                forms.setdefault(form.name.replace("-", "_"), []).append(form)
    properties = {name: _flag(forms[name]) for name in sorted(forms)}
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _flag(forms: list[FlagSpec]) -> Schema:
    versions = sorted({version for form in forms for version in form.versions}, key=version_key)
    engines = [f"sglang {', '.join(versions)}"] if versions else []
    engines += ["llama_cpp"] if any(not form.versions for form in forms) else []
    schema: Schema = {"description": "; ".join(engines)}
    if all(form.deprecated for form in forms):
        schema["deprecated"] = True
    kinds = sorted({_shape(form) for form in forms})
    choices = sorted({choice for form in forms for choice in form.choices})
    shapes: list[Schema] = [{"enum": _enum(choices)}, dict(_FROM_VARIABLES)] if choices else []
    shapes += [{"$ref": f"#/$defs/flag_{kind}"} for kind in kinds if kind]
    return {**schema, **shapes[0]} if len(shapes) == 1 else {**schema, "anyOf": shapes}


def _shape(form: FlagSpec) -> str:
    """The name of a shape in `_shapes()`; "" for a value that its choices describe."""
    if form.kind in ("switch", "pair"):
        return "switch"
    if form.kind == "list":
        return f"{form.type}_list"
    if form.kind == "optional":
        return "optional"
    return "" if form.choices else form.type


def _enum(choices: list[str]) -> list[object]:
    numbers: list[object] = [int(choice) for choice in choices if choice.isdecimal()]
    return [*choices, *numbers, False]


def _shapes() -> dict[str, Schema]:
    """The shapes of flags. A number may be quoted, a lone value be listed, and `false` omits any flag."""
    shapes: dict[str, Schema] = {
        "switch": {"anyOf": [{"type": "boolean"}, dict(_FROM_VARIABLES)]},
        "optional": {"type": ["boolean", "number", "string"]},
        "json": {"type": ["object", "array", "string", "number", "boolean"]},
    }
    for name, types in _SCALARS.items():
        item: Schema = {"type": types}
        off: Schema = {"const": False}
        shapes[name] = {"anyOf": [item, {"type": "array", "items": item, "maxItems": 1}, off]}
        shapes[f"{name}_list"] = {"anyOf": [item, {"type": "array", "items": item}, off]}
    return {f"flag_{name}": shape for name, shape in shapes.items()}


def _table(keys: tuple[Key, ...], text: str) -> Schema:
    return _closed({key.name: _key(key) for key in keys}, text)


def _closed(properties: Mapping[str, object], text: str) -> Schema:
    return {"type": "object", "description": text, "properties": dict(properties), "additionalProperties": False}


def _key(key: Key) -> Schema:
    kind = _kind(key)
    schema: Schema = {"anyOf": [kind, dict(_FROM_VARIABLES)]} if key.kind in _TYPED_KINDS else kind
    schema["description"] = key.text.replace("`", "")
    if key.default is not None:
        schema["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    return schema


def _kind(key: Key) -> Schema:
    if key.kind == "choice":
        return {"enum": list(key.choices)}
    if key.kind == "int":
        return {"type": "integer", "minimum": int(key.minimum)}
    if key.kind == "seconds":
        low = {"exclusiveMinimum": 0} if key.positive else {"minimum": 0}
        return {"type": "number", **low, "maximum": LONGEST_S}
    if key.kind == "number":
        return {"type": "number", "minimum": 0, "maximum": LARGEST}
    if key.kind == "replicas":
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_REPLICAS}, {"const": "per-gpu"}]}
    return dict(_PLAIN_KINDS[key.kind])


_PLAIN_KINDS: Mapping[str, Schema] = {
    "bool": {"type": "boolean"},
    "str": {"type": "string", "minLength": 1},
    "path": {"type": "string"},
    "names": {"type": "array", "items": {"type": "string"}},
    "gpu_ids": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "integer", "minimum": 0},
            {"type": "array", "items": {"type": ["integer", "string"]}, "uniqueItems": True},
        ]
    },
}
