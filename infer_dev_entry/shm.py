"""SGLang's files in /dev/shm: who has them open, and their removal once those are dead.

Their names tell nothing of the server (0.5.17 and later call one `sglang_loads_<random>_<digest>.shm`), and nothing
removes them when SGLang is killed or stopped; a full /dev/shm ends each start by SIGBUS. Only what one of our processes
was seen to have open is removed: with `--ipc host` the others may be of containers whose processes we cannot see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from infer_dev_entry.procaccess import read_links

SHM_DIR = "/dev/shm"
# What SGLang makes for itself. What it maps besides, such as a store that several servers share, is not its own.
_FAMILIES = ("sglang_loads_", "sgl_shm_", "multi_tokenizer_args_")


def read_segments(pids: Iterable[int], proc: Path = Path("/proc")) -> set[str]:
    """Return the paths of SGLang's shared memory that these processes have open; the gone and the closed have none."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            found |= set(filter(_is_segment, read_links(proc / str(pid))))
    return found


def _is_segment(target: str) -> bool:
    folder, _, file = target.rpartition("/")
    return folder == SHM_DIR and file.startswith(_FAMILIES) and not file.endswith(" (deleted)")


def remove_segments(paths: Iterable[str]) -> list[str]:
    """Remove these files and return those that were there; what cannot be removed is left."""
    removed = []
    for path in sorted(paths):
        with suppress(OSError):
            os.unlink(path)
            removed.append(path)
    return removed
