"""From the bytes of a file to pixels: decoders, color profiles, sizes."""
