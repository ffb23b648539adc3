"""One record a routed request: who was given which variant, and which one answered."""

from __future__ import annotations

import msgspec

from homeostat.common.assignment import Variant


class Exposure(msgspec.Struct, frozen=True):
    prediction_id: str
    unit: str
    rollout: str
    generation: int
    assigned: Variant
    served: Variant
    version: int
    at: int  # epoch ms, pipeline time
    propensity: float
    reason: str = "assigned"  # or why another variant served: error, timeout, non_finite, tripped
    latency_us: int = 0
