"""The arithmetic of expected free energy: against sums by hand, a slow exact reference, and PyPI's pymdp."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.errors import NoPolicyError, PolicyInputError
from infer_dev_entry.policy.energy import (
    add_energies,
    batch_energies,
    divergence,
    entropy,
    expected_outcome_entropy,
    find_minimum,
    predicted_outcomes,
)

# What rounding to 12 decimals may add to the sums' own error, which is a few ulp of values below 10.
TOLERANCE = 2e-12


def slow_entropy(row: list[float]) -> float:
    """H = −Σ p ln p with exact sums, zeros left out."""
    total = math.fsum(row)
    return -math.fsum(value / total * math.log(value / total) for value in row if value > 0)


def slow_divergence(predicted: list[float], preferred: list[float]) -> float:
    """KL = Σ q ln(q/p) with exact sums: 0 where nothing is predicted, infinite where a prediction has no preference."""
    sums = math.fsum(predicted), math.fsum(preferred)
    pairs = [(q / sums[0], p / sums[1]) for q, p in zip(predicted, preferred, strict=True) if q > 0]
    if any(p == 0 for _, p in pairs):
        return math.inf
    return math.fsum(q * (math.log(q) - math.log(p)) for q, p in pairs)


@st.composite
def distributions(draw: st.DrawFn, count: int | None = None) -> list[float]:
    """Distributions with zeros and with values down to the subnormal ones."""
    number = st.one_of(st.just(0.0), st.floats(0, 1, allow_subnormal=True), st.floats(1e-320, 1e-300))
    size = {"min_size": count or 1, "max_size": count or 12}
    values = draw(st.lists(number, **size).filter(lambda found: math.fsum(found) > 1e-6))
    total = math.fsum(values)
    return [value / total for value in values]


@given(rows=st.integers(1, 6).flatmap(lambda count: st.lists(distributions(count), min_size=1, max_size=8)))
def test_entropy_of_any_distribution_is_the_slow_one(rows: list[list[float]]) -> None:
    assert entropy(rows) == pytest.approx([slow_entropy(row) for row in rows], abs=TOLERANCE)


@given(data=st.data(), dopamine=st.floats(0, 1))
def test_batch_of_any_policies_is_the_slow_reference(data: st.DataObject, dopamine: float) -> None:
    count = data.draw(st.integers(1, 6))
    rows = data.draw(st.lists(distributions(count), min_size=1, max_size=8))
    level = st.one_of(st.just(math.nan), st.floats(0, 1))
    predicted = data.draw(st.lists(level, min_size=len(rows), max_size=len(rows)))
    risks = [abs((dopamine if math.isnan(value) else value) - 0.5) for value in predicted]
    found = batch_energies(rows, predicted, dopamine=dopamine)
    expected = [risk + slow_entropy(row) for risk, row in zip(risks, rows, strict=True)]
    assert found.risk == pytest.approx(risks, abs=TOLERANCE)
    assert found.expected_free_energy == pytest.approx(expected, abs=TOLERANCE)


@given(data=st.data())
def test_divergence_of_any_distributions_is_the_slow_one(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    predicted = data.draw(st.lists(distributions(count), min_size=1, max_size=5))
    preferred = data.draw(distributions(count))
    expected = [slow_divergence(row, preferred) for row in predicted]
    assert divergence(predicted, preferred) == pytest.approx(expected, abs=1e-9)


def test_entropy_of_known_distributions_is_exact() -> None:
    assert entropy([[1.0, 0.0, 0.0]]).tolist() == [0.0]
    assert entropy([[0.5, 0.5]])[0] == pytest.approx(math.log(2), abs=1e-15)
    assert entropy(np.full((1, 64), 1 / 64))[0] == pytest.approx(math.log(64), abs=1e-14)


def test_entropy_of_a_certain_choice_is_plain_zero() -> None:
    assert math.copysign(1, entropy([[1.0, 0.0]])[0]) == 1
    assert entropy([[1 + 5e-7, 0.0]])[0] == pytest.approx(0, abs=1e-15)


def test_rows_within_tolerance_are_normalised() -> None:
    row = [0.3 * (1 + 8e-7), 0.2, 0.5]
    assert entropy([row])[0] == pytest.approx(slow_entropy(row), abs=1e-14)
    assert divergence([row], row)[0] == pytest.approx(0, abs=1e-15)
    assert expected_outcome_entropy([[0.5], [0.5]], [[1 + 8e-7]])[0] == pytest.approx(math.log(2), abs=1e-14)


def test_entropy_of_chunks_is_that_of_the_rows() -> None:
    rows = np.random.default_rng(7).dirichlet(np.ones(64), 3000)  # three chunks
    assert entropy(rows).tolist() == [entropy(row)[0] for row in rows]


def test_divergence_with_no_preference_is_infinite_only_where_it_is_predicted() -> None:
    assert divergence([[0.5, 0.5], [1.0, 0.0]], [1.0, 0.0]).tolist() == [math.inf, 0.0]
    assert divergence([[0.25, 0.75]], [0.5, 0.5])[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_levels_that_mirror_each_other_are_equal() -> None:
    found = batch_energies([[1.0]] * 2, [0.3, 0.7], dopamine=0.5)
    assert abs(0.3 - 0.5) != abs(0.7 - 0.5)
    assert found.expected_free_energy.tolist() == [0.2, 0.2]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([0.5, 0.4], "sum 0.9"),
        ([1.5, -0.5], "least -0.5"),
        ([math.nan, 1.0], "sum nan"),
        ([math.inf, 0.0], "sum inf"),
        ([math.inf, -math.inf], "sum nan"),
        ([0.5, 0.5 + 2e-6], "sum 1.000002"),
    ],
)
def test_row_that_is_no_distribution_is_refused(row: list[float], says: str) -> None:
    with pytest.raises(PolicyInputError, match="row 1: .*" + says):
        batch_energies([[0.5, 0.5], row], dopamine=0.5)
    with pytest.raises(PolicyInputError, match="row 0"):
        divergence([row], [0.5, 0.5])


@pytest.mark.parametrize("level", [-0.1, 1.1, math.inf])
def test_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(PolicyInputError, match=r"in \[0, 1\]"):
        batch_energies([[1.0]], [level], dopamine=0.5)
    with pytest.raises(PolicyInputError, match=r"in \[0, 1\]"):
        batch_energies([[1.0]], dopamine=level)


def test_current_level_that_is_no_number_is_refused() -> None:
    with pytest.raises(PolicyInputError, match="got nan"):
        batch_energies([[1.0]], dopamine=math.nan)


@pytest.mark.parametrize("table", [[], [[]], [[0.5], [0.5, 0.5]], [["a"]], np.zeros((1, 1, 1))])
def test_table_of_another_shape_is_refused(table: object) -> None:
    with pytest.raises(PolicyInputError):
        entropy(table)  # type: ignore[arg-type]


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(PolicyInputError, match="2 levels"):
        batch_energies([[1.0], [1.0]], [0.5], dopamine=0.5)
    with pytest.raises(PolicyInputError, match="does not match"):
        divergence([[1.0]], [0.5, 0.5])
    with pytest.raises(PolicyInputError, match="2 states, the policies 3"):
        expected_outcome_entropy([[1.0, 1.0]], [[0.2, 0.3, 0.5]])


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([3.0, 1.0, 2.0], 1),
        ([1.0, 1.0, 1.0], 0),
        ([math.nan, 5.0, math.nan], 1),
        ([math.inf, 5.0, -math.inf], 1),
        ([math.nan, 2.0, 1.0], 2),
    ],
)
def test_minimum_is_the_first_smallest_finite_value(values: list[float], index: int) -> None:
    assert find_minimum(values) == index


@pytest.mark.parametrize("values", [[], [math.inf], [math.nan, math.inf]])
def test_minimum_of_no_finite_value_is_an_error(values: list[float]) -> None:
    with pytest.raises(NoPolicyError):
        find_minimum(values)


# -- the discrete-state form, against PyPI's inferactively-pymdp 0.0.7.1

# It adds 1e-16 to probabilities, or exp(-16) = 1.1e-7 in the information gain, before it takes logarithms.
PYMDP_TOLERANCE = 5e-6
PLOTTING = ("seaborn", "pandas", "matplotlib", "matplotlib.pyplot")


@contextlib.contextmanager
def pymdp_control() -> Iterator[ModuleType]:
    """pymdp.control, with empty modules in place of what draws its plots; all of it is forgotten afterwards."""
    before = set(sys.modules)
    for name in PLOTTING:
        sys.modules.setdefault(name, types.ModuleType(name))
    try:
        from pymdp import control

        yield control
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("pymdp", *PLOTTING):
                del sys.modules[name]


@pytest.fixture(scope="module")
def control() -> Iterator[ModuleType]:
    """pymdp.control for the tests of this module."""
    for name in ("scipy", "numpy"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    if importlib.util.find_spec("pymdp") is None:
        pytest.skip("inferactively-pymdp is not installed")
    with pymdp_control() as module:
        yield module


SHAPES = [(2, (2,)), (3, (2,)), (2, (5,)), (7, (4,)), (16, (9,)), (4, (2, 3)), (3, (2, 2, 2)), (5, (1,))]


def random_model(outcomes: int, factors: tuple[int, ...], seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A likelihood with a column a state, beliefs a factor, and log preferences."""
    random = np.random.default_rng(seed)
    likelihood = random.dirichlet(np.ones(outcomes), size=factors)
    return (
        np.moveaxis(likelihood, -1, 0),
        [random.dirichlet(np.ones(size)) for size in factors],
        random.normal(size=outcomes),
    )


def objects(arrays: list[np.ndarray]) -> np.ndarray:
    """An object array, as pymdp has its factors and modalities."""
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


def joint(beliefs: list[np.ndarray]) -> np.ndarray:
    """The outer product of the factors' beliefs, flattened."""
    found = np.ones(1)
    for factor in beliefs:
        found = np.outer(found, factor).ravel()
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("outcomes", "factors"), SHAPES)
def test_discrete_form_of_random_models_is_pymdps(
    control: ModuleType, outcomes: int, factors: tuple[int, ...], seed: int
) -> None:
    likelihood, beliefs, log_preferences = random_model(outcomes, factors, seed)
    a, qs = objects([likelihood]), [objects(beliefs)]
    qo = control.get_expected_obs(qs, a)
    utility = float(control.calc_expected_utility(qo, objects([log_preferences])))
    information_gain = float(control.calc_states_info_gain(a, qs))

    flat, states = likelihood.reshape(outcomes, -1), joint(beliefs)
    preferred = np.exp(log_preferences) / np.exp(log_preferences).sum()
    predicted = predicted_outcomes(flat, states)
    risk = divergence(predicted, preferred)[0]
    ambiguity = expected_outcome_entropy(flat, states)[0]

    assert predicted[0] == pytest.approx(np.asarray(qo[0][0], dtype=float), abs=1e-12)
    # Ambiguity is what the outcomes' entropy has beyond the information gain, and risk what −utility has beyond it.
    assert ambiguity == pytest.approx(entropy(predicted)[0] - information_gain, abs=PYMDP_TOLERANCE)
    assert risk == pytest.approx(-utility - entropy(predicted)[0], abs=PYMDP_TOLERANCE)
    # So the two decompositions of G are the same number: risk + ambiguity = −E[ln P(o)] − information gain.
    total = add_energies(risk, ambiguity).expected_free_energy
    assert total == pytest.approx(-utility - information_gain, abs=PYMDP_TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_ambiguities_of_modalities_add_up_as_in_pymdp(control: ModuleType, seed: int) -> None:
    first, beliefs, _ = random_model(3, (4,), seed)
    second, _, _ = random_model(2, (4,), seed + 100)
    states = beliefs[0]
    together = np.einsum("is,js->ijs", first, second).reshape(6, 4)  # independent given the state
    parts = expected_outcome_entropy(first, states)[0] + expected_outcome_entropy(second, states)[0]
    gain = float(control.calc_states_info_gain(objects([first, second]), [objects([states])]))
    assert parts == pytest.approx(expected_outcome_entropy(together, states)[0], abs=1e-12)
    assert parts == pytest.approx(entropy(predicted_outcomes(together, states))[0] - gain, abs=PYMDP_TOLERANCE)


def test_discrete_form_with_zeros_is_exact() -> None:
    assert expected_outcome_entropy(np.eye(3), [[0.2, 0.3, 0.5]])[0] == 0  # each state has an outcome of its own
    assert expected_outcome_entropy([[0.5, 1.0], [0.5, 0.0]], [[1.0, 0.0], [0.0, 1.0]]).tolist() == [math.log(2), 0.0]


def test_discrete_form_of_columns_that_do_not_sum_to_one_is_refused() -> None:
    with pytest.raises(PolicyInputError, match="likelihood, column, row 1"):
        expected_outcome_entropy([[0.5, 0.5], [0.5, 0.4]], [[0.5, 0.5]])


def test_stand_ins_for_plotting_are_gone_afterwards() -> None:
    if importlib.util.find_spec("pymdp") is None:
        pytest.skip("inferactively-pymdp is not installed")
    before = set(sys.modules)
    with pymdp_control():
        assert "seaborn" in sys.modules
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in ("pymdp", *PLOTTING)}
