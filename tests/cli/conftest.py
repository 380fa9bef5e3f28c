"""Fixtures of tests/embedding_inputs.py."""

from embedding_inputs import encoder_run, photo_embeddings, photo_folder

__all__ = ["encoder_run", "photo_embeddings", "photo_folder"]
