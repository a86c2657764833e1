"""Root without CAP_SYS_PTRACE, as in a container, still finds what the servers' user runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wait import wait_until

from infer_dev_entry.proctree import read_process
from infer_dev_entry.settings import MARK_VARIABLE

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can drop CAP_SYS_PTRACE and run as another user, by setpriv (util-linux)",
)

ROOT = Path(__file__).parents[2]
NOBODY = 65534
MARK = f"procaccess-{os.getpid()}/a"
# Of what Docker gives root, all that we need. Not just without CAP_SYS_PTRACE: newer kernels take CAP_PERFMON for it.
POWERS = "-all,+chown,+dac_override,+kill,+setgid,+setuid"
LESS = ("setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}")
LOOK = """
import json, os, sys
from pathlib import Path
from infer_dev_entry.host import LiveHost
from infer_dev_entry.proctree import read_marked_processes
pid, port, mark = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
try:
    Path(f"/proc/{pid}/environ").read_bytes()
    refused = False
except PermissionError:
    refused = True
print(json.dumps({
    "refused": refused,
    "marked": sorted(read_marked_processes(mark)[1] & {pid}),
    "holder_of_others": LiveHost().port_holder("127.0.0.1", port),
    "holder_of_ours": LiveHost(own_mark=mark).port_holder("127.0.0.1", port),
    "ids": [line.split()[1:] for line in open("/proc/self/status") if line.startswith(("Uid", "Gid"))],
    "dumpable": os.stat("/proc/self/environ").st_uid == 0 and os.access("/proc/self/fd", os.R_OK),
}))
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """A marked process of another user that holds a listening socket: its pid and port.

    It inherits the socket, as a user's Python may be closed to others.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sleep", "60"],
            env={"PATH": os.defpath, MARK_VARIABLE: MARK},
            pass_fds=[listener.fileno()],
            cwd="/",
        )
    try:
        wait_until(lambda: (info := read_process(process.pid)) and info.comm == "sleep", 10, "setpriv to become sleep")
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def test_root_without_ptrace_sees_marks_and_sockets_of_the_servers_user(server: tuple[int, int]) -> None:
    pid, port = server
    argv = [*LESS, sys.executable, "-c", LOOK, str(pid), str(port), MARK]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen == {
        "refused": True,  # else this proves nothing
        "marked": [pid],
        "holder_of_others": f"pid {pid} (sleep)",
        "holder_of_ours": None,
        "ids": [["0"] * 4, ["0"] * 4],
        "dumpable": True,
    }
