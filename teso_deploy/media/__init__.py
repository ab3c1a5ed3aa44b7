"""Reading frames and sound by PTS, writing video, drawing overlays (av, numpy, pillow)."""
