"""What the plugin changes in supervisord, on a small stand-in for its class: real forks, real signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Between fork and exec it waits until it was told to stop, as a busy machine would have it.
SCRIPT = """
import os, select, signal, sys, time
from infer_dev_entry.supervisor_plugin import lose_no_signal

class Program:
    def spawn(self):
        pid = os.fork()
        return pid if pid else self._spawn_as_child("/bin/sleep", ["sleep", "20"])

    def _spawn_as_child(self, filename, argv):
        os.write(begun[1], b"x")
        while not select.select([told[0]], [], [], 0.05)[0]:  # a handler of ours runs meanwhile
            pass
        os.execv(filename, argv)

signal.signal(signal.SIGTERM, lambda *_: None)
mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
if sys.argv[1] == "mended":
    lose_no_signal(Program)
begun, told = os.pipe(), os.pipe()
pid = Program().spawn()
os.read(begun[0], 1)
os.kill(pid, signal.SIGTERM)
os.write(told[1], b"x")
ends = time.monotonic() + (1.5 if sys.argv[1] == "plain" else 20)
found = 0
while not found and time.monotonic() < ends:
    found, status = os.waitpid(pid, os.WNOHANG)
    time.sleep(0.02)
if not found:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print("lost" if not found else os.WTERMSIG(status), signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask)
"""


@pytest.mark.parametrize(("which", "printed"), [("plain", "lost True"), ("mended", "15 True")])
def test_stop_between_fork_and_exec_is_not_lost(which: str, printed: str) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, which], capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout.strip() == printed, run.stderr
