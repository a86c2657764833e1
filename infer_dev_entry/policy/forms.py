"""Check policies and internal states as callers give them, and take out what enters a score. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.policy.checked import as_list, parse_distribution, parse_level, parse_levels
from infer_dev_entry.policy.model import InternalState, Levels, ParsedPolicy

MAX_STATES = 1000
_MANY_FAULTS = 50


def parse_internal_state(value: object, faults: Faults) -> InternalState:
    """Check an internal state: levels, flat or below `neurotransmitters`, and of the general forms what is given."""
    path = ("internal_state",)
    if not isinstance(value, Mapping):
        faults.add(path, f"expected a mapping with dopamine, serotonin and cortisol, got {shown(value)}")
        return InternalState(levels=Levels())
    general = value.get("preferred_outcomes") is not None
    nested = value.get("neurotransmitters")
    place = path if nested is None else (*path, "neurotransmitters")
    levels = parse_levels(value if nested is None else nested, faults, place, required=() if general else ("dopamine",))
    names, preferred = None, None
    if general:
        names, preferred = parse_distribution(value["preferred_outcomes"], faults, (*path, "preferred_outcomes"))
    likelihood = _parse_likelihood(value.get("likelihood"), faults, (*path, "likelihood"))
    if preferred and likelihood and len(preferred) != len(likelihood):
        problem = f"expected a row for each of {len(preferred)} preferred outcomes, got {len(likelihood)}"
        faults.add((*path, "likelihood"), problem)
    return InternalState(levels=levels, preferred_outcomes=preferred, outcome_names=names, likelihood=likelihood)


def _parse_likelihood(value: object, faults: Faults, path: Path) -> tuple[tuple[float, ...], ...] | None:
    """Check A: rows, one an outcome, whose columns, one a hidden state, are distributions. Return its rows."""
    if value is None:
        return None
    given = as_list(value)
    rows = [as_list(row) for row in given] if isinstance(given, list) else []
    lists = [row for row in rows if isinstance(row, list)]
    if not rows or len(lists) != len(rows) or len({len(row) for row in lists}) != 1:
        faults.add(path, f"expected rows of numbers of one length, got {shown(value)}")
        return None
    if not 1 <= len(lists[0]) <= MAX_STATES:
        faults.add(path, f"expected 1 to {MAX_STATES} hidden states, got {len(lists[0])}")
        return None
    columns = [
        parse_distribution(list(column), faults, (*path, f"column {index}"))[1]
        for index, column in enumerate(zip(*lists, strict=True))
    ]
    return tuple(zip(*columns, strict=True)) if all(columns) else None


def parse_policies(values: Sequence[object], state: InternalState, faults: Faults) -> tuple[ParsedPolicy, ...]:
    """Check every policy; with a fault in one of them none is to be scored."""
    found = []
    for index, value in enumerate(values):
        found.append(parse_policy(value, state, faults, ("policies", f"[{index}]")))
        if len(faults.faults) >= _MANY_FAULTS:
            faults.add_line(f"the rest is not looked at, after {index + 1} of {len(values)} policies")
            break
    return tuple(found)


def parse_policy(value: object, state: InternalState, faults: Faults, path: Path) -> ParsedPolicy:
    """Check one policy, also for what the general forms need of it."""
    if not isinstance(value, Mapping):
        faults.add(path, f"expected a mapping with action and action_probabilities, got {shown(value)}")
        return ParsedPolicy(probabilities=())
    action, rationale = value.get("action"), value.get("rationale", "")
    if not isinstance(action, str) or not action.strip():
        faults.add((*path, "action"), f"expected text, got {shown(action)}" if "action" in value else "missing")
    if not isinstance(rationale, str):
        faults.add((*path, "rationale"), f"expected text, got {shown(rationale)}")
    _, probabilities = _require(value, "action_probabilities", faults, path)
    outcomes, states = None, None
    if state.likelihood is not None:
        states = _parse_states(value, len(state.likelihood[0]), faults, path)
    elif state.preferred_outcomes is not None:
        outcomes = _parse_outcomes(value, state, faults, path)
    return ParsedPolicy(
        probabilities=tuple(sorted(probabilities, reverse=True)),
        predicted_dopamine=_parse_effects(value.get("predicted_effects"), faults, (*path, "predicted_effects")),
        predicted_outcomes=outcomes,
        predicted_states=states,
    )


def _require(
    policy: Mapping[str, object], key: str, faults: Faults, path: Path
) -> tuple[tuple[str, ...] | None, tuple[float, ...]]:
    if policy.get(key) is None:
        faults.add((*path, key), "missing", "give a distribution, by name or as a list")
        return None, ()
    return parse_distribution(policy[key], faults, (*path, key))


def _parse_effects(value: object, faults: Faults, path: Path) -> float | None:
    """Return the dopamine that a policy predicts, if it does; other levels are checked and enter no score."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        faults.add(path, f"expected a mapping of levels, got {shown(value)}")
        return None
    given = {str(key): level for key, level in value.items() if level is not None}
    return {key: parse_level(level, faults, (*path, key)) for key, level in given.items()}.get("dopamine")


def _parse_states(policy: Mapping[str, object], count: int, faults: Faults, path: Path) -> tuple[float, ...]:
    _, numbers = _require(policy, "predicted_states", faults, path)
    if numbers and len(numbers) != count:
        faults.add((*path, "predicted_states"), f"expected one of each of {count} states, got {len(numbers)}")
    return numbers


def _parse_outcomes(
    policy: Mapping[str, object], state: InternalState, faults: Faults, path: Path
) -> tuple[float, ...]:
    """Return the predicted outcomes in the order of the preferred ones."""
    names, numbers = _require(policy, "predicted_outcomes", faults, path)
    wanted = state.outcome_names
    if not numbers or not state.preferred_outcomes:
        return ()  # a fault is recorded
    if names is not None and wanted is not None and set(names) == set(wanted):
        return tuple(numbers[names.index(name)] for name in wanted)
    if names is not None or wanted is not None or len(numbers) != len(state.preferred_outcomes):
        faults.add(
            (*path, "predicted_outcomes"), "expected the outcomes of preferred_outcomes, named or listed as there"
        )
    return numbers
