"""Render `infer-dev-bundle.json`, which says what a bundle's own layout cannot: hashes, activation, verify. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from infer_dev_entry.bundle.model import PIXI_PACK, SIDECAR_NAME, SIDECAR_VERSION, WHEELS


def render_sidecar(
    *,
    kind: str,
    platform: str,
    python: str,
    created_by: str,
    files: Mapping[str, str],
    activation: Mapping[str, str] | None = None,
    verify: Sequence[str] = (),
) -> str:
    """Return the sidecar's text; equal input gives equal bytes, whatever the order of the mappings.

    `python` is the minor version that wheels are for, "" when the bundle brings a conda Python. `files` maps the
    relative path of every other file of the bundle to its sha256 in hex; the sidecar itself has no entry.

    Raises:
        ValueError: `kind` is not a kind of bundle, a path is not a clean relative one, or a digest is not a sha256.
    """
    if kind not in (PIXI_PACK, WHEELS):
        raise ValueError(f"{kind!r} is not {PIXI_PACK} or {WHEELS}")
    for path, digest in files.items():
        _check_entry(path, digest)
    record = {
        "version": SIDECAR_VERSION,
        "kind": kind,
        "platform": platform,
        "python": python,
        "created_by": created_by,
        "files": dict(sorted(files.items())),
        "activation": dict(sorted((activation or {}).items())),
        "verify": list(verify),
    }
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _check_entry(path: str, digest: str) -> None:
    parts = path.split("/")
    if path == SIDECAR_NAME or not path or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise ValueError(f"{path!r} is not a relative path inside a bundle")
    if len(digest) != 64 or any(char not in "0123456789abcdef" for char in digest):
        raise ValueError(f"{path}: {digest!r} is not a sha256 in lower-case hex")
