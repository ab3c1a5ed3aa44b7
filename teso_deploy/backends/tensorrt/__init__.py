"""Build, cache and run engines of TensorRT and TensorRT-RTX."""
