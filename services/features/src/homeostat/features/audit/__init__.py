"""The skew audit: what was served, computed once more from the log, must be the same bits."""
