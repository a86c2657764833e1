"""Add a key to a gateway's file of API keys."""

from __future__ import annotations

import os
import secrets

from infer_dev_entry.errors import KeysFileError

_RANDOM_BYTES = 32


def add_key(path: str, name: str) -> str:
    """Make a key, append it to the file under `name`, and return it; a missing file is made, mode 0600.

    One write to the end of the file: whoever adds at the same time loses nothing, and no reader sees half a line.

    Raises:
        KeysFileError: the file cannot be written.
    """
    key = f"sk-{secrets.token_urlsafe(_RANDOM_BYTES)}"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            begin = "\n" if size and os.pread(handle, 1, size - 1) != b"\n" else ""
            line = f"{begin}{name}: {key}\n".encode()
            if os.write(handle, line) != len(line):
                os.ftruncate(handle, size)
                raise KeysFileError(f"cannot write {path}: the disk is full; free space")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise KeysFileError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    return key
