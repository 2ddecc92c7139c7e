"""Stage 3: what the matrix is made of decides what the log-density costs."""
