"""Make the runtime that policies are asked of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infer_dev_entry.errors import PolicyInputError

if TYPE_CHECKING:
    from infer_dev_entry.client import Runtime


def create_inference_runtime(
    target: str = "",
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    api_key: str | None = None,
    model: str = "",
    timeout_s: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Runtime:
    """Attach to a server, by its name in the running fleet or by URL; with a config start its servers instead.

    What is started ends with the runtime, so use it in a `with` block; `target` then is the server to ask, where there
    are several. `timeout_s` is for one whole answer. All else is as `Runtime.attach` and `Runtime.start` have it.

    Raises:
        PolicyInputError: a key for servers that are started here, whose config says theirs.
        ClientError: nothing can be asked there; the subclasses say why.
        ConfigError: every fault of the config.
    """
    from infer_dev_entry.client import Runtime  # openai is loaded by whoever asks, not by whoever ranks

    bounds: dict[str, Any] = {} if timeout_s is None else {"timeout_s": timeout_s}
    if config is None:
        return Runtime.attach(target, api_key=api_key, model=model, environ=environ, **bounds)
    if api_key is not None:
        raise PolicyInputError(("api_key: servers that are started take theirs from the config; leave it out",))
    return Runtime.start(config, name=target, model=model, environ=environ, **bounds)
