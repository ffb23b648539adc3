"""The `homeostat` command and the embedded stack it starts."""
