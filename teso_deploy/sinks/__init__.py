"""Where results go: annotated video, masks, events, reports."""
