"""Fixtures of tests/embedding_inputs.py."""

from embedding_inputs import clustered, encoded, encoder_run, photo_embeddings, photo_folder, photos

__all__ = ["clustered", "encoded", "encoder_run", "photo_embeddings", "photo_folder", "photos"]
