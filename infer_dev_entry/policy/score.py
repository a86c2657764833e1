"""Score policies by expected free energy and choose the minimum. Pure: told everything, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from infer_dev_entry.config.faults import Faults
from infer_dev_entry.errors import PolicyInputError
from infer_dev_entry.policy.energy import (
    Energies,
    Floats,
    add_energies,
    batch_energies,
    divergence,
    expected_outcome_entropy,
    find_minimum,
    predicted_outcomes,
)
from infer_dev_entry.policy.forms import parse_internal_state, parse_policies
from infer_dev_entry.policy.model import Candidate, InternalState, ParsedPolicy, Policy, PolicyScore


def calculate_expected_free_energy(
    current_state: object, policy: Policy, internal_state: Mapping[str, object]
) -> float:
    """Compute G(π) = risk + ambiguity of one policy.

    - risk is |d − 0.5|: d is `policy["predicted_effects"]["dopamine"]`, or where that is not predicted the current
      level `internal_state["dopamine"]`, which all such policies share. With `internal_state["preferred_outcomes"]` it
      is the general form, KL[Q(o|π) ‖ P(o)] in nats of `policy["predicted_outcomes"]` from it.
    - ambiguity is the entropy of `policy["action_probabilities"]` in nats. With `internal_state["likelihood"]`, A with
      a row an outcome and a column a hidden state, it is Σ_s Q(s|π) H[A[:, s]] of `policy["predicted_states"]`;
      outcomes are then predicted as A Q(s|π).

    `current_state` is what is sensed now. It has no part in these forms: a policy's predictions say what comes of it.

    Raises:
        PolicyInputError: the policy or the internal state cannot be used; it holds every fault.
    """
    del current_state
    return score_policies((policy,), internal_state)[0].expected_free_energy


def select_policy_minimizing_efe(policies: Sequence[Policy], internal_state: Mapping[str, object]) -> Policy:
    """Return the policy of the smallest G, itself and unchanged; of equal ones the first. Infinity is never chosen.

    Raises:
        PolicyInputError: a policy or the internal state cannot be used.
        NoPolicyError: there are no policies, or none has a finite G.
    """
    scores = score_policies(policies, internal_state)
    return policies[find_minimum([score.expected_free_energy for score in scores])]


def rank_policies(
    policies: Sequence[Policy], internal_state: Mapping[str, object], claims: Sequence[Mapping[str, object]] = ()
) -> tuple[Candidate, ...]:
    """Return all policies with their scores, ordered by G; equal ones stay in the order given, infinite ones are last.

    `claims` are numbers that somebody else gave for the same policies; they are kept beside and change nothing.

    Raises:
        PolicyInputError: a policy or the internal state cannot be used.
        NoPolicyError: there are no policies, or none has a finite G.
    """
    scores = score_policies(policies, internal_state)
    find_minimum([score.expected_free_energy for score in scores])
    candidates = [
        Candidate(index=index, policy=policy, score=score, claims=claims[index] if claims else {})
        for index, (policy, score) in enumerate(zip(policies, scores, strict=True))
    ]
    return tuple(sorted(candidates, key=lambda candidate: candidate.score.expected_free_energy))


def score_policies(policies: Sequence[Policy], internal_state: Mapping[str, object]) -> tuple[PolicyScore, ...]:
    """Score each policy, in the order given.

    Raises:
        PolicyInputError: a policy or the internal state cannot be used.
    """
    faults = Faults("cannot score")
    state = parse_internal_state(internal_state, faults)
    parsed = parse_policies(policies, state, faults)
    if faults.faults:
        raise PolicyInputError(faults.faults)
    if not parsed:
        return ()
    energies = _energies(parsed, state)
    columns = (energies.risk, energies.ambiguity, energies.expected_free_energy)
    return tuple(
        PolicyScore(risk=risk, ambiguity=ambiguity, expected_free_energy=total)
        for risk, ambiguity, total in zip(*(column.tolist() for column in columns), strict=True)
    )


def _energies(policies: Sequence[ParsedPolicy], state: InternalState) -> Energies:
    """Compute both parts in their plain form, and put the general ones in their place where there is what they need."""
    table = _pad([policy.probabilities for policy in policies])
    predicted = [policy.predicted_dopamine for policy in policies]
    dopamine = state.levels.dopamine
    known = 0.0 if dopamine is None else dopamine  # without a level the risk is the general form
    plain = batch_energies(table, np.array(predicted, dtype=np.float64), dopamine=known)
    risk, ambiguity = plain.risk, plain.ambiguity
    outcomes = np.array([policy.predicted_outcomes or () for policy in policies])
    if state.likelihood is not None:
        states = np.array([policy.predicted_states or () for policy in policies])
        ambiguity = expected_outcome_entropy(state.likelihood, states)
        outcomes = predicted_outcomes(state.likelihood, states)
    if state.preferred_outcomes is not None:
        risk = divergence(outcomes, state.preferred_outcomes)
    return add_energies(risk, ambiguity)


def _pad(rows: Sequence[tuple[float, ...]]) -> Floats:
    """Make one array of rows of different lengths: an action of probability 0 adds nothing to an entropy."""
    table = np.zeros((len(rows), max(map(len, rows))))
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
