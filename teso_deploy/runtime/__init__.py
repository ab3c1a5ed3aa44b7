"""Pipeline, offline runs, accounting; no torch."""
