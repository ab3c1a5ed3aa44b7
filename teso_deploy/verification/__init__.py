"""Parity of every form with PyTorch, and control by sound."""
