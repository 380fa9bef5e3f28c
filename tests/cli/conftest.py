"""Fixtures of tests/embedding_inputs.py."""

from embedding_inputs import encoded, encoder_run, photo_embeddings, photo_folder

__all__ = ["encoded", "encoder_run", "photo_embeddings", "photo_folder"]
