"""Fixtures of tests/embedding_inputs.py."""

from embedding_inputs import clustered, encoder_run, photo_embeddings, photo_folder

__all__ = ["clustered", "encoder_run", "photo_embeddings", "photo_folder"]
