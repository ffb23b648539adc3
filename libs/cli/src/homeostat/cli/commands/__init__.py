"""One module a command: ``command`` is its function, ``EXAMPLES`` ends its help."""
