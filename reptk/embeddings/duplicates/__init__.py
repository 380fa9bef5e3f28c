"""Near duplicates among images."""
