"""Patch a template's pixi.toml so that pixi finds everything in the bundle beside it, and nothing elsewhere. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping
from typing import Any

from infer_dev_entry.errors import InstallError

CHANNEL = "./channel"
WHEELS = "./pypi"

_SOURCE_KEYS = ("index-url", "extra-index-urls", "find-links", "index-strategy")


def patch_manifest(text: str, *, source: str, environment: str, platform: str, has_wheels: bool) -> str:
    """Return the manifest with the bundle's channel and wheels as its only sources, for that platform and environment.

    The other environments are dropped: the bundle holds the packages of one, and a lock is solved for all of them.

    Raises:
        InstallError: it is no pixi manifest, or has no such environment; the message names `source`.
    """
    doc = _parse(text, source)
    head = doc.get("workspace", doc.get("project"))
    if not isinstance(head, MutableMapping):
        raise InstallError(
            f"cannot use {source}: it has no [workspace] table; give a pixi.toml as `pixi init` writes it"
        )
    head["channels"] = [CHANNEL]
    head["platforms"] = [platform]
    _keep_environment(doc, source, environment)
    if has_wheels or "pypi-options" in doc:
        _patch_pypi(doc.setdefault("pypi-options", {}))
    if has_wheels:
        doc["pypi-options"]["find-links"] = [{"path": WHEELS}]
    features = doc.get("feature", {})
    for feature in features.values() if isinstance(features, Mapping) else ():
        _patch_feature(feature, platform)
    return _render(doc)


def has_task(text: str, task: str) -> bool:
    """Say whether a manifest defines that task, for all environments or in a feature."""
    doc = tomllib.loads(text)
    features = doc.get("feature", {})
    tables = [doc, *(features.values() if isinstance(features, dict) else ())]
    return any(task in table.get("tasks", {}) for table in tables if isinstance(table, dict))


def _parse(text: str, source: str) -> MutableMapping[str, Any]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise InstallError(f"cannot read {source}: {error}; mend the file") from error


def _render(doc: MutableMapping[str, Any]) -> str:
    import tomlkit

    return tomlkit.dumps(doc)


def _keep_environment(doc: MutableMapping[str, Any], source: str, environment: str) -> None:
    named = doc.get("environments", {})
    if environment in named:
        kept = named[environment]
        doc["environments"] = {environment: kept}
    elif environment == "default":
        doc.pop("environments", None)
    else:
        listed = ", ".join(("default", *named))
        raise InstallError(
            f"cannot use {source}: it has no environment {environment!r}; "
            f"set AUTO_INFER_SGLANG_PIXI_ENVIRONMENT to one of {listed}"
        )


def _patch_feature(feature: Any, platform: str) -> None:
    if not isinstance(feature, MutableMapping):
        return
    if "channels" in feature:
        feature["channels"] = [CHANNEL]
    if "platforms" in feature:
        feature["platforms"] = [platform]
    if "pypi-options" in feature:
        _patch_pypi(feature["pypi-options"])


def _patch_pypi(options: MutableMapping[str, Any]) -> None:
    """Forget where PyPI packages came from, and build nothing from source."""
    for key in _SOURCE_KEYS:
        options.pop(key, None)
    options["no-build"] = True
