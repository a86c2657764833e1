"""What the tests of downloads share: a model's files, a progress that remembers, and a pull by the real clients."""

from __future__ import annotations

import os
import random

import pytest
from small_hub import SmallHub

pytest.importorskip("huggingface_hub", reason="the models extra is not installed")
pytest.importorskip("modelscope_hub", reason="the models extra is not installed")

from infer_dev_entry.models.huggingface import HuggingFaceHub
from infer_dev_entry.models.modelscope import ModelScopeHub
from infer_dev_entry.models.pull import Pulled, pull
from infer_dev_entry.models.wish import ModelWish

WEIGHTS = "model-00001-of-00001.safetensors"
FILES = {
    "config.json": b'{"architectures": ["X"]}',
    "README.md": b"a model\n",
    "tokenizer.json": b"{}" * 500,
    WEIGHTS: random.Random(1).randbytes(3_000_000),
    "extra/notes.txt": b"below",
    "empty.txt": b"",
}


class Notes:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.done = 0

    def stage(self, name: str, total: int = 0) -> None:
        self.stages.append((name, total))
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None:
        pass


def run_pull(
    hub: SmallHub, wish: ModelWish, notes: Notes | None = None, *, latest: bool = True, **environ: str
) -> Pulled:
    """Pull in this process, through the real client of the wish's source."""
    own = {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint, **environ}

    def open_hub(wish: ModelWish) -> HuggingFaceHub | ModelScopeHub:
        if wish.source == "huggingface":
            return HuggingFaceHub(own, {})
        return ModelScopeHub(own, os.environ)

    return pull(wish, open_hub, notes or Notes(), own, latest=latest)
