"""A local page to look at embeddings: a map, a gallery, search, near duplicates, and labels to export."""
