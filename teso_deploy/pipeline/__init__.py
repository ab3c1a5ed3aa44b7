"""Turn one frame with its sound and cues into masks, and run files through that."""
