"""Stage 2: log-density formulas become one op."""
