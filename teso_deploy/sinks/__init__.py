"""Outputs of a run: annotated video, masks, events, reports, callbacks; the same for files and for streams."""
