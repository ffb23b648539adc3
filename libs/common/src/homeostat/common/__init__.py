"""The contracts that Homeostat's services share, and nothing else."""
