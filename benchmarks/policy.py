"""Expected free energy of 100,000 policies of 64 actions: NumPy against the same sums in plain Python."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import Row, Table
from infer_dev_entry.policy.energy import TARGET_DOPAMINE, batch_energies, find_minimum

POLICIES = 100_000
ACTIONS = 64
REFERENCE_POLICIES = 5_000  # the reference is timed on these, and compared on them
ROUNDS = 7
REFERENCE_ROUNDS = 3
LIMIT_MS = 200.0
TOLERANCE = 2e-12  # rounding to 12 decimals, and a few ulp
DOPAMINE = 0.3


def run() -> tuple[Table, ...]:
    """Score and choose; every tenth probability is 0, every third policy predicts nothing. Results must agree."""
    table, predicted = _make()
    _compare(table[:REFERENCE_POLICIES], predicted[:REFERENCE_POLICIES])
    ours = tuple(_time_ms(_choose, table, predicted) for _ in range(ROUNDS))
    rows, levels = table[:REFERENCE_POLICIES].tolist(), predicted[:REFERENCE_POLICIES].tolist()
    scale = POLICIES / REFERENCE_POLICIES
    slow = tuple(scale * _time_ms(slow_energies, rows, levels) for _ in range(REFERENCE_ROUNDS))
    return (
        Table(
            name="policy",
            title=f"{POLICIES:,} policies of {ACTIONS} actions checked, scored, and the minimum chosen",
            unit="ms",
            rows=(
                Row(who="infer-dev, arrays in, arrays out", samples=ours, ours=True, limit=LIMIT_MS, bound=True),
                Row(who="plain Python, math.fsum", samples=slow),
            ),
            notes=(
                f"the reference is timed on {REFERENCE_POLICIES:,} policies, times {scale:g}; both agree there "
                f"within {TOLERANCE:g}",
            ),
        ),
    )


def _make() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(0)
    table = random.dirichlet(np.ones(ACTIONS), POLICIES)
    table[random.random(table.shape) < 0.1] = 0
    table /= table.sum(axis=1, keepdims=True)
    predicted = random.random(POLICIES)
    predicted[::3] = np.nan
    return table, predicted


def _choose(table: NDArray[np.float64], predicted: NDArray[np.float64]) -> int:
    return find_minimum(batch_energies(table, predicted, dopamine=DOPAMINE).expected_free_energy)


def slow_energies(rows: Sequence[Sequence[float]], levels: Sequence[float]) -> list[float]:
    """Compute G with exact sums, one value at a time."""
    found = []
    for row, level in zip(rows, levels, strict=True):
        total = math.fsum(row)
        shares = [value / total for value in row if value > 0]
        ambiguity = -math.fsum(share * math.log(share) for share in shares)
        found.append(abs((DOPAMINE if math.isnan(level) else level) - TARGET_DOPAMINE) + ambiguity)
    return found


def _compare(table: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    fast = batch_energies(table, predicted, dopamine=DOPAMINE).expected_free_energy
    slow = slow_energies(table.tolist(), predicted.tolist())
    worst = float(np.abs(fast - np.array(slow)).max())
    if not worst <= TOLERANCE or find_minimum(fast) != find_minimum(slow):
        raise RuntimeError(f"the energies differ from the reference by {worst:g}")


def _time_ms(job: Callable[..., object], *args: object) -> float:
    began = time.perf_counter()
    job(*args)
    return 1000 * (time.perf_counter() - began)
