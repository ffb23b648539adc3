"""The judge: one acting process that decides rollouts. Requests never wait for it."""
