"""Evidence that may be looked at after every single observation.

A fixed threshold on an observed rate, checked again and again, is crossed sooner or later by a
healthy arm. The test here is anytime-valid: under the null hypothesis the evidence exceeds ``1 /
alpha`` *ever* with probability at most ``alpha``, however often one looks (Ville's inequality; J.
Ville, *Étude critique de la notion de collectif*, 1939). The evidence is a mixture of likelihood
ratios (H. Robbins, *Statistical methods related to the law of the iterated logarithm*, Ann. Math.
Stat. 41, 1970), as used for always-valid p-values by R. Johari, L. Pekelis and D. Walsh (*Always
valid inference*, 2015).
"""

from __future__ import annotations

import math

_FACTORS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_HIGH = (0.25, 0.5, 0.9)


def log_evidence_above(limit: float, *, hits: int, samples: int) -> float:
    """Log evidence against "at most ``limit`` of the samples are hits".

    Each alternative rate above the limit gives a likelihood ratio whose expectation is at most one
    under every rate at or below the limit, so their mean is a supermartingale there.

    >>> log_evidence_above(0.01, hits=10, samples=100) > math.log(1000)
    True
    >>> log_evidence_above(0.01, hits=2, samples=100) > math.log(1000)
    False
    """
    if limit <= 0.0:
        return math.inf if hits else 0.0
    rates = sorted({limit * factor for factor in _FACTORS} | set(_HIGH))
    terms = [
        hits * math.log(rate / limit) + (samples - hits) * math.log((1 - rate) / (1 - limit))
        for rate in rates
        if limit < rate < 1.0
    ]
    if not terms:
        return 0.0
    peak = max(terms)
    return peak + math.log(sum(math.exp(term - peak) for term in terms) / len(terms))
