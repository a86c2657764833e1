"""Choose what to do by expected free energy: a served model proposes policies, arithmetic chooses among them."""

from __future__ import annotations

try:
    import numpy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "infer_dev_entry.policy needs numpy; install it with: pip install 'infer-dev-entry[policy]'"
    ) from error

from infer_dev_entry.policy.generate import PolicyGenerator
from infer_dev_entry.policy.model import Candidate, Policy, PolicyScore, PolicySelection
from infer_dev_entry.policy.runtime import create_inference_runtime
from infer_dev_entry.policy.score import (
    calculate_expected_free_energy,
    rank_policies,
    score_policies,
    select_policy_minimizing_efe,
)

__all__ = [
    "Candidate",
    "Policy",
    "PolicyGenerator",
    "PolicyScore",
    "PolicySelection",
    "calculate_expected_free_energy",
    "create_inference_runtime",
    "rank_policies",
    "score_policies",
    "select_policy_minimizing_efe",
]
