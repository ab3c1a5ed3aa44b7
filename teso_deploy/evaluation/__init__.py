"""Metrics, protocols, data sets and audio control; no torch."""
