"""Accepts events and labels, checks them, and publishes them durably."""
