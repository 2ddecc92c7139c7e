"""Stage 1: N isomorphic terms become one batched term."""
