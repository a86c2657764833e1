"""What a look at a model's files found. Pure data: `model_files` reads, `model_checks` and `vram_checks` judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.doctor.gguf import GgufHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one file, as `name: clause`. `certain` is false where it was not looked into far enough."""

    text: str
    certain: bool = True
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What was found. `problem` is why nothing could be read; `config` is config.json's content, None without one.

    `names` are the directory's; a single GGUF file has none, and `head` and `file_bytes` instead.
    """

    path: str
    problem: str = ""
    config: Mapping[str, Any] | None = None
    faults: tuple[Fault, ...] = ()
    names: tuple[str, ...] = ()
    is_directory: bool = False
    shards: int = 0
    has_index: bool = False
    tensor_bytes: int = 0
    head: GgufHead | None = None
    file_bytes: int = 0
