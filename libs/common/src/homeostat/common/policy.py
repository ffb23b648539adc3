"""Policy as code: the rules that a challenger must pass, in typed YAML.

A rule compares one measured figure with one bound. The trainer measures,
``homeostat.trainer.governance`` decides; the policy travels inside the pipeline snapshot, so every
decision names the exact rules it used.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Measure(StrEnum):
    """What a rule may bound. Differences are challenger minus champion, higher is better."""

    IMPROVEMENT = "improvement"  # relative to the champion's metric, on the newest mature slice
    IMPROVEMENT_LOWER = "improvement_lower"  # lower confidence bound of the same
    HISTORY_IMPROVEMENT = "history_improvement"  # relative, on older data
    WORST_SLICE_IMPROVEMENT = "worst_slice_improvement"  # relative, on the slice it hurts most
    METRIC = "metric"  # the challenger's own metric, absolute
    EVALUATION_ROWS = "evaluation_rows"
    EVALUATION_POSITIVES = "evaluation_positives"
    LATENCY_P99_SECONDS = "latency_p99_seconds"
    SIZE_BYTES = "size_bytes"
    MISSING_SHARE = "missing_share"  # of the worst feature in the training set


class Rule(BaseModel):
    """One bound on one measure; a rule about differences is waived while there is no champion."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    measure: Measure
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Rule:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a rule needs at_least, at_most, or both")
        return self

    def passes(self, value: float) -> bool:
        """NaN passes nothing: what could not be measured is not evidence."""
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return value == value and above and below


DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"name": "beats the champion", "measure": "improvement_lower", "at_least": 0.0},
    {"name": "keeps older data", "measure": "history_improvement", "at_least": -0.2},
    {"name": "is fast", "measure": "latency_p99_seconds", "at_most": 0.05},
)


class Policy(BaseModel):
    """All rules must pass.

    ``approval: manual`` holds a passed challenger until a person approves it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_version: Annotated[Literal["homeostat/v1"], Field(alias="apiVersion")] = "homeostat/v1"
    name: str = "default"
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] = tuple(
        Rule.model_validate(rule) for rule in DEFAULT_RULES
    )
    approval: Literal["automatic", "manual"] = "automatic"
    slices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Policy:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        return self
