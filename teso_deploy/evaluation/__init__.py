"""Evaluation: samples → trials → scores → report; no torch."""
