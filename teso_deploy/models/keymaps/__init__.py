"""Checkpoints of others: which of their keys is which of ours, format by format."""
