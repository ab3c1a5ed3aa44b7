"""Sources of text cues: one module for each, and the registry that names them."""
