"""Replaying a file through the front door, under the pipeline's one clock."""
