"""CUDA without torch: memory, streams and our own operators."""
