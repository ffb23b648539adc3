"""Folds events into window state: the stream's heart, and the stores that it feeds."""
