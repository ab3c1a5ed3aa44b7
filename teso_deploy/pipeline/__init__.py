"""One frame with its sound and cues to masks, and files run through that."""
