"""Loops of random variables, re-rolled before any log-density is derived."""
