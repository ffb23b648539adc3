"""Retrains models when the world has moved, and lets only the better ones pass."""
