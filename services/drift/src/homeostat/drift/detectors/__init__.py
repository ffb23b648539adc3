"""Distances between a reference histogram and a current one, each with what chance alone would
give.

A distance says how far two samples lie apart (the effect); the p-value says whether chance
explains it (the evidence). Small windows have large distances by chance, huge windows tiny
p-values without any effect, so ``compare`` asks for both.
"""

from homeostat.drift.detectors.comparison import (
    EVIDENCE,
    Comparison,
    Histogram,
    Limits,
    Reading,
    Verdict,
    compare,
)

__all__ = ["EVIDENCE", "Comparison", "Histogram", "Limits", "Reading", "Verdict", "compare"]
