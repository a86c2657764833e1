"""Expected free energy of policies, in nats, over NumPy arrays: G(π) = risk + ambiguity.

Risk is the divergence of predicted outcomes from preferred ones, ambiguity what outcomes leave open about states:

    G(π) = KL[Q(o|π) ‖ P(o)] + E_Q(s|π)[H[P(o|s)]]

So in Friston et al., "Active inference and epistemic value" (Cognitive Neuroscience, 2015) and "Active inference: a
process theory" (Neural Computation, 2017); Da Costa et al., "Active inference on discrete state-spaces: a synthesis"
(Journal of Mathematical Psychology, 2020) also write the risk over states. For an agent with levels two plain forms
stand in: |dopamine − 0.5| for the risk, and the entropy of its own choice of action for the ambiguity.

Results are rounded to 12 decimals: |0.3 − 0.5| and |0.7 − 0.5| differ in their last bit, and noise is no preference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infer_dev_entry.errors import NoPolicyError, PolicyInputError

Floats = NDArray[np.float64]

TARGET_DOPAMINE = 0.5
SUM_TOLERANCE = 1e-6
DECIMALS = 12
_SMALLEST = np.nextafter(0.0, 1.0)  # in place of 0 in a logarithm that is then multiplied by 0
_CHUNK_ELEMENTS = 65536  # half a MiB: a chunk and its logarithms stay in a core's own cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Energies:
    """One value a policy, in the policies' order. `expected_free_energy` is risk + ambiguity."""

    risk: Floats
    ambiguity: Floats
    expected_free_energy: Floats


def batch_energies(
    probabilities: ArrayLike, predicted_dopamine: ArrayLike | None = None, *, dopamine: float
) -> Energies:
    """Compute G of many policies: risk |d − 0.5| and ambiguity H[Q(a|π)] = −Σ_a Q(a|π) ln Q(a|π), in nats.

    `probabilities` has a row a policy and a column an action. d is `predicted_dopamine` of the policy, or the current
    level `dopamine` where that is NaN or nothing is predicted at all.

    Raises:
        PolicyInputError: a row is no distribution, a level is not in [0, 1], or shapes do not match.
    """
    table = _as_table(probabilities, "probabilities")
    levels = _as_levels(predicted_dopamine, len(table), dopamine)
    return add_energies(np.abs(levels - TARGET_DOPAMINE), entropy(table))


def add_energies(risk: ArrayLike, ambiguity: ArrayLike) -> Energies:
    """Add up the two parts, each rounded first, so that what is shown is what is compared."""
    risks, ambiguities = _round(risk), _round(ambiguity)
    return Energies(risk=risks, ambiguity=ambiguities, expected_free_energy=_round(risks + ambiguities))


def entropy(probabilities: ArrayLike) -> Floats:
    """Compute H[p] = −Σ p ln p of each row, in nats; 0 · ln 0 is 0, exactly. Rows are normalised.

    Raises:
        PolicyInputError: a row is no distribution.
    """
    table = _as_table(probabilities, "probabilities")
    found = np.empty(len(table))
    step = max(1, _CHUNK_ELEMENTS // table.shape[1])
    for start in range(0, len(table), step):
        chunk = table[start : start + step]
        sums = _checked_sums(chunk, "probabilities", start)
        logs = np.log(np.maximum(chunk, _SMALLEST))
        # H[p/S] = ln S − (Σ p ln p) / S: no normalised copy is made.
        found[start : start + step] = np.log(sums) - np.einsum("ij,ij->i", chunk, logs) / sums
    return np.maximum(found, 0.0) + 0.0  # of what rounding makes negative, and of −0.0


def divergence(predicted: ArrayLike, preferred: ArrayLike) -> Floats:
    """Compute KL[q ‖ p] = Σ q ln(q/p) of each row of predicted outcomes from the preferred ones, in nats.

    Outcomes that are not predicted count 0; one that is predicted and has preference 0 makes it infinite. `preferred`
    is one distribution for all rows, or one a row.

    Raises:
        PolicyInputError: a row is no distribution, or shapes do not match.
    """
    ours, theirs = _as_table(predicted, "predicted outcomes"), _as_table(preferred, "preferred outcomes")
    if ours.shape[1] != theirs.shape[1] or len(theirs) not in (1, len(ours)):
        raise PolicyInputError((f"predicted outcomes: shape {ours.shape} does not match preferred {theirs.shape}",))
    ours = ours / _checked_sums(ours, "predicted outcomes")[:, None]
    theirs = theirs / _checked_sums(theirs, "preferred outcomes")[:, None]
    logs = np.log(np.maximum(ours, _SMALLEST)) - np.log(np.maximum(theirs, _SMALLEST))
    found = np.maximum(np.einsum("ij,ij->i", ours, logs), 0.0) + 0.0
    return np.where(((ours > 0) & (theirs == 0)).any(axis=1), np.inf, found)


def predicted_outcomes(likelihood: ArrayLike, states: ArrayLike) -> Floats:
    """Compute Q(o|π) = Σ_s A[o, s] Q(s|π) of each row of states; A has a column a state, which sums to 1.

    Raises:
        PolicyInputError: a column of A or a row of states is no distribution, or shapes do not match.
    """
    columns, rows = _as_model(likelihood, states)
    return rows @ columns


def expected_outcome_entropy(likelihood: ArrayLike, states: ArrayLike) -> Floats:
    """Compute the ambiguity Σ_s Q(s|π) H[A[:, s]] of each row of states, in nats: how little outcomes tell of states.

    Hidden states of several factors are flattened: `A.reshape(len(A), -1)` with the outer product of their beliefs.
    Outcomes of several modalities are independent given the state, so their ambiguities add.

    Raises:
        PolicyInputError: a column of A or a row of states is no distribution, or shapes do not match.
    """
    columns, rows = _as_model(likelihood, states)
    return rows @ entropy(columns)


def find_minimum(expected_free_energy: ArrayLike) -> int:
    """Return the index of the smallest finite value, of equal ones the first. NaN and infinity are never chosen.

    Raises:
        NoPolicyError: there is no finite value.
    """
    values = np.asarray(expected_free_energy, dtype=np.float64).ravel()
    usable = np.where(np.isfinite(values), values, np.inf)
    if not np.isfinite(usable).any():
        reason = "each predicts an outcome whose preference is 0" if len(values) else "there are none"
        raise NoPolicyError(
            f"cannot choose a policy: none of {len(values)} has a finite expected free energy ({reason}); "
            "give every outcome a preference above 0, or other policies"
        )
    return int(np.argmin(usable))


def _round(values: ArrayLike) -> Floats:
    rounded: Floats = np.asarray(values, dtype=np.float64).round(DECIMALS)
    return rounded


def _as_table(values: ArrayLike, what: str) -> Floats:
    try:
        table = np.ascontiguousarray(np.atleast_2d(np.asarray(values, dtype=np.float64)))
    except (TypeError, ValueError) as error:  # text, or rows of different lengths
        raise PolicyInputError((f"{what}: expected rows of numbers: {error}",)) from error
    if table.ndim != 2 or table.shape[1] == 0:
        raise PolicyInputError((f"{what}: expected a row a policy, got an array of shape {np.shape(values)}",))
    return table


def _as_levels(predicted: ArrayLike | None, count: int, current: float) -> Floats:
    given = np.full(count, np.nan) if predicted is None else np.asarray(predicted, dtype=np.float64)
    if given.shape != (count,):
        raise PolicyInputError((f"predicted dopamine: expected {count} levels, got shape {given.shape}",))
    levels = np.where(np.isnan(given), current, given)
    if not ((levels >= 0) & (levels <= 1)).all():  # also where the current level is NaN
        row = int(np.flatnonzero(~((levels >= 0) & (levels <= 1)))[0])
        raise PolicyInputError((f"dopamine of policy {row}: expected a number in [0, 1], got {levels[row]:g}",))
    return levels


def _as_model(likelihood: ArrayLike, states: ArrayLike) -> tuple[Floats, Floats]:
    """Return A's columns and the beliefs as tables of normalised rows."""
    columns = _as_table(np.asarray(likelihood, dtype=np.float64).T, "likelihood")
    rows = _as_table(states, "states")
    if rows.shape[1] != len(columns):
        raise PolicyInputError((f"likelihood: it has {len(columns)} states, the policies {rows.shape[1]}",))
    sums = _checked_sums(columns, "likelihood, column")
    return columns / sums[:, None], rows / _checked_sums(rows, "states")[:, None]


def _checked_sums(table: Floats, what: str, first: int = 0) -> Floats:
    """Return each row's sum. A NaN or an infinity makes the sum one, so sum and minimum say all that is wrong."""
    with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞
        sums: Floats = table.sum(axis=1)
    wrong = ~(np.abs(sums - 1) <= SUM_TOLERANCE) | (table.min(axis=1) < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        seen = f"sum {sums[row]:.9g}, least {table[row].min():.9g}"
        raise PolicyInputError(
            (f"{what}, row {first + row}: expected finite numbers ≥ 0 of sum 1 (± {SUM_TOLERANCE:g}), got {seen}",)
        )
    return sums
