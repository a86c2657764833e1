"""PID 1: signals, spawning, the sole waitpid, the boot line and the loop observe → decide → act."""
