"""Images to embeddings, in one process or in several."""
