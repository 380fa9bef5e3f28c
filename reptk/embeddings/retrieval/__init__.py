"""Indexes and stores of embeddings, and search in them."""
