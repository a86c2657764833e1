"""Policies as mappings: what enters a score, what is refused, who wins, and that nothing given is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.config.faults import Faults
from infer_dev_entry.errors import NoPolicyError, PolicyInputError
from infer_dev_entry.policy import (
    calculate_expected_free_energy,
    rank_policies,
    score_policies,
    select_policy_minimizing_efe,
)
from infer_dev_entry.policy.checked import parse_distribution

LEVELS = {"dopamine": 0.3, "serotonin": 0.5, "cortisol": 0.7}
WAIT = {"action": "wait", "rationale": "it may pass", "action_probabilities": {"wait": 0.5, "look": 0.5}}
LOOK = {
    "action": "look",
    "rationale": "to know",
    "action_probabilities": {"look": 0.9, "wait": 0.1},
    "predicted_effects": {"dopamine": 0.45},
}
PREFERRED = {"safe": 0.8, "hurt": 0.2}


def faults_of(policies: list[object], state: object = LEVELS) -> tuple[str, ...]:
    with pytest.raises(PolicyInputError) as caught:
        score_policies(policies, state)  # type: ignore[arg-type]
    return caught.value.faults


def frozen(value: object) -> object:
    """A copy in which every mapping is read-only and every list a tuple."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(item) for key, item in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list) else value


# -- what enters the score


def test_policy_that_predicts_its_effect_is_scored_by_it() -> None:
    (score,) = score_policies([LOOK], LEVELS)
    assert score.risk == 0.05
    assert score.ambiguity == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)
    assert score.expected_free_energy == pytest.approx(score.risk + score.ambiguity, abs=1e-12)


def test_policy_that_predicts_nothing_shares_the_current_level() -> None:
    assert [score.risk for score in score_policies([WAIT, WAIT | {"action": "run"}], LEVELS)] == [0.2, 0.2]
    assert score_policies([WAIT | {"predicted_effects": {"dopamine": None}}], LEVELS)[0].risk == 0.2
    assert score_policies([WAIT | {"predicted_effects": {"cortisol": 0.1}}], LEVELS)[0].risk == 0.2


def test_levels_may_be_flat_or_below_their_name() -> None:
    assert score_policies([WAIT], {"neurotransmitters": LEVELS}) == score_policies([WAIT], LEVELS)


def test_one_policy_has_the_energy_that_it_has_among_others() -> None:
    found = [calculate_expected_free_energy({"sound": 1}, policy, LEVELS) for policy in (WAIT, LOOK)]
    assert found == [score.expected_free_energy for score in score_policies([WAIT, LOOK], LEVELS)]


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.5], (0.5, 0.5), np.array([0.5, 0.5]), {"a": np.float32(0.5), "b": 0.5}]
)
def test_probabilities_may_be_named_or_listed(probabilities: object) -> None:
    (score,) = score_policies([WAIT | {"action_probabilities": probabilities}], LEVELS)
    assert score.ambiguity == pytest.approx(math.log(2), abs=1e-12)


def test_number_and_order_of_actions_change_nothing() -> None:
    # Summed in two orders, these two differ by 1e-12 after rounding.
    shares = [630, 478, 402, 425, 532, 651, 322, 516, 712]
    row = [share / sum(shares) for share in shares]
    rows = (row, row[::-1], [0, *row[3:], 0.0, *row[:3]])
    policies = [{"action": "x", "action_probabilities": row} for row in rows]
    assert len({score.expected_free_energy for score in score_policies(policies, LEVELS)}) == 1


def test_preferred_outcomes_make_the_risk_a_divergence() -> None:
    policy = WAIT | {"predicted_outcomes": {"hurt": 0.4, "safe": 0.6}}
    (score,) = score_policies([policy], {"preferred_outcomes": PREFERRED})
    assert score.risk == pytest.approx(0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2), abs=1e-12)
    assert score_policies([policy], LEVELS)[0].risk == 0.2  # without preferences the prediction has no part


def test_likelihood_makes_the_ambiguity_that_of_outcomes() -> None:
    state = LEVELS | {"likelihood": [[0.5, 1.0], [0.5, 0.0]]}
    (score,) = score_policies([WAIT | {"predicted_states": [0.25, 0.75]}], state)
    assert (score.risk, score.ambiguity) == (0.2, pytest.approx(0.25 * math.log(2), abs=1e-12))


def test_likelihood_with_preferences_predicts_the_outcomes() -> None:
    state = {"preferred_outcomes": [0.5, 0.5], "likelihood": [[0.5, 1.0], [0.5, 0.0]]}
    (score,) = score_policies([WAIT | {"predicted_states": [0.0, 1.0]}], state)
    assert (score.risk, score.ambiguity) == (pytest.approx(math.log(2), abs=1e-12), 0)


# -- who wins


def test_smallest_energy_is_chosen_itself() -> None:
    policies = [WAIT, LOOK, copy.deepcopy(LOOK)]
    assert select_policy_minimizing_efe(policies, LEVELS) is LOOK


def test_equal_policies_stay_in_the_order_given() -> None:
    mirrored = [
        LOOK | {"action": name, "predicted_effects": {"dopamine": level}} for name, level in (("a", 0.3), ("b", 0.7))
    ]
    for policies in (mirrored, mirrored[::-1]):
        assert select_policy_minimizing_efe(policies, LEVELS) is policies[0]
        assert [candidate.index for candidate in rank_policies(policies, LEVELS)] == [0, 1]


def test_infinite_energy_is_ranked_last_and_never_chosen() -> None:
    never = WAIT | {"action": "never", "predicted_outcomes": [0.0, 1.0]}
    fine = WAIT | {"predicted_outcomes": [1.0, 0.0]}
    state = {"preferred_outcomes": [1.0, 0.0]}
    assert select_policy_minimizing_efe([never, fine], state) is fine
    assert [candidate.policy["action"] for candidate in rank_policies([never, fine], state)] == ["wait", "never"]
    with pytest.raises(NoPolicyError, match="none of 1"):
        select_policy_minimizing_efe([never], state)


def test_no_policies_are_an_error() -> None:
    with pytest.raises(NoPolicyError, match="there are none"):
        select_policy_minimizing_efe([], LEVELS)


@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1))), min_size=1, max_size=12),
    dopamine=st.floats(0, 1),
)
def test_chosen_policy_is_the_first_minimum_of_single_energies(
    rows: list[tuple[float, float | None]], dopamine: float
) -> None:
    policies = [
        {"action": "a", "action_probabilities": [share, 1 - share], "predicted_effects": {"dopamine": level}}
        for share, level in rows
    ]
    state = {"dopamine": dopamine}
    energies = [calculate_expected_free_energy(None, policy, state) for policy in policies]
    assert select_policy_minimizing_efe(policies, state) is policies[energies.index(min(energies))]
    assert rank_policies(policies, state)[0].index == energies.index(min(energies))


def test_claims_are_kept_beside_and_change_nothing() -> None:
    claims = [{"expected_free_energy": 0.0}, {"expected_free_energy": 9.9}]
    ranked = rank_policies([WAIT, LOOK], LEVELS, claims)
    assert [(candidate.index, candidate.claims) for candidate in ranked] == [(1, claims[1]), (0, claims[0])]
    assert [candidate.score for candidate in ranked] == [
        candidate.score for candidate in rank_policies([WAIT, LOOK], LEVELS)
    ]


# -- what is refused


def test_every_fault_is_told_at_once() -> None:
    faults = faults_of(
        [
            {"action": " ", "rationale": 3, "action_probabilities": [0.5]},
            "wait",
            WAIT | {"predicted_effects": {"dopamine": 2}},
        ],
        {"dopamine": True, "cortisol": "high"},
    )
    told = "\n".join(faults)
    for part in (
        "internal_state.dopamine: expected a number in [0, 1], got true",
        'internal_state.cortisol: expected a number in [0, 1], got "high"',
        'policies[0].action: expected text, got " "',
        "policies[0].rationale: expected text, got 3",
        "policies[0].action_probabilities: expected probabilities of sum 1 (± 1e-06), got 0.5",
        'policies[1]: expected a mapping with action and action_probabilities, got "wait"',
        "policies[2].predicted_effects.dopamine: expected a number in [0, 1], got 2",
    ):
        assert part in told
    assert len(faults) == 7


@pytest.mark.parametrize("level", [True, None, "0.5", math.nan, math.inf, -0.01, 1.01, 10**400, [0.5], 1j])
def test_level_that_is_no_number_in_range_is_refused(level: object) -> None:
    assert "internal_state.dopamine: expected a number in [0, 1]" in faults_of([WAIT], {"dopamine": level})[0]


def test_level_that_is_missing_is_refused() -> None:
    assert "internal_state.dopamine: missing; give a number in [0, 1]" in faults_of([WAIT], {"serotonin": 0.5})[0]


@pytest.mark.parametrize(
    "probabilities",
    [
        [],
        {},
        None,
        "a",
        1.0,
        [0.5, 0.499],
        [1.5, -0.5],
        [math.nan, 1],
        [True, 0],
        ["1"],
        [10**400],
        {"": 1.0},
        {3: 1.0},
    ],
)
def test_probabilities_that_are_no_distribution_are_refused(probabilities: object) -> None:
    (fault,) = faults_of([WAIT | {"action_probabilities": probabilities}])
    assert "policies[0].action_probabilities" in fault


def test_sum_within_tolerance_is_normalised() -> None:
    faults = Faults("test")
    names, numbers = parse_distribution({"a": 0.25 + 4e-7, "b": 0.75}, faults, ("p",))
    assert (names, faults.faults) == (("a", "b"), ())
    assert math.fsum(numbers) == pytest.approx(1, abs=1e-15)
    (score,) = score_policies([WAIT | {"action_probabilities": [1 + 9e-7]}], LEVELS)
    assert score.ambiguity == 0
    (fault,) = faults_of([WAIT | {"action_probabilities": [1 + 2e-6]}])
    assert "got 1.000002" in fault


@pytest.mark.parametrize(
    ("policy", "state", "says"),
    [
        ({}, {"preferred_outcomes": PREFERRED}, "policies[0].predicted_outcomes: missing"),
        (
            {"predicted_outcomes": {"safe": 1.0}},
            {"preferred_outcomes": PREFERRED},
            "expected the outcomes of preferred",
        ),
        ({"predicted_outcomes": [0.5, 0.5]}, {"preferred_outcomes": PREFERRED}, "expected the outcomes of preferred"),
        ({"predicted_outcomes": [1.0]}, {"preferred_outcomes": [0.5, 0.5]}, "expected the outcomes of preferred"),
        ({}, LEVELS | {"likelihood": [[1.0, 1.0]]}, "policies[0].predicted_states: missing"),
        ({"predicted_states": [1.0]}, LEVELS | {"likelihood": [[1.0, 1.0]]}, "expected one of each of 2 states, got 1"),
        ({}, LEVELS | {"likelihood": [[1.0], [0.5, 0.5]]}, "expected rows of numbers of one length"),
        ({}, LEVELS | {"likelihood": "A"}, "expected rows of numbers of one length"),
        ({}, LEVELS | {"likelihood": [[0.5], [0.4]]}, 'likelihood."column 0": expected probabilities of sum 1'),
        ({}, {"preferred_outcomes": [1.0], "likelihood": [[0.5], [0.5]]}, "expected a row for each of 1 preferred"),
    ],
)
def test_general_form_that_lacks_something_is_refused(
    policy: Mapping[str, object], state: Mapping[str, object], says: str
) -> None:
    assert says in "\n".join(faults_of([WAIT | policy], state))


def test_flood_of_faults_is_cut() -> None:
    faults = faults_of([{}] * 1000)
    assert len(faults) < 60
    assert "the rest is not looked at, after 25 of 1000 policies" in faults[-1]


# -- nothing is changed


def test_inputs_stay_as_they_are() -> None:
    outcomes = {"predicted_outcomes": [0.4, 0.6]}
    policies = [WAIT | {"predicted_states": [0.1, 0.9]}, LOOK | outcomes | {"predicted_states": [0.5, 0.5]}]
    state = LEVELS | {"preferred_outcomes": [0.5, 0.5], "likelihood": [[0.5, 1.0], [0.5, 0.0]]}
    before = copy.deepcopy((policies, state))
    rank_policies(policies, state)
    select_policy_minimizing_efe(policies, state)
    calculate_expected_free_energy({}, policies[0], state)
    assert (policies, state) == before


def test_read_only_inputs_are_enough() -> None:
    policies = tuple(frozen(policy) for policy in (WAIT, LOOK))
    state = frozen(LEVELS | {"likelihood": [[0.5, 1.0], [0.5, 0.0]], "neurotransmitters": LEVELS})
    with pytest.raises(PolicyInputError):  # no predicted states
        score_policies(policies, state)  # type: ignore[arg-type]
    assert select_policy_minimizing_efe(policies, frozen(LEVELS)) is policies[1]  # type: ignore[arg-type]
