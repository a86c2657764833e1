"""What a pixi.toml says that pixi-pack does not carry over: the activation environment and the verify task. Pure."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.errors import BuildError

VERIFY_TASK = "verify"
_SHELL_SYNTAX = re.compile(r"[|&;<>$`(){}*?~]|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One environment of a pixi.toml. `verify` is () when the task is missing or needs a shell; `warnings` say so."""

    activation: tuple[tuple[str, str], ...]
    verify: tuple[str, ...]
    has_verify_task: bool
    warnings: tuple[str, ...]


def parse_manifest(text: str, environment: str, platform: str) -> Manifest:
    """Parse the manifest as far as the sidecar needs it.

    Raises:
        BuildError: it is no TOML table, or has no such environment.
    """
    try:
        return _parse(tomllib.loads(text), environment, platform)
    except (tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise BuildError(f"cannot read pixi.toml: {error}; see the template's README") from error


def _parse(data: Mapping[str, Any], environment: str, platform: str) -> Manifest:
    tables = list(_tables(data, environment, platform))
    warnings: list[str] = []
    variables: dict[str, str] = {}
    for table in tables:
        variables.update(_activation(table, warnings))
    task = next(
        (table["tasks"][VERIFY_TASK] for table in reversed(tables) if VERIFY_TASK in table.get("tasks", {})), None
    )
    return Manifest(
        activation=tuple(sorted(variables.items())),
        verify=_verify(task, warnings),
        has_verify_task=task is not None,
        warnings=tuple(warnings),
    )


def _tables(data: Mapping[str, Any], environment: str, platform: str) -> Iterator[Mapping[str, Any]]:
    """Yield the tables of the environment, the weaker first: default feature, features, each with its targets."""
    known = {"default": []} | data.get("environments", {})
    if environment not in known:
        raise BuildError(
            f"cannot build environment {environment!r}: pixi.toml has {', '.join(known)}; choose one with -e"
        )
    spec = known[environment]
    names = spec if isinstance(spec, list) else spec.get("features", [])
    bare = isinstance(spec, dict) and spec.get("no-default-feature", False)
    features = ([] if bare else [data]) + [data.get("feature", {}).get(name, {}) for name in reversed(names)]
    for feature in features:
        yield feature
        for target in ("unix", platform.partition("-")[0], platform):
            yield feature.get("target", {}).get(target, {})


def _activation(table: Mapping[str, Any], warnings: list[str]) -> Iterator[tuple[str, str]]:
    activation = table.get("activation", {})
    if activation.get("scripts"):
        warnings.append("activation.scripts cannot be carried in the sidecar; put plain variables under activation.env")
    for name, value in activation.get("env", {}).items():
        if "$" in str(value):
            warnings.append(f"activation.env.{name} refers to another variable and is left out of the sidecar")
        else:
            yield name, str(value)


def _verify(task: Any, warnings: list[str]) -> tuple[str, ...]:
    """Return the task's command as words; a command that needs a shell is left out, as servers' hosts may have none."""
    command = task.get("cmd", "") if isinstance(task, dict) else task or ""
    if isinstance(command, list):
        return tuple(str(word) for word in command)
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if command and (not words or any(_SHELL_SYNTAX.search(word) for word in _unquoted(command))):
        warnings.append(
            f"the {VERIFY_TASK} task needs a shell and is left out of the sidecar; write it as a list of words"
        )
        return ()
    return tuple(words)


def _unquoted(command: str) -> list[str]:
    """Return what stands outside of quotes."""
    return re.sub(r"'[^']*'|\"[^\"$`]*\"", " ", command).split()
