"""Check the parity of every form with PyTorch, and that the masks follow the sound."""
