"""Explanation methods: one method or family, one file; one registry."""

from litcam.explainers import agcam, controls, raw_attention, rollout  # noqa: F401  # each registers its methods
from litcam.explainers.base import Explainer, Explanation, check_explainer, create_explainer, list_explainers

__all__ = ["Explainer", "Explanation", "check_explainer", "create_explainer", "list_explainers"]
