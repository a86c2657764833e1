"""Measure the limits of the design against peers from packages, side by side in one run: `python -m benchmarks`."""
