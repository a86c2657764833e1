"""What passes between the parts of the policy room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# A policy as callers see it: `action`, `rationale`, `action_probabilities` and, where given, `predicted_effects`,
# `predicted_outcomes`, `predicted_states`.
Policy = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Neurotransmitter levels in [0, 1]; None where the internal state does not say."""

    dopamine: float | None = None
    serotonin: float | None = None
    cortisol: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalState:
    """What policies are scored against: a level, or preferences; `likelihood` has a row an outcome."""

    levels: Levels
    preferred_outcomes: tuple[float, ...] | None = None
    outcome_names: tuple[str, ...] | None = None
    likelihood: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedPolicy:
    """What of a policy enters its score. `probabilities` sum to 1 and are sorted, so that their order has no effect."""

    probabilities: tuple[float, ...]
    predicted_dopamine: float | None = None
    predicted_outcomes: tuple[float, ...] | None = None
    predicted_states: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """G = risk + ambiguity, as computed here. Risk is a distance of levels in [0, 1] or, in its general form, nats."""

    risk: float
    ambiguity: float
    expected_free_energy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy with its score. `index` is its place in the order given; `claims` are the model's own numbers."""

    index: int
    policy: Policy
    score: PolicyScore
    claims: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer of the model that was not usable, and why; `raw_text` is whole."""

    faults: tuple[str, ...]
    raw_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySelection(Mapping[str, object]):
    """The chosen policy and what it was chosen from. Read as a mapping, it is the chosen policy.

    `candidates` are ordered by G, those that are equal as they were given; the first is the chosen one. `refused` is
    the answer that a repair replaced, or None.
    """

    policy: Policy
    candidates: tuple[Candidate, ...]
    refused: Refusal | None = None

    def __getitem__(self, key: str) -> object:
        """Return a value of the chosen policy."""
        return self.policy[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys of the chosen policy."""
        return iter(self.policy)

    def __len__(self) -> int:
        """Count the keys of the chosen policy."""
        return len(self.policy)
