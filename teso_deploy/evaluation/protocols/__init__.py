"""Evaluation protocols: one module for each, and the registry that names them."""
