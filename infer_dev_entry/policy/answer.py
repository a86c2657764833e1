"""The form of the model's answer: the JSON Schema that the server holds it to, and our own check of what comes back.

Every number is whole and bounded: that is what servers' grammars agree on. llama.cpp knows no bounds of fractions, and
xgrammar 0.2.1 wants an enumerated 0.05 as 0.050000000000000003. Probabilities are percents, shares of their sum: a
schema can bound each number, but it cannot make numbers add up. Arrays and strings are bounded too, so that the
answer of any model ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.policy.checked import as_number, is_text
from infer_dev_entry.policy.model import Policy
from infer_dev_entry.policy.strict_json import parse_json

MAX_CANDIDATES = 16
MAX_ACTION_CHARACTERS = 60
MAX_RATIONALE_CHARACTERS = 240
MAX_ALTERNATIVES = 3
MAX_ANSWER_CHARACTERS = 262_144
MAX_CLAIM_HUNDREDTHS = 300  # 0.5 + ln 4, the most that there can be, is 1.89

_KEYS = ("action", "percent", "rationale", "alternatives", "predicted_effects", "expected_free_energy_hundredths")
_ALTERNATIVE_KEYS = ("action", "percent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One policy of an answer in the form that callers see, and the numbers as the model wrote them."""

    policy: Policy
    claims: Mapping[str, object]


def render_schema(count: int) -> dict[str, object]:
    """Render the JSON Schema of an answer with exactly `count` policies. Nothing from outside gets into it."""
    action: dict[str, object] = {"type": "string", "minLength": 1, "maxLength": MAX_ACTION_CHARACTERS}
    alternative = _object(action=action, percent=_whole(0, 100))
    policy = _object(
        action=action,
        percent=_whole(1, 100),
        rationale={"type": "string", "minLength": 1, "maxLength": MAX_RATIONALE_CHARACTERS},
        alternatives={"type": "array", "minItems": 1, "maxItems": MAX_ALTERNATIVES, "items": alternative},
        predicted_effects=_object(dopamine_percent={"anyOf": [_whole(0, 100), {"type": "null"}]}),
        expected_free_energy_hundredths=_whole(0, MAX_CLAIM_HUNDREDTHS),
    )
    return _object(policies={"type": "array", "minItems": count, "maxItems": count, "items": policy})


def _object(**properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _whole(least: int, most: int) -> dict[str, object]:
    return {"type": "integer", "minimum": least, "maximum": most}


def parse_answer(text: str, count: int, faults: Faults) -> tuple[Proposal, ...]:
    """Check an answer against the form, whether the server held it to the schema or not; faults are collected."""
    try:
        document = parse_json(text, MAX_ANSWER_CHARACTERS, raw_controls=True)
    except ValueError as error:
        faults.add_line(f"expected one JSON object and nothing else: {error}")
        return ()
    if not isinstance(document, dict):
        faults.add_line(f"expected a JSON object, got {shown(document)}")
        return ()
    if not _has_keys(document, ("policies",), faults, ()):
        return ()
    policies = document["policies"]
    if not isinstance(policies, list) or len(policies) != count:
        seen = f"{len(policies)}" if isinstance(policies, list) else shown(policies)
        faults.add(("policies",), f"expected a list of {count} policies, got {seen}")
        return ()
    found = [_parse_proposal(item, faults, ("policies", f"[{index}]")) for index, item in enumerate(policies)]
    return tuple(proposal for proposal in found if proposal is not None)


def _parse_proposal(value: object, faults: Faults, path: Path) -> Proposal | None:
    if not isinstance(value, Mapping) or not _has_keys(value, _KEYS, faults, path):
        if not isinstance(value, Mapping):
            faults.add(path, f"expected an object, got {shown(value)}")
        return None
    action = _parse_text(value["action"], MAX_ACTION_CHARACTERS, faults, (*path, "action"))
    rationale = _parse_text(value["rationale"], MAX_RATIONALE_CHARACTERS, faults, (*path, "rationale"))
    percent = _parse_whole(value["percent"], 1, 100, faults, (*path, "percent"))
    shares = [(action, percent), *_parse_alternatives(value["alternatives"], faults, (*path, "alternatives"))]
    dopamine = _parse_effects(value["predicted_effects"], faults, (*path, "predicted_effects"))
    claim_key = "expected_free_energy_hundredths"
    claim = _parse_whole(value[claim_key], 0, MAX_CLAIM_HUNDREDTHS, faults, (*path, claim_key))
    if not percent:
        return None  # a fault is recorded
    policy: dict[str, object] = {
        "action": action,
        "rationale": rationale,
        "action_probabilities": share_out(shares),
    }
    if dopamine is not None:
        policy["predicted_effects"] = {"dopamine": dopamine}
    claims = {"expected_free_energy": claim / 100, "percents": [percent for _, percent in shares]}
    return Proposal(policy=policy, claims=claims)


def share_out(shares: list[tuple[str, int]]) -> dict[str, float]:
    """Turn shares into probabilities; an action that is named twice gets both of its shares."""
    total = math.fsum(share for _, share in shares)
    found: dict[str, int] = {}
    for action, share in shares:
        found[action] = found.get(action, 0) + share
    return {action: share / total for action, share in found.items()}


def _has_keys(value: Mapping[str, object], keys: tuple[str, ...], faults: Faults, path: Path) -> bool:
    for key in keys:
        if key not in value:
            faults.add((*path, key), "missing")
    for key in value:
        if key not in keys:
            faults.add((*path, key[:MAX_ACTION_CHARACTERS]), "not asked for", f"only {', '.join(keys)}")
    return set(keys) == set(value)


def _parse_text(value: object, limit: int, faults: Faults, path: Path) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= limit or not is_text(value) or not value.strip():
        seen = shown(value) if not isinstance(value, str) or is_text(value) else ascii(value[:limit])
        faults.add(path, f"expected text of 1 to {limit} characters, got {seen}")
        return ""
    return value


def _parse_whole(value: object, least: int, most: int, faults: Faults, path: Path) -> int:
    """Return a whole number; 0 where it is none, for which a fault is recorded. 70.0 is one, as in JSON Schema."""
    number = as_number(value)
    if number is None or number != number // 1 or not least <= number <= most:
        faults.add(path, f"expected a whole number from {least} to {most}, got {shown(value)}")
        return 0
    return int(number)


def _parse_alternatives(value: object, faults: Faults, path: Path) -> list[tuple[str, int]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ALTERNATIVES:
        seen = f"{len(value)}" if isinstance(value, list) else shown(value)
        faults.add(path, f"expected a list of 1 to {MAX_ALTERNATIVES} alternatives, got {seen}")
        return []
    found = []
    for index, item in enumerate(value):
        place = (*path, f"[{index}]")
        if not isinstance(item, Mapping):
            faults.add(place, f"expected an object, got {shown(item)}")
        elif _has_keys(item, _ALTERNATIVE_KEYS, faults, place):
            action = _parse_text(item["action"], MAX_ACTION_CHARACTERS, faults, (*place, "action"))
            found.append((action, _parse_whole(item["percent"], 0, 100, faults, (*place, "percent"))))
    return found


def _parse_effects(value: object, faults: Faults, path: Path) -> float | None:
    key = "dopamine_percent"
    if not isinstance(value, Mapping):
        faults.add(path, f"expected an object, got {shown(value)}")
    elif _has_keys(value, (key,), faults, path) and value[key] is not None:
        return _parse_whole(value[key], 0, 100, faults, (*path, key)) / 100
    return None
