"""What a conda prefix may look like."""

from __future__ import annotations

import os

from infer_dev_entry.errors import InstallError

# conda-build's placeholder has 255 bytes, and a longer prefix does not fit into its place in a binary.
PREFIX_MAX_BYTES = 255

# rattler writes PATH unquoted into its script, `:` separates PATH's entries, and quotes end a word of other scripts.
_UNSAFE = "\"'$`\\:\n"


def check_prefix(prefix: str) -> None:
    """Check that conda packages can have this prefix baked in.

    Raises:
        InstallError: it is too long, or holds a character that breaks scripts.
    """
    length = len(os.fsencode(prefix))
    mend = "set AUTO_INFER_SGLANG_PIXI_PROJECT_DIR to"
    if length > PREFIX_MAX_BYTES:
        raise InstallError(
            f"cannot install into {prefix}: the path has {length} bytes, and conda packages have room for "
            f"{PREFIX_MAX_BYTES}; {mend} a shorter one"
        )
    odd = next((character for character in prefix if character in _UNSAFE), "")
    if odd:
        raise InstallError(f"cannot install into {prefix!r}: the path holds {odd!r}; {mend} a plainer one")
