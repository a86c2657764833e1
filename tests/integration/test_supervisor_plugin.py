"""What the plugin changes in supervisord, on a small stand-in for its class: real forks, real signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Between fork and exec it sleeps, as a busy machine would have it.
SCRIPT = """
import os, signal, sys, time
from infer_dev_entry.supervisor_plugin import lose_no_signal

class Program:
    def spawn(self):
        pid = os.fork()
        return pid if pid else self._spawn_as_child("/bin/sleep", ["sleep", "20"])

    def _spawn_as_child(self, filename, argv):
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            time.sleep(0.05)
        os.execv(filename, argv)

signal.signal(signal.SIGTERM, lambda *_: None)
mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
if sys.argv[1] == "mended":
    lose_no_signal(Program)
pid = Program().spawn()
time.sleep(0.2)
os.kill(pid, signal.SIGTERM)
time.sleep(1.0)
found, status = os.waitpid(pid, os.WNOHANG)
if not found:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print("lost" if not found else os.WTERMSIG(status), signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask)
"""


@pytest.mark.parametrize(("which", "printed"), [("plain", "lost True"), ("mended", "15 True")])
def test_stop_between_fork_and_exec_is_not_lost(which: str, printed: str) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, which], capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout.strip() == printed, run.stderr
