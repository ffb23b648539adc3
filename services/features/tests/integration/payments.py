"""Payments of the pipeline of these tests, made up."""

from __future__ import annotations

import random
import time
from typing import Any


def some_events(
    count: int, seed: int, *, spread_ms: int = 60_000, prefix: str = "e"
) -> list[dict[str, Any]]:
    """Events of the last minute or so, in no order."""
    chance = random.Random(seed)
    now = round(time.time() * 1000)
    return [
        {
            "id": f"{prefix}{number}",
            "time": now - chance.randrange(spread_ms),
            "card": f"c{chance.randrange(40)}",
            "terminal": f"t{chance.randrange(15)}",
            "device": None if chance.random() < 0.1 else f"d{chance.randrange(9)}",
            "amount": round(chance.random() * 100, 2),
        }
        for number in range(count)
    ]
