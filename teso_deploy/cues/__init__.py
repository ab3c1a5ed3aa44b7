"""Sources of text cues."""
