"""Ask the models that are served here from Python: `Runtime` attaches to a server, or starts one for a `with` block."""

from __future__ import annotations

from infer_dev_entry.client.async_runtime import AsyncRuntime
from infer_dev_entry.client.model import Completion, Delta, ToolCall
from infer_dev_entry.client.runtime import Runtime
from infer_dev_entry.errors import (
    AnswerTimeoutError,
    BadRequestError,
    BrokenAnswerError,
    ClientError,
    NotReadyError,
    OverloadedError,
    RefusedKeyError,
    UnknownModelError,
    UnreachableError,
)

__all__ = [
    "AnswerTimeoutError",
    "AsyncRuntime",
    "BadRequestError",
    "BrokenAnswerError",
    "ClientError",
    "Completion",
    "Delta",
    "NotReadyError",
    "OverloadedError",
    "RefusedKeyError",
    "Runtime",
    "ToolCall",
    "UnknownModelError",
    "UnreachableError",
]
