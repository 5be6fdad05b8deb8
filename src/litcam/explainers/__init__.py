"""Explanation methods: one method or family, one file; one registry."""

from litcam.explainers import (  # noqa: F401  # each registers its methods
    agcam,
    attention_flow,
    controls,
    evidence,
    gradcam,
    gradient_attention,
    legrad,
    libragrad,
    raw_attention,
    reciprocam,
    relevance,
    rise,
    rollout,
    saliency,
    token_dropping,
    tokentm,
)
from litcam.explainers.base import (
    Explainer,
    Explanation,
    check_explainer,
    create_explainer,
    create_explainers,
    list_explainers,
    parse_explainer,
    parse_options,
)

__all__ = [
    "Explainer",
    "Explanation",
    "check_explainer",
    "create_explainer",
    "create_explainers",
    "list_explainers",
    "parse_explainer",
    "parse_options",
]
