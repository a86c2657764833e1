"""Become a user, then another program: `as_user.py NAME UID GID PROGRAM [ARGUMENT …]`. Run by path, as `python -I -S`.

PID 1 tests a gateway's configuration as the user that the gateway runs as: what root can read says nothing about that.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> None:
    """Change user and exec; never returns.

    Raises:
        OSError: we cannot become that user, or the program cannot be executed.
    """
    name, uid, gid, *command = argv
    os.initgroups(name, int(gid))
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
