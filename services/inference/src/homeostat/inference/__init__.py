"""Scores live events by entity keys, by vector, and straight off the feature stream."""
