"""Streams in real time: scheduling, accounting and metrics."""
