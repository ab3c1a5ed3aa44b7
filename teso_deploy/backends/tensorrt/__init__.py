"""Engines of TensorRT and of TensorRT-RTX: built, kept, run."""
