"""The public endpoint: assignment, guard, fallback; and beside it the judge of rollouts."""
